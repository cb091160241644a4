"""Labelled patches from synthetic slides, cut and gated by the same assembler as at the bedside. No network here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.contract import Chunk, ModelInput, Part, SlideKey
from models.srh import phantom
from models.srh.config import SrhInput
from models.srh.patches import PatchAssembler
from train.foreign import Kind


@dataclass(frozen=True)
class PatchSet:
    """N labelled patches."""

    pixels: NDArray[np.uint16]
    """Counts, uint16 [N, 2, H, W]."""
    labels: NDArray[np.int64]
    """Indices in label order, int64 [N]."""
    seeds: NDArray[np.int64]
    """The patient (= seed) of each patch, int64 [N]."""

    def __len__(self) -> int:
        return len(self.labels)


def slide_of(seed: int, height_px: int) -> phantom.PhantomSlide:
    """The one slide of a phantom patient; its truth is seed mod number of classes."""
    return phantom.PhantomSlide(seed, seed % len(phantom.CLASSES), height_px)


def cut_strip(
    slide: phantom.PhantomSlide, index: int, spec: SrhInput, foreign: Kind | None = None
) -> list[ModelInput]:
    """The patches of one scan strip with the tissue gate's verdicts, by the bedside's assembler.

    `foreign` first makes another picture of the strip.
    """
    assembler = PatchAssembler(spec)
    part = Part(SlideKey(f"P{slide.seed:06d}", "1"), "strip", index)
    planes = phantom.strip(slide, index)
    if foreign is not None:
        planes = foreign(planes, slide.seed + index)
    inputs: list[ModelInput] = []
    for channel, plane in enumerate(planes):
        assembler.begin(part, channel, *plane.shape)
        inputs += assembler.add(Chunk(part, channel, 0, 0, plane))
    return inputs


def cut_slide(slide: phantom.PhantomSlide, spec: SrhInput, foreign: Kind | None = None) -> Iterator[ModelInput]:
    """Every patch of a slide, scan strip by scan strip."""
    for index in range(slide.strips):
        yield from cut_strip(slide, index, spec, foreign)


def collect(seeds: Iterable[int], height_px: int, patches_per_strip: int, spec: SrhInput) -> PatchSet:
    """At most `patches_per_strip` usable patches of one scan strip of each patient, chosen by the seed.

    Raises ValueError when no patch passes the gate.
    """
    pixels: list[NDArray[np.uint16]] = []
    labels: list[int] = []
    patients: list[int] = []
    for seed in seeds:
        slide = slide_of(seed, height_px)
        index = seed // len(phantom.CLASSES) % slide.strips
        usable = [item.pixels for item in cut_strip(slide, index, spec) if item.rejected is None]
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(usable))[:patches_per_strip]
        pixels += [usable[i].copy() for i in sorted(order)]
        labels += [slide.label] * len(order)
        patients += [seed] * len(order)
    if not pixels:
        raise ValueError("no patch of these slides passes the tissue gate")
    return PatchSet(np.stack(pixels), np.array(labels, np.int64), np.array(patients, np.int64))
