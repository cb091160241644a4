"""How far the 256 levels of a tensor reach. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
SAMPLES = 4096
"""Values of each tensor and calibration patch that decide where its span ends."""
HEADROOM = 1.1
"""The span of the network's own input is widened by this: other patches may be brighter than the calibration's."""

Span = tuple[float, float]
"""Lowest and highest of the levels."""


def best_span(values: NDArray[np.float32]) -> Span:
    """The span of 256 levels in which values lose least, in the mean of squares: rare large ones may be cut off for
    the finer steps of all others. From zero where none is negative, else around zero.
    """
    low, high = float(values.min()), max(float(values.max()), 1e-6)
    best, least = (low, high), np.inf
    for share in np.linspace(0.4, 1.0, 31):
        span = (0.0, share * high) if low >= 0 else _around_zero(share * max(-low, high))
        step = (span[1] - span[0]) / (LEVELS - 1)
        lost = float(np.square(np.clip(np.round(values / step) * step, *span) - values).mean())
        if lost < least:
            best, least = span, lost
    return best


def _around_zero(largest: float) -> Span:
    return -largest * 128 / 127, largest


def whole_span(sample: list[NDArray[np.float32]]) -> Span:
    """The span of everything that was seen, with some room."""
    low, high = min(float(part.min()) for part in sample), max(float(part.max()) for part in sample)
    return (0.0, high * HEADROOM) if low >= 0 else _around_zero(max(-low, high) * HEADROOM)


def sampled(value: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Some values of a tensor, the largest and the smallest among them."""
    flat = value.reshape(-1)
    picked = flat[random.integers(flat.size, size=SAMPLES)]
    return np.concatenate([picked, [flat.min(), flat.max()]]).astype(np.float32)
