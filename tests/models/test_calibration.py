"""models.calibration: from head outputs to frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.calibration import CalibrationInputError, calibrate, twice_softmax_range
from models.profile import CalibrationSpec

PUBLISHED_W = (29.4667, 29.2037, 27.1309, 28.5174)
PUBLISHED_B = (-10.0985, -9.6665, -9.7129, -9.4918)


def slow_softmax(row: list[float]) -> list[float]:
    """Softmax in a loop."""
    e = [math.exp(x) for x in row]
    return [x / sum(e) for x in e]


def slow_published(logits: list[float], folds: int) -> list[float]:
    """SRH-FACTS in a loop: softmax in the head, softmax once more, a sigmoid per class, clip, divide by the sum."""
    twice = slow_softmax(slow_softmax(logits))
    q = []
    for k, x in enumerate(twice):
        per_fold = [1 / (1 + math.exp(-((PUBLISHED_W[k] + f) * x + PUBLISHED_B[k] - f / 3))) for f in range(folds)]
        q.append(max(sum(per_fold) / folds, 1e-8))
    return [x / sum(q) for x in q]


@pytest.mark.parametrize("folds", [1, 10])
def test_the_published_map_against_a_slow_loop(folds: int) -> None:
    """One-vs-rest sigmoids over the twice-softmaxed input, averaged over folds, as published."""
    spec = CalibrationSpec(
        kind="one_vs_rest_sigmoid",
        input="softmax_of_probabilities",
        weights=tuple(tuple(w + f for w in PUBLISHED_W) for f in range(folds)),
        biases=tuple(tuple(b - f / 3 for b in PUBLISHED_B) for f in range(folds)),
    )
    logits_NK = np.random.default_rng(1).normal(0, 3, (50, 4))
    heads_NK = np.array([slow_softmax(list(row)) for row in logits_NK])
    expected = np.array([slow_published(list(row), folds) for row in logits_NK])
    assert calibrate(heads_NK, spec, "probabilities") == pytest.approx(expected, abs=1e-12)
    assert calibrate(logits_NK, spec, "logits") == pytest.approx(expected, abs=1e-12)


def test_the_published_examples() -> None:
    """An input of .6 on a single softmax would be over-confident: the stated input makes the difference."""
    low, high = twice_softmax_range(4)
    assert (round(low, 4), round(high, 4)) == (0.1749, 0.4754)
    spec = CalibrationSpec(
        kind="one_vs_rest_sigmoid", input="softmax_of_probabilities", weights=(PUBLISHED_W,), biases=(PUBLISHED_B,)
    )
    p_1K = np.array([[0.6, 0.2, 0.1, 0.1]])
    twice = calibrate(p_1K, spec, "probabilities").max()
    once = calibrate(p_1K, spec.model_copy(update={"input": "probabilities"}), "probabilities").max()
    assert once > twice


def test_temperature_and_none() -> None:
    """Temperature divides logits before softmax; none is softmax alone, or the head's own probabilities."""
    logits_NK = np.array([[1.0, 2.0, -1.0], [0.0, 0.0, 5.0]])
    assert calibrate(logits_NK, CalibrationSpec(), "logits") == pytest.approx(
        np.array([slow_softmax(list(row)) for row in logits_NK])
    )
    warm = calibrate(logits_NK, CalibrationSpec(kind="temperature", temperature=2.0), "logits")
    assert warm == pytest.approx(np.array([slow_softmax(list(row / 2)) for row in logits_NK]))
    p_NK = np.array([[0.2, 0.3, 0.5]])
    assert calibrate(p_NK, CalibrationSpec(), "probabilities") == pytest.approx(p_NK)
    sharp = CalibrationSpec(kind="temperature", temperature=1.0)
    assert calibrate(p_NK, sharp, "probabilities") == pytest.approx(p_NK)


@pytest.mark.parametrize("kind", ["none", "temperature", "one_vs_rest_sigmoid"])
def test_a_row_depends_on_itself_alone(kind: str) -> None:
    """The same outputs give the same bits whatever else is in the batch, and wherever they stand in it."""
    spec = CalibrationSpec(
        kind=kind,
        temperature=1.7,
        weights=(PUBLISHED_W,),
        biases=(PUBLISHED_B,),
    )
    rng = np.random.default_rng(2)
    rows_NK = rng.normal(0, 4, (33, 4)).astype(np.float32)
    whole = calibrate(rows_NK, spec, "logits")
    for i in range(len(rows_NK)):
        assert (calibrate(rows_NK[i : i + 1], spec, "logits")[0] == whole[i]).all()
    assert (calibrate(rows_NK[::-1], spec, "logits")[::-1] == whole).all()
    assert whole.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("outputs", "spec", "emits"),
    [
        ([[np.nan, 0, 0, 0]], CalibrationSpec(), "logits"),
        ([[np.inf, 0, 0, 0]], CalibrationSpec(), "logits"),
        ([[2.0, 1.0, 0.5, 0.1]], CalibrationSpec(), "probabilities"),
        ([[-0.5, 0.5, 0.5, 0.5]], CalibrationSpec(), "probabilities"),
        (
            [[0.1, 0.2, 0.3, 0.4]],
            CalibrationSpec(
                kind="one_vs_rest_sigmoid", input="logits", weights=(PUBLISHED_W,), biases=(PUBLISHED_B,)
            ),
            "probabilities",
        ),
    ],
)
def test_outputs_that_the_map_was_not_fitted_on_are_refused(
    outputs: list[list[float]], spec: CalibrationSpec, emits: str
) -> None:
    """NaN, infinities, and outputs that contradict what the head is said to emit raise."""
    with pytest.raises(CalibrationInputError):
        calibrate(np.array(outputs), spec, emits)  # type: ignore[arg-type]
