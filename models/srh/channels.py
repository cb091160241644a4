"""CH2 and CH3 counts to the three network inputs, in fp32, on the host.

Decides scaling, the derived third channel and clamping. Must not know the network, the batch's meaning or torch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def to_network_input(x_BCHW: NDArray[np.uint16], *, scale: float, third_channel_base: float) -> NDArray[np.float32]:
    """Raw counts [B, 2, H, W] (CH2, CH3) to network input float32 [B, 3, H, W] within [0, 1].

    Output channels are CH1 = CH3 - CH2 + `third_channel_base`, CH2 and CH3, each divided by `scale` (both in counts)
    and clamped. Sums are taken in counts and divided once, so that with the published scale of 65536 and a whole
    base every value is exact in fp32. A patch's bits do not depend on the rest of its batch.

    Raises ValueError for another dtype or shape. Source: published SpineXtract and OpenSRH input transforms.
    """
    if x_BCHW.dtype != np.uint16 or x_BCHW.ndim != 4 or x_BCHW.shape[1] != 2:
        raise ValueError(f"expected uint16 [B, 2, H, W], got {x_BCHW.dtype} {list(x_BCHW.shape)}")
    batch, _, height, width = x_BCHW.shape
    out_BCHW = np.empty((batch, 3, height, width), np.float32)
    # A power of two divides exactly, so multiplying by its inverse gives the same bits and is faster.
    exact = math.frexp(scale)[0] == 0.5
    apply, factor = (np.multiply, np.float32(1 / scale)) if exact else (np.divide, np.float32(scale))
    base = np.float32(third_channel_base)
    for x_CHW, out_CHW in zip(x_BCHW, out_BCHW, strict=True):  # one patch at a time stays in the cache
        out_CHW[1:] = x_CHW
        np.subtract(out_CHW[2], out_CHW[1], out=out_CHW[0])
        out_CHW[0] += base
        apply(out_CHW, factor, out=out_CHW)
        # Counts are never negative and reach 65535: only the difference, or a small scale, can leave [0, 1].
        clamped = out_CHW if scale < np.iinfo(np.uint16).max else out_CHW[0]
        np.minimum(clamped, np.float32(1), out=clamped)
        np.maximum(clamped, np.float32(0), out=clamped)
    return out_BCHW
