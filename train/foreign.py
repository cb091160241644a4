"""Pictures that a phantom profile was not made for, derived from synthetic scan strips: does the reference notice?

Each kind takes a strip's counts, uint16 [2, H, W], and a seed, and gives other counts of the same shape. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint16]
Kind = Callable[[Counts, int], Counts]
_MOST = 65535


def _counts(values_2HW: NDArray[np.floating]) -> Counts:
    counts: Counts = np.clip(np.rint(values_2HW), 0, _MOST).astype(np.uint16)
    return counts


def inverted(planes_2HW: Counts, seed: int) -> Counts:
    """Bright becomes dark within each channel's own range (its middle 99.8 %)."""
    low_2, high_2 = np.quantile(planes_2HW, [0.001, 0.999], axis=(1, 2))
    return _counts((low_2 + high_2)[:, np.newaxis, np.newaxis] - planes_2HW.astype(np.float64))


def noise(planes_2HW: Counts, seed: int) -> Counts:
    """White noise with each channel's mean and standard deviation."""
    random = np.random.Generator(np.random.PCG64(seed))
    mean_2, std_2 = (values.reshape(2, 1, 1) for values in (planes_2HW.mean((1, 2)), planes_2HW.std((1, 2))))
    return _counts(mean_2 + std_2 * random.standard_normal(planes_2HW.shape))


def swapped(planes_2HW: Counts, seed: int) -> Counts:
    """CH2 in the place of CH3 and the other way round."""
    return planes_2HW[::-1].copy()


def blurred(planes_2HW: Counts, seed: int, sigma_px: float = 4.0) -> Counts:
    """Out of focus: a Gaussian blur."""
    reach = int(3 * sigma_px)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    values = planes_2HW.astype(np.float64)
    for axis in (1, 2):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded, length = np.pad(values, padding, mode="edge"), values.shape[axis]
        parts = (w * padded.take(range(i, i + length), axis) for i, w in enumerate(weights / weights.sum()))
        values = np.add.reduce(list(parts))
    return _counts(values)


def photograph(planes_2HW: Counts, seed: int) -> Counts:
    """Soft gradients and shadows without any fine structure, the same in both channels, as bright as the strip."""
    random = np.random.Generator(np.random.PCG64(seed))
    _, height, width = planes_2HW.shape
    y_H, x_W = np.linspace(0, 1, height), np.linspace(0, 1, width)
    picture = np.add.outer(random.uniform(0.5, 1) * y_H, random.uniform(0.5, 1) * x_W)
    for _ in range(12):
        frequency, phase = random.uniform(1, 5, 2), random.uniform(0, 2 * np.pi, 2)
        wave_H, wave_W = (np.sin(2 * np.pi * f * t + p) for f, t, p in zip(frequency, (y_H, x_W), phase, strict=True))
        picture += 0.3 * np.multiply.outer(wave_H, wave_W)
    picture = (picture - picture.mean()) / picture.std()
    return _counts(np.stack([plane.mean() + plane.std() * picture for plane in planes_2HW]))


def enlarged(planes_2HW: Counts, seed: int) -> Counts:
    """Twice the magnification: the first quarter of the strip, each pixel four times."""
    _, height, width = planes_2HW.shape
    quarter = planes_2HW[:, : (height + 1) // 2, : (width + 1) // 2]
    return quarter.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


def turned(planes_2HW: Counts, seed: int) -> Counts:
    """Upside down: nothing that matters has changed."""
    return planes_2HW[:, ::-1, ::-1].copy()


def scaled(factor: float) -> Kind:
    """All counts times a factor, as another gain would give them."""

    def kind(planes_2HW: Counts, seed: int) -> Counts:
        return _counts(planes_2HW.astype(np.float64) * factor)

    return kind


GROSS: dict[str, Kind] = {
    "inverted": inverted,
    "noise": noise,
    "channels swapped": swapped,
    "blurred, sigma 4 px": blurred,
    "photograph": photograph,
    "dimmed to a half": scaled(0.5),
    "brightened twofold": scaled(2.0),
}
"""Kinds that must be noticed: nothing useful can be said of them."""
SUBTLE: dict[str, Kind] = {
    "enlarged twofold": enlarged,
    "dimmed by a fifth": scaled(0.8),
    "brightened by a fifth": scaled(1.2),
    "upside down": turned,
}
"""Kinds that are shown beside them, so that nobody takes the reference for more than it is."""
