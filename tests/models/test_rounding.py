"""Rounding that makes up for its own errors, against plain rounding."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.rounding import compensated, to_bf16


def whole(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest whole numbers."""
    return np.round(values)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), inputs=st.integers(2, 150), mean=st.floats(-2, 2))
def test_outputs_change_less_than_with_the_nearest(seed: int, inputs: int, mean: float) -> None:
    """Whatever the inputs' mean and mixture, the outputs' error is at most that of plain rounding, but for what
    damping costs; every value is one that the rounding leaves as it is."""
    random = np.random.default_rng(seed)
    columns_NK = random.normal(mean, 1, (400, inputs)) @ random.normal(0, 1, (inputs, inputs))
    moments_KK = columns_NK.T @ columns_NK / len(columns_NK)
    weights_OK = random.normal(0, 30, (8, inputs))
    found_OK = compensated(weights_OK, moments_KK, whole)
    assert np.array_equal(found_OK, np.round(found_OK))

    def lost(taken_OK: NDArray[np.float64]) -> float:
        error_OK = weights_OK - taken_OK
        return float(np.einsum("ok,kl,ol->", error_OK, moments_KK, error_OK))

    assert lost(found_OK) <= 1.05 * lost(np.round(weights_OK))


def test_inputs_that_never_vary_together_take_the_nearest() -> None:
    """With moments that mix nothing, no weight can make up for another."""
    weights_OK = np.random.default_rng(0).normal(0, 30, (5, 130))
    assert np.array_equal(compensated(weights_OK, np.eye(130), whole), np.round(weights_OK))


def test_bright_inputs_lose_much_less() -> None:
    """All inputs share a large mean, as bright patches do: plain rounding shifts the outputs by far more."""
    random = np.random.default_rng(1)
    columns_NK = 5 + random.normal(0, 0.2, (500, 147))
    weights_OK = random.normal(0, 30, (16, 147))
    found_OK = compensated(weights_OK, columns_NK.T @ columns_NK / 500, whole)
    shift = [np.abs(columns_NK @ (weights_OK - taken).T).mean() for taken in (found_OK, np.round(weights_OK))]
    assert shift[0] < 0.2 * shift[1]


@settings(deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100))
)
def test_bf16_is_that_of_torch(values: list[float]) -> None:
    """Bit for bit, also at ties, zeros and the smallest numbers."""
    array = np.array(values, np.float32)
    assert np.array_equal(to_bf16(array), torch.from_numpy(array).bfloat16().double().numpy())
