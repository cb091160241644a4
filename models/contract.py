"""The records and Protocols between pixels and answers. No modality, file or clock is known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.profile import Profile


class SlideKey(NamedTuple):
    """One slide of one patient, as the naming rules (or their pseudonyms) call them."""

    patient: str
    slide: str


class PatchKey(NamedTuple):
    """The identity of one unit of work: counted once, whatever arrives how often."""

    patient: str
    slide: str
    strip: int
    x: int
    y: int

    @property
    def of_slide(self) -> SlideKey:
        """The slide that this patch belongs to."""
        return SlideKey(self.patient, self.slide)


class Part(NamedTuple):
    """One part of an acquisition: a scan strip, a whole mosaic, or a finished patch of a slide."""

    slide: SlideKey
    kind: str
    """`strip`, `mosaic` or `patch` for SRH; other modalities name their own."""
    strip: int
    """Number of the scan strip; 0 for a mosaic. A finished patch brings its place in `origin`."""
    origin: tuple[int, int] = (0, 0)
    """(x, y) of a finished patch, pixels."""

    @property
    def is_whole_slide(self) -> bool:
        """Whether it shows what the slide's other parts show together."""
        return self.kind == "mosaic"

    @property
    def is_one_patch(self) -> bool:
        """Whether it shares its strip with others."""
        return self.kind == "patch"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Decoded pixels plus their place: uint16 [h, w] at (y, x) of channel `channel` of a part."""

    part: Part
    channel: int
    y: int
    x: int
    pixels: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One network input (uint16, the profile's raw input shape), or the reason why it must not be used."""

    key: PatchKey
    pixels: NDArray[np.uint16]
    rejected: str | None = None
    fault: str | None = None
    """What is wrong with the image itself, for people, where the rejection is more than a lack of tissue."""
    digest: int | None = None
    """64 bits that change with the pixels, where somebody needs to notice that (the daemon does)."""


Prediction = Mapping[str, NDArray[np.float32]]
"""Batch-first float32 tensors by name, e.g. {"logits": [B, K], "embedding": [B, E]}. Shapes are static per engine."""


class ShapeError(ValueError):
    """A part whose shape the profile's geometry does not know, or that contradicts its other channel."""


class Assembler(Protocol):
    """Chunks of growing parts in, network inputs out, each exactly once, as soon as its last row is there."""

    def begin(self, part: Part, channel: int, height: int, width: int) -> int | None:
        """State the shape of one channel of a part; a second `begin` starts this channel's coverage anew.

        Returns how many parts make the slide complete, None when only silence can tell.
        Raises ShapeError for a shape that no geometry knows or that differs from the other channel's.
        """
        ...

    def add(self, chunk: Chunk) -> list[ModelInput]:
        """Take pixels and return the inputs that they complete."""
        ...

    def planned(self, part: Part) -> list[PatchKey]:
        """Every patch that this part will give once complete (empty before its shape is known)."""
        ...

    def forget(self, part: Part) -> None:
        """Free what is held for a finished or abandoned part."""
        ...


class PatchLayout(NamedTuple):
    """How patches lie on a slide, for heat maps."""

    size_px: int
    """Side of a patch."""
    stride_px: int
    """From one part's left edge to the next one's: a patch lies at (strip × stride + x, y)."""


@dataclass(frozen=True)
class Modality:
    """Everything the agent and the trainer need to know about one kind of imaging."""

    name: str
    channels: tuple[str, ...]
    make_assembler: Callable[[Profile], Assembler]
    build_network: Callable[[Profile], Any]
    """Returns an untrained torch.nn.Module that takes float32 network input; imports torch when called. It has
    `emits` ("logits" or "probabilities"), `load_weights` (a profile's tensors by published key), and
    `with_embedding`: the module that engines compile, which gives (what it emits [B, K], its embedding [B, E])."""
    to_network_input: Callable[[Profile, NDArray[np.uint16]], NDArray[np.float32]]
    """Raw uint16 batch to float32 network input, on the host (scaling, third channel, clamping)."""
    build_scaling: Callable[[Profile], Any]
    """Returns a torch.nn.Module that does the same on the network's device, with the same bits. It takes the raw
    batch as int16 (the bits of uint16); imports torch when called."""
    intensity_statistics: Callable[[Profile, NDArray[np.uint16]], NDArray[np.float64]]
    """Raw uint16 batch, as the network gets it, to float64 [B, S]: what a profile's reference bounds (models.domain).
    A patch's bits depend on itself alone."""
    patch_layout: Callable[[Profile], PatchLayout]
    phantom_slide: Callable[[Profile, int], NDArray[np.uint16]]
    """Raw inputs [N, *raw input shape] of whole synthetic slide `number` (0, 1, 2 … of the classes in turn), the same
    bits each time: what engines are compared on. Raises ValueError where there is none for the profile's geometry."""
    check: Callable[[Profile], None]
    """Validates the modality's own sections of a profile; raises ValueError."""


def by_slide(keys: Iterable[PatchKey]) -> dict[SlideKey, list[PatchKey]]:
    """Group patch keys by slide, keeping their order."""
    groups: dict[SlideKey, list[PatchKey]] = {}
    for key in keys:
        groups.setdefault(key.of_slide, []).append(key)
    return groups
