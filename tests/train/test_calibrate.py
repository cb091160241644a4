"""Calibration: Newton's fit against a slow search, and the error measure against a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.calibration import calibrate
from models.profile import CalibrationSpec
from train.calibrate import expected_calibration_error, fit_one_vs_rest, fit_sigmoid


def _loss(w: float, b: float, x: list[float], positive: list[bool]) -> float:
    """Cross-entropy on Platt's targets, one patch at a time."""
    n1 = sum(positive)
    n0 = len(positive) - n1
    total = 0.0
    for value, yes in zip(x, positive, strict=True):
        p = 1 / (1 + math.exp(-(w * value + b)))
        t = (n1 + 1) / (n1 + 2) if yes else 1 / (n0 + 2)
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return total


def test_fit_is_the_minimum_of_the_slow_loss() -> None:
    """No neighbouring slope or offset has a lower cross-entropy."""
    random = np.random.default_rng(3)
    x = random.normal(2.0, 3.0, 80)
    positive = random.random(80) < 1 / (1 + np.exp(-(0.8 * x - 1.5)))
    w, b = fit_sigmoid(x, positive)
    best = _loss(w, b, x.tolist(), positive.tolist())
    for dw in (-1e-3, 0, 1e-3):
        for db in (-1e-3, 0, 1e-3):
            assert _loss(w + dw, b + db, x.tolist(), positive.tolist()) >= best - 1e-9


def test_known_slope_is_recovered() -> None:
    """With many patches the fit finds the slope and offset that made them."""
    random = np.random.default_rng(4)
    x = random.normal(0, 2, 40_000)
    w, b = fit_sigmoid(x, random.random(40_000) < 1 / (1 + np.exp(-(1.3 * x + 0.4))))
    assert w == pytest.approx(1.3, abs=0.05)
    assert b == pytest.approx(0.4, abs=0.05)


def test_separable_data_keep_a_finite_slope() -> None:
    """Perfectly separated patches, also with extreme logits, give finite numbers."""
    w, b = fit_sigmoid(np.array([-500.0, -400, 300, 900]), np.array([False, False, True, True]))
    assert math.isfinite(w)
    assert math.isfinite(b)
    assert w > 0


def test_missing_class_is_refused() -> None:
    """Without a patch of a class nothing can be fitted."""
    with pytest.raises(ValueError, match="inside and outside of each class"):
        fit_one_vs_rest(np.zeros((5, 3)), np.array([0, 0, 1, 1, 0]), "logits")


def test_calibration_lowers_the_error_of_over_confident_logits() -> None:
    """Logits that are four times too large come back to frequencies on other patches."""
    random = np.random.default_rng(5)
    true_NK = random.normal(0, 1.2, (8000, 4))
    p_NK = np.exp(true_NK) / np.exp(true_NK).sum(axis=1, keepdims=True)
    labels_N = np.array([random.choice(4, p=p) for p in p_NK])
    spec = fit_one_vs_rest(4 * true_NK[:4000], labels_N[:4000], "probabilities")
    before = expected_calibration_error(calibrate(4 * true_NK[4000:], CalibrationSpec(), "logits"), labels_N[4000:])
    after = expected_calibration_error(calibrate(4 * true_NK[4000:], spec, "logits"), labels_N[4000:])
    assert before > 0.2
    assert after < 0.1 < before / 2


def test_error_equals_a_slow_loop() -> None:
    """ECE equals the definition written as a loop over bins and patches."""
    random = np.random.default_rng(6)
    p_NK = random.dirichlet([1, 1, 1], 300)
    p_NK[0] = (1, 0, 0)
    labels_N = random.integers(0, 3, 300)
    slow = 0.0
    for b in range(10):
        inside = [i for i in range(300) if min(int(max(p_NK[i]) * 10), 9) == b]
        if inside:
            right = sum(int(np.argmax(p_NK[i])) == labels_N[i] for i in inside) / len(inside)
            sure = sum(max(p_NK[i]) for i in inside) / len(inside)
            slow += len(inside) / 300 * abs(right - sure)
    assert expected_calibration_error(p_NK, labels_N) == pytest.approx(slow, abs=1e-12)
