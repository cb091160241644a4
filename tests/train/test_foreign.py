"""train.foreign: each kind is what its name says, reproducible, and of the strip's shape."""

from __future__ import annotations

import numpy as np
import pytest

from models.srh.phantom import PhantomSlide, render
from train.foreign import GROSS, SUBTLE, Kind, blurred, enlarged, inverted, noise, photograph, scaled, swapped

KINDS = {**GROSS, **SUBTLE}
PLANES = render(PhantomSlide(40_000, 0), 300, 300, 360, 301)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_a_picture_of_the_same_shape(name: str) -> None:
    """Counts of the strip's shape and type, the same for the same seed, and the strip itself is left alone."""
    before = PLANES.copy()
    found = KINDS[name](PLANES, 7)
    assert found.shape == PLANES.shape and found.dtype == np.uint16
    np.testing.assert_array_equal(found, KINDS[name](PLANES, 7))
    np.testing.assert_array_equal(PLANES, before)
    assert not np.array_equal(found, PLANES)


@pytest.mark.parametrize("kind", [noise, photograph])
def test_what_replaces_the_picture_keeps_its_brightness(kind: Kind) -> None:
    """Noise and photographs are as bright and as rough as the strip: only their structure is foreign."""
    found = kind(PLANES, 3).astype(float)
    np.testing.assert_allclose(found.mean((1, 2)), PLANES.mean((1, 2)), rtol=0.02)
    np.testing.assert_allclose(found.std((1, 2)), PLANES.std((1, 2)), rtol=0.05)


def test_what_changes_the_picture_does_what_it_says() -> None:
    """Inverted pictures are their own negative, swapped ones swap, scaled ones scale and saturate."""
    inside = (np.quantile(PLANES[0], 0.01) < PLANES[0]) & (PLANES[0] < np.quantile(PLANES[0], 0.99))
    assert np.corrcoef(inverted(PLANES, 0)[0][inside], PLANES[0][inside])[0, 1] < -0.99
    np.testing.assert_array_equal(swapped(PLANES, 0)[0], PLANES[1])
    np.testing.assert_array_equal(scaled(0.5)(PLANES, 0), np.rint(PLANES * 0.5))
    assert scaled(100)(PLANES, 0).max() == 65_535
    np.testing.assert_array_equal(enlarged(PLANES, 0)[:, ::2, ::2][:, :150, :150], PLANES[:, :150, :150])


def test_the_blur_is_gaussian() -> None:
    """A single bright point becomes the bell of the stated width, with its sum kept."""
    point = np.zeros((2, 61, 61), np.uint16)
    point[:, 30, 30] = 60_000
    found = blurred(point, 0, sigma_px=3.0).astype(float)
    y, x = np.mgrid[-30:31, -30:31]
    bell = 60_000 * np.exp(-(x**2 + y**2) / 18) / (18 * np.pi)
    np.testing.assert_allclose(found[0], bell, atol=6)
    assert found[0].sum() == pytest.approx(60_000, rel=0.01)
