"""models.srh.intensity: against a slow loop, exact in any batch, and quick enough to be done for every patch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.srh.intensity import intensity_statistics


def patches(count: int) -> NDArray[np.uint16]:
    """Noise of different levels, uint16 [count, 2, 60, 60]."""
    random = np.random.default_rng(0)
    levels = random.integers(1, 65_535, (count, 2, 1, 1))
    return random.integers(0, levels + 1, (count, 2, 60, 60)).astype(np.uint16)


def test_they_are_those_of_a_slow_loop() -> None:
    """Mean and standard deviation of CH2 and CH3 over every fourth pixel, and the ratio of the means."""
    for patch_2HW, found in zip(patches(5), intensity_statistics(patches(5)), strict=True):
        means = []
        for channel, plane in enumerate(patch_2HW.tolist()):
            values = [value for row in plane[::4] for value in row[::4]]
            means.append(sum(values) / len(values))
            spread = math.sqrt(sum((value - means[-1]) ** 2 for value in values) / len(values))
            assert math.isclose(found[2 * channel], means[-1])
            assert math.isclose(found[2 * channel + 1], spread)
        assert math.isclose(found[4], means[1] / means[0])


def test_a_patch_has_its_bits_in_any_batch() -> None:
    """Alone, among others, and as a view into a strip: the same bits."""
    x_N2HW = patches(7)
    together = intensity_statistics(x_N2HW)
    alone = [intensity_statistics(x_N2HW[i : i + 1])[0] for i in range(7)]
    assert together.tobytes() == np.stack(alone).tobytes()
    strip = np.zeros((1, 2, 60, 100), np.uint16)
    strip[..., 20:80] = x_N2HW[:1]
    assert intensity_statistics(strip[..., 20:80]).tobytes() == together[:1].tobytes()


def test_extremes() -> None:
    """Black patches have a ratio of 0, saturated ones no spread, and nothing is lost to rounding."""
    black, white = np.zeros((1, 2, 300, 300), np.uint16), np.full((1, 2, 300, 300), 65_535, np.uint16)
    np.testing.assert_array_equal(
        intensity_statistics(np.concatenate([black, white])), [[0] * 5, [65_535, 0] * 2 + [1]]
    )
