"""From what a network's head emits to frequencies. Which map, fitted on which input, is the profile's word."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.profile import CalibrationSpec

Emits = Literal["logits", "probabilities"]
CLIP = 1e-8
"""Smallest calibrated value before normalisation (published code)."""


class CalibrationInputError(ValueError):
    """Outputs that the calibration was not fitted on: not finite, or outside the range of its stated input."""


def softmax(x_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over classes, float64 [N, K]."""
    return _normalised(np.exp(x_NK - x_NK.max(axis=1, keepdims=True)))


def twice_softmax_range(classes: int) -> tuple[float, float]:
    """Smallest and largest value that a softmax of probabilities can take: [0.1748, 0.4754] for four classes."""
    return 1 / (1 + math.e + (classes - 2)), math.e / (math.e + classes - 1)


def calibrate(outputs_NK: NDArray[np.floating], spec: CalibrationSpec, emits: Emits) -> NDArray[np.float64]:
    """Calibrated class probabilities, float64 [N, K], rows summing to 1; each row depends on itself alone.

    outputs_NK: what the head emits ([N, K] logits, or probabilities where softmax is inside the head).
    `one_vs_rest_sigmoid` is SpineXtract's map: q = mean over folds of sigmoid(w·x + b), clipped at 1e-8 and divided
    by its sum, where x is the input that the profile states.
    Raises CalibrationInputError when the outputs cannot be what the profile says they are.
    """
    x_NK = np.ascontiguousarray(outputs_NK, dtype=np.float64)
    if not np.isfinite(x_NK).all():
        raise CalibrationInputError("the network returned values that are not finite")
    if emits == "probabilities" and (x_NK.min() < -1e-6 or np.abs(x_NK.sum(axis=1) - 1).max() > 1e-2):
        raise CalibrationInputError("the network's outputs are not probabilities although its head emits them")
    if spec.kind == "none":
        return _normalised(x_NK if emits == "probabilities" else softmax(x_NK))
    if spec.kind == "temperature":
        logits_NK = np.log(np.maximum(x_NK, CLIP)) if emits == "probabilities" else x_NK
        return softmax(logits_NK / spec.temperature)
    return _one_vs_rest(_stated_input(x_NK, spec.input, emits), spec)


def _stated_input(x_NK: NDArray[np.float64], stated: str, emits: Emits) -> NDArray[np.float64]:
    if stated == "logits":
        if emits != "logits":
            raise CalibrationInputError("the calibration was fitted on logits, the head emits probabilities")
        return x_NK
    p_NK = x_NK if emits == "probabilities" else softmax(x_NK)
    if stated == "probabilities":
        return p_NK
    twice_NK = softmax(p_NK)
    low, high = twice_softmax_range(x_NK.shape[1])
    if twice_NK.min() < low - 1e-3 or twice_NK.max() > high + 1e-3:
        raise CalibrationInputError(
            f"softmax of probabilities spans [{twice_NK.min():.4f}, {twice_NK.max():.4f}], "
            f"beyond the possible [{low:.4f}, {high:.4f}]"
        )
    return twice_NK


def _one_vs_rest(x_NK: NDArray[np.float64], spec: CalibrationSpec) -> NDArray[np.float64]:
    q_NK = np.zeros_like(x_NK)
    for w_K, b_K in zip(spec.weights, spec.biases, strict=True):
        z_NK = np.asarray(w_K) * x_NK + np.asarray(b_K)
        q_NK += 1 / (1 + np.exp(-np.clip(z_NK, -700, 700)))
    return _normalised(np.maximum(q_NK / len(spec.weights), CLIP))


def _normalised(q_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    p_NK: NDArray[np.float64] = q_NK / q_NK.sum(axis=1, keepdims=True)
    return p_NK
