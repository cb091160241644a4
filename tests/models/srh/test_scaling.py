"""models.srh.scaling: the module in front of a network gives the bits that the host's function gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.srh.channels import to_network_input
from models.srh.scaling import Scaling


def scaled(x_BCHW: NDArray[np.uint16], scale: float, base: float) -> NDArray[np.float32]:
    """What the module makes of raw counts."""
    with torch.no_grad():
        found: NDArray[np.float32] = Scaling(scale, base)(torch.from_numpy(x_BCHW.view(np.int16))).numpy()
    return found


def every_count() -> NDArray[np.uint16]:
    """Each count of both channels, beside ascending and descending ones of the other."""
    up = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    return np.stack([np.stack([up, up[::-1, ::-1]]), np.stack([up, np.roll(up, 5000)])])


@pytest.mark.parametrize("scale", [65536.0, 65535.0, 32768.0, 10000.0, 0.1, 3.3])
@pytest.mark.parametrize("base", [5000.0, 0.0, -300.0, 4999.3])
def test_same_bits_as_on_the_host(scale: float, base: float) -> None:
    """Every count, the published scale and others, whole bases and broken ones: the very same fp32 numbers."""
    x = every_count()
    expected = to_network_input(x, scale=scale, third_channel_base=base)
    assert scaled(x, scale, base).tobytes() == expected.tobytes()


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 1e9), st.floats(-1e6, 1e6), st.integers(0, 2**32 - 1))
def test_same_bits_for_any_numbers(scale: float, base: float, seed: int) -> None:
    """No scale and no base makes a difference of one bit."""
    x = np.random.default_rng(seed).integers(0, 65536, (2, 2, 5, 7), dtype=np.uint16)
    expected = to_network_input(x, scale=scale, third_channel_base=base)
    assert scaled(x, scale, base).tobytes() == expected.tobytes()


def test_nothing_of_it_is_a_weight() -> None:
    """The module adds no parameter and no saved tensor to the network behind it."""
    assert not list(Scaling(65536.0, 5000.0).parameters()) and not Scaling(65536.0, 5000.0).state_dict()
