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
    """The span of 256 levels half way between two: the one in which values lose least (in the mean of squares), which
    cuts rare large ones off, and the one that holds all, since such values may be what tells a patch from others.

    From zero where none is negative, else around zero.
    """
    low, high = float(values.min()), max(float(values.max()), 1e-6)

    def span_of(share: float) -> Span:
        return (0.0, share * high) if low >= 0 else _around_zero(share * max(-low, high))

    def lost(share: float) -> float:
        first, last = span_of(share)
        step = (last - first) / (LEVELS - 1)
        return float(np.square(np.clip(np.round(values / step) * step, first, last) - values).mean())

    return span_of((min(np.linspace(0.4, 1.0, 31).tolist(), key=lost) + 1) / 2)


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
