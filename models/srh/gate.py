"""The rule-based tissue gate: may this patch be used, and if not, why not. No labels, no network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.srh.config import GateSpec

STEP = 4
"""Statistics look at every fourth pixel of both axes: 0.02 ms a patch, and as good as all of them."""


def judge(patch_2HW: NDArray[np.uint16], spec: GateSpec) -> str | None:
    """None when the uint16 patch (CH2, CH3) may be used, else the reason in one word.

    `constant`: a channel without any variation (a dead detector, a preallocated block);
    `empty`: little signal in CH3; `textureless`: no structure in CH3; `saturated`: too many pixels at 65535;
    `blood`: CH3 low against CH2.
    """
    sample_2hw = patch_2HW[:, ::STEP, ::STEP]
    lowest_2, highest_2 = sample_2hw.min(axis=(1, 2)), sample_2hw.max(axis=(1, 2))
    if (lowest_2 == highest_2).any():
        return "constant"
    ch2, ch3 = sample_2hw.reshape(2, -1).astype(np.float64)
    if ch3.mean() < spec.min_mean_counts:
        return "empty"
    if ch3.std() < spec.min_std_counts:
        return "textureless"
    if max((ch2 == 65535).mean(), (ch3 == 65535).mean()) > spec.max_saturated_fraction:
        return "saturated"
    if ch3.mean() < spec.min_ch3_ch2_ratio * ch2.mean():
        return "blood"
    return None
