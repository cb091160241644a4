"""Scan strips, mosaics and finished patches → network inputs, each as soon as its last row is there.

Pure: pixels come as chunks in any order; nothing here knows files or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.contract import Chunk, ModelInput, Part, PatchKey, ShapeError
from models.srh.config import SrhInput
from models.srh.gate import judge
from models.srh.registration import flat_field, translation

CHANNELS = 2
DEAD = "blocks without any variation: a dead detector, or a file that was never filled"


def steps(length_px: int, size_px: int) -> list[int]:
    """Offsets 0, size, 2·size, … of a length, the last one snapped to the edge."""
    last = length_px - size_px
    return sorted({*range(0, last + 1, size_px), last})


def grid(height_px: int, width_px: int, kind: str, spec: SrhInput) -> tuple[list[int], list[int]]:
    """(ys, xs) of the patches of a part, pixels.

    A scan strip leaves its overlapping columns out (x = 50, 350, 650): 21, 42, 60 or 102 patches for 2000, 4000,
    6000 or 10000 rows. A mosaic is already trimmed. Raises ShapeError for a shape that the geometry does not know.
    """
    if kind == "strip":
        if width_px != spec.strip_width_px or height_px not in spec.strips_by_height:
            known = ", ".join(f"{height} × {spec.strip_width_px}" for height in sorted(spec.strips_by_height))
            raise ShapeError(f"a scan strip of {height_px} × {width_px} px; the profile knows {known}")
        inner = steps(width_px - 2 * spec.trim_px, spec.size_px)
        return steps(height_px, spec.size_px), [spec.trim_px + x for x in inner]
    if min(height_px, width_px) < spec.size_px:
        raise ShapeError(f"{height_px} × {width_px} px is smaller than one patch of {spec.size_px} px")
    if kind == "patch" and (height_px, width_px) != (spec.size_px, spec.size_px):
        raise ShapeError(f"a patch of {height_px} × {width_px} px; the profile's are {spec.size_px} px square")
    return steps(height_px, spec.size_px), steps(width_px, spec.size_px)


@dataclass
class _Canvas:
    """What is there of one part: pixels of both channels, and the rows of patches not yet cut."""

    shape: tuple[int, int]
    xs: list[int]
    pending: list[int]
    """ys of the rows of patches that wait for pixels, ascending."""
    planes: dict[int, NDArray[np.uint16]] = field(default_factory=dict)
    filled: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Per channel: how many pixels of each row are there."""


class PatchAssembler:
    """`models.contract.Assembler` for SRH. Holds one canvas for each part that is arriving."""

    def __init__(self, spec: SrhInput) -> None:
        self._spec = spec
        self._margin = spec.max_shift_px if spec.registration == "translation" else 0
        self._canvases: dict[Part, _Canvas] = {}

    def begin(self, part: Part, channel: int, height: int, width: int) -> int | None:
        """See Assembler. Pixels of an earlier source of this channel are forgotten, patches already cut are not."""
        canvas = self._canvases.get(part)
        if canvas is None:
            ys, xs = grid(height, width, part.kind, self._spec)
            canvas = self._canvases[part] = _Canvas((height, width), xs, ys)
        elif canvas.shape != (height, width):
            raise ShapeError(f"{height} × {width} px, the other channel has {canvas.shape[0]} × {canvas.shape[1]}")
        canvas.planes[channel] = np.zeros(canvas.shape, np.uint16)
        canvas.filled[channel] = np.zeros(height, np.int64)
        return self._parts_of(part, height)

    def add(self, chunk: Chunk) -> list[ModelInput]:
        """See Assembler."""
        canvas = self._canvases[chunk.part]
        rows, columns = chunk.pixels.shape
        canvas.planes[chunk.channel][chunk.y : chunk.y + rows, chunk.x : chunk.x + columns] = chunk.pixels
        canvas.filled[chunk.channel][chunk.y : chunk.y + rows] += columns
        inputs: list[ModelInput] = []
        waiting: list[int] = []
        for y in canvas.pending:
            if self._ready(canvas, y):
                inputs += self._cut(chunk.part, canvas, y)
            else:
                waiting.append(y)
        canvas.pending = waiting
        return inputs

    def planned(self, part: Part) -> list[PatchKey]:
        """See Assembler."""
        canvas = self._canvases.get(part)
        if canvas is None:
            return []
        ys, xs = grid(*canvas.shape, part.kind, self._spec)
        return [self._key(part, x, y) for y in ys for x in xs]

    def forget(self, part: Part) -> None:
        """See Assembler."""
        self._canvases.pop(part, None)

    @property
    def held(self) -> int:
        """Parts whose pixels are held."""
        return len(self._canvases)

    def _parts_of(self, part: Part, height: int) -> int | None:
        if part.kind == "strip":
            return self._spec.strips_by_height[height]
        return 1 if part.kind == "mosaic" else None

    def _ready(self, canvas: _Canvas, y: int) -> bool:
        if len(canvas.planes) < CHANNELS:
            return False
        height, width = canvas.shape
        rows = slice(max(0, y - self._margin), min(height, y + self._spec.size_px + self._margin))
        return all(bool((filled[rows] >= width).all()) for filled in canvas.filled.values())

    def _cut(self, part: Part, canvas: _Canvas, y: int) -> list[ModelInput]:
        size = self._spec.size_px
        ch2_HW, ch3_HW = canvas.planes[0], canvas.planes[1]
        dy = dx = 0
        if self._margin:
            dy, dx = translation(ch2_HW[y : y + size], ch3_HW[y : y + size], self._spec.max_shift_px)
        inputs = []
        for x in canvas.xs:
            # At the image's edge the shift is cut short: no pixel is invented.
            y3 = min(max(y + dy, 0), canvas.shape[0] - size)
            x3 = min(max(x + dx, 0), canvas.shape[1] - size)
            patch_2HW = np.stack((ch2_HW[y : y + size, x : x + size], ch3_HW[y3 : y3 + size, x3 : x3 + size]))
            reason = judge(patch_2HW, self._spec.gate)
            if reason is None and self._spec.flatten == "per_patch":
                patch_2HW = flat_field(patch_2HW)
            fault = DEAD if reason == "constant" else None
            inputs.append(ModelInput(self._key(part, x, y), patch_2HW, reason, fault))
        return inputs

    @staticmethod
    def _key(part: Part, x: int, y: int) -> PatchKey:
        left, top = part.origin
        return PatchKey(part.slide.patient, part.slide.slide, part.strip, left + x, top + y)
