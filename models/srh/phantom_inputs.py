"""Whole synthetic slides as network inputs of any profile: for comparing engines, never for judging a network.

Pure. Decides how much of a phantom slide a profile with other patches or strips gets; patches are cut and judged by
the code that cuts and judges those of real slides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.contract import Chunk, Part, SlideKey
from models.srh.config import SrhInput
from models.srh.patches import PatchAssembler
from models.srh.phantom import CLASSES, STRIP_WIDTH_PX, TRIM_PX, PhantomSlide, strip

FIRST_SEED = 7_000_000
"""Far from the seeds of training and evaluation."""
ROWS, COLUMNS = 7, 3
"""Patches of a scan strip of 2000 × 1000 px, which smaller patches do not exceed."""


def phantom_inputs(spec: SrhInput, number: int) -> NDArray[np.uint16]:
    """The patches of slide `number` that the profile's tissue gate lets pass, uint16 [N, 2, size_px, size_px].

    Slide n shows the phantom's class n mod 4, in two scan strips of at most 21 patches. Where the gate lets nothing
    pass (a profile for other intensities) all patches are given: for comparing engines they serve as well.
    Raises ValueError for patches wider than a trimmed scan strip.
    """
    widest = STRIP_WIDTH_PX - 2 * TRIM_PX
    if spec.size_px > widest:
        raise ValueError(f"the phantom's scan strips hold no patch of {spec.size_px} px (at most {widest})")
    slide = PhantomSlide(FIRST_SEED + number, number % len(CLASSES))
    used: list[NDArray[np.uint16]] = []
    rejected: list[NDArray[np.uint16]] = []
    for index in range(slide.strips):
        inner_2HW = strip(slide, index)[:, : ROWS * spec.size_px, TRIM_PX : STRIP_WIDTH_PX - TRIM_PX]
        inner_2HW = inner_2HW[:, :, : COLUMNS * spec.size_px]
        assembler = PatchAssembler(spec)
        part = Part(SlideKey("phantom", str(number)), "mosaic", index)  # already trimmed, as a mosaic is
        for channel in range(len(inner_2HW)):
            assembler.begin(part, channel, *inner_2HW.shape[1:])
        for channel, plane_HW in enumerate(inner_2HW):
            for patch in assembler.add(Chunk(part, channel, 0, 0, plane_HW)):
                (used if patch.rejected is None else rejected).append(patch.pixels)
    return np.stack(used or rejected)
