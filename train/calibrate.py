"""Fits the map from logits to frequencies on held-out patients, and measures how well it holds. numpy only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.calibration import softmax
from models.profile import CalibrationSpec

_ITERATIONS = 100
_TOLERANCE = 1e-10


def fit_sigmoid(x_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope w and offset b of P(positive) = sigmoid(w·x + b), by Newton's method on Platt's smoothed targets.

    Source: Platt 1999, section 2.2 (targets), so that separable data keep a finite slope. Raises ValueError when
    one of the two classes is missing.
    """
    positives, n = int(positive_N.sum()), len(positive_N)
    if not 0 < positives < n:
        raise ValueError("calibration needs patches inside and outside of each class")
    target_N: NDArray[np.float64] = np.full(n, 1 / (n - positives + 2))
    target_N[positive_N] = (positives + 1) / (positives + 2)
    centre, spread = float(x_N.mean()), float(x_N.std()) or 1.0
    design_N2: NDArray[np.float64] = np.stack([(x_N - centre) / spread, np.ones(n)], axis=1)
    beta_2: NDArray[np.float64] = np.zeros(2)
    for _ in range(_ITERATIONS):
        p_N = _sigmoid(design_N2 @ beta_2)
        gradient_2 = design_N2.T @ (p_N - target_N)
        hessian_22 = (design_N2.T * (p_N * (1 - p_N))) @ design_N2 + 1e-9 * np.eye(2)
        step_2 = np.asarray(np.linalg.solve(hessian_22, gradient_2), np.float64)
        beta_2 = _descend(design_N2, target_N, beta_2, step_2)
        if np.abs(gradient_2).max() < _TOLERANCE * n:
            break
    slope = float(beta_2[0]) / spread
    return slope, float(beta_2[1]) - slope * centre


def _sigmoid(z_N: NDArray[np.float64]) -> NDArray[np.float64]:
    p_N: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(z_N, -700, 700)))
    return p_N


def _descend(
    design_N2: NDArray[np.float64],
    target_N: NDArray[np.float64],
    beta_2: NDArray[np.float64],
    step_2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Newton's step, halved until the cross-entropy does not rise."""

    def loss(at_2: NDArray[np.float64]) -> float:
        z_N = design_N2 @ at_2
        return float((np.logaddexp(0, z_N) - target_N * z_N).sum())

    before, size = loss(beta_2), 1.0
    while size > 1e-6 and loss(beta_2 - size * step_2) > before:
        size /= 2
    return beta_2 - size * step_2


def fit_one_vs_rest(
    logits_NK: NDArray[np.floating], labels_N: NDArray[np.int64], fitted_on: Literal["logits", "probabilities"]
) -> CalibrationSpec:
    """One sigmoid per class on its raw logit or its softmax, rounded to 6 digits as it will stand in the profile."""
    x_NK = np.asarray(logits_NK, np.float64)
    if fitted_on == "probabilities":
        x_NK = softmax(x_NK)
    fits = [fit_sigmoid(x_NK[:, k], labels_N == k) for k in range(x_NK.shape[1])]
    return CalibrationSpec(
        kind="one_vs_rest_sigmoid",
        input=fitted_on,
        weights=(tuple(round(w, 6) for w, _ in fits),),
        biases=(tuple(round(b, 6) for _, b in fits),),
    )


def expected_calibration_error(p_NK: NDArray[np.float64], labels_N: NDArray[np.int64], bins: int = 10) -> float:
    """ECE of the predicted class: mean |accuracy − confidence| over equal-width bins, weighted by their patches.

    Source: Guo et al. 2017, equation 3.
    """
    confidence_N, right_N = p_NK.max(axis=1), p_NK.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    error = 0.0
    for b in range(bins):
        inside_N = bin_N == b
        if inside_N.any():
            error += inside_N.mean() * abs(right_N[inside_N].mean() - confidence_N[inside_N].mean())
    return float(error)
