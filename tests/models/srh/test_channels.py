"""models.srh.channels against a slow loop over pixels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.srh.channels import to_network_input

SCALE, BASE = 65536.0, 5000.0


def slow(x_BCHW: NDArray[np.uint16], scale: float, base: float) -> NDArray[np.float32]:
    """The definition in exact rational arithmetic, rounded once to fp32."""
    batch, _, height, width = x_BCHW.shape
    out = np.zeros((batch, 3, height, width), np.float32)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                ch2, ch3 = (Fraction(int(x_BCHW[b, c, y, x])) for c in (0, 1))
                for c, counts in enumerate((ch3 - ch2 + Fraction(base), ch2, ch3)):
                    exact = min(Fraction(1), max(Fraction(0), counts / Fraction(scale)))
                    out[b, c, y, x] = np.float32(exact.numerator / exact.denominator)
    return out


def random_counts(seed: int, *shape: int) -> NDArray[np.uint16]:
    """Counts over the whole range."""
    return np.random.default_rng(seed).integers(0, 65536, shape, dtype=np.uint16)


@pytest.mark.parametrize("scale", [65536.0, 65535.0, 32768.0, 10000.0])
@pytest.mark.parametrize("base", [5000.0, 0.0, -300.0])
def test_equals_the_definition(scale: float, base: float) -> None:
    """Every pixel has the exact value, rounded once, for the published scale and for others."""
    x_BCHW = random_counts(1, 2, 2, 9, 7)
    found = to_network_input(x_BCHW, scale=scale, third_channel_base=base)
    np.testing.assert_array_equal(found, slow(x_BCHW, scale, base))


def test_extremes_are_clamped_and_exact() -> None:
    """The corners of the range give exact values in [0, 1]."""
    corners = [(0, 0), (65535, 0), (0, 65535), (65535, 65535), (5001, 1), (1, 60537), (0, 60536)]
    x_BCHW = np.array(corners, np.uint16).T.reshape(1, 2, 1, -1)
    found = to_network_input(x_BCHW, scale=SCALE, third_channel_base=BASE)
    assert found[0, 0, 0].tolist() == [5000 / 65536, 0, 1, 5000 / 65536, 0, 1, 1]
    np.testing.assert_array_equal(found, slow(x_BCHW, SCALE, BASE))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.data())
def test_bits_do_not_depend_on_neighbours(batch: int, seed: int, data: st.DataObject) -> None:
    """A patch gives the same bits alone, in any slot, and from a strided view."""
    x_BCHW = random_counts(seed, batch, 2, 33, 17)
    slot = data.draw(st.integers(0, batch - 1))
    alone = to_network_input(x_BCHW[slot : slot + 1], scale=SCALE, third_channel_base=BASE)
    together = to_network_input(x_BCHW, scale=SCALE, third_channel_base=BASE)
    assert together[slot].tobytes() == alone[0].tobytes()
    turned = np.asfortranarray(x_BCHW)
    assert to_network_input(turned, scale=SCALE, third_channel_base=BASE).tobytes() == together.tobytes()


def test_result_is_new_memory() -> None:
    """The raw pixels are left as they were."""
    x_BCHW = random_counts(3, 2, 2, 8, 8)
    before = x_BCHW.copy()
    found = to_network_input(x_BCHW, scale=SCALE, third_channel_base=BASE)
    assert found.dtype == np.float32
    assert found.shape == (2, 3, 8, 8)
    assert not np.shares_memory(found, x_BCHW)
    np.testing.assert_array_equal(x_BCHW, before)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.uint16), np.zeros((2, 4, 4), np.uint16)],
    ids=["dtype", "channels", "dimensions"],
)
def test_other_input_is_refused(wrong: NDArray[np.uint16]) -> None:
    """Another dtype, channel count or number of dimensions raises ValueError that says what came."""
    with pytest.raises(ValueError, match="expected uint16"):
        to_network_input(wrong, scale=SCALE, third_channel_base=BASE)
