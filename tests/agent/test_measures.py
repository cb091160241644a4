"""Promises of what the rooms measure of themselves: exact counts, honest quantiles, a window that forgets."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.measures import BOUNDS_S, Durations, EngineMeasures, Histogram, Recent
from models.domain import Marks
from models.posterior import FRACTION_BITS

ONE = 1 << FRACTION_BITS
durations = st.lists(st.floats(0, 60), min_size=1, max_size=60)


def filled(seconds: list[float]) -> Durations:
    """A histogram of these."""
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    return histogram.now


@given(durations)
def test_each_duration_falls_into_its_bucket(seconds: list[float]) -> None:
    """Buckets agree with a slow count of what lies up to each bound and above the one before."""
    found = filled(seconds)
    edges = [float("-inf"), *BOUNDS_S, float("inf")]
    slow = [sum(low < each <= high for each in seconds) for low, high in pairwise(edges)]
    assert list(found.buckets) == slow
    assert found.count == len(seconds)
    assert found.sum_s == pytest.approx(sum(seconds))


@given(durations, st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds: list[float], q: float) -> None:
    """The answer is in the same bucket as the value that a share q of them does not exceed, or the last bound."""
    found = filled(seconds).quantile(q)
    true = float(np.quantile(seconds, q, method="inverted_cdf"))
    edges = [0.0, *BOUNDS_S]
    place = int(np.searchsorted(BOUNDS_S, true))
    assert found is not None
    if place == len(BOUNDS_S):
        assert found == BOUNDS_S[-1]
    else:
        assert edges[place] - 1e-9 <= found <= edges[place + 1] + 1e-9


def test_nothing_measured_has_no_quantile() -> None:
    """An empty histogram says None instead of a number."""
    assert Durations().quantile(0.5) is None
    assert (Durations().count, Durations().sum_s) == (0, 0.0)


def test_a_clock_that_stepped_back_takes_nothing_away() -> None:
    """A negative duration counts as one of no length: sums of a histogram only grow."""
    found = filled([0.5, -3.0])
    assert (found.count, found.sum_s) == (2, 0.5)


def test_a_reader_on_another_thread_sees_whole_histograms() -> None:
    """While one thread adds seconds of length 1, count and sum of what another reads always agree."""
    histogram, done = Histogram(), threading.Event()

    def write() -> None:
        for _ in range(20_000):
            histogram.add(1.0)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    last, torn = 0, []
    while not done.is_set():
        now = histogram.now
        if now.count != now.sum_s or now.count < last:
            torn.append(now)
        last = now.count
    writer.join()
    assert torn == []
    assert histogram.now.count == 20_000


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, ONE), min_size=2, max_size=4).map(tuple),
            st.sampled_from([None, (), ("embedding_far",), ("intensity_outside", "embedding_far")]),
        ),
        max_size=40,
    ),
    st.integers(1, 12),
)
def test_the_window_holds_the_latest_patches(rows: list[tuple[tuple[int, ...], Marks | None]], size: int) -> None:
    """After any number of patches the figures are those of the last `size` alone, to the last bit."""
    recent = Recent(size)
    for values, marks in rows:
        recent.add(values, marks)
    last = rows[-size:]
    assert recent.now.used == len(last)
    assert recent.now.confidence_sum == sum(max(values) for values, _ in last)
    assert recent.now.judged == sum(marks is not None for _, marks in last)
    for mark in ("embedding_far", "intensity_outside"):
        assert recent.now.marks.get(mark, 0) == sum(mark in (marks or ()) for _, marks in last)


def test_the_mean_confidence_is_of_the_largest_probabilities() -> None:
    """Half of the patches sure, half undecided: the mean lies between; without patches there is none."""
    recent = Recent()
    assert recent.now.confidence is None
    recent.add((ONE, 0), None)
    recent.add((ONE // 2, ONE // 2), None)
    assert recent.now.confidence == 0.75


def test_stages_are_measured_from_the_last_byte_to_the_hand_over() -> None:
    """Each patch counts in the stages that it went through alone, each run of the engine once."""
    measures = EngineMeasures()
    measures.ran([10.0, 10.5], 11.0, 11.2)
    assert measures.last_byte_to_result.now.count == 0, "not handed on yet"
    measures.ran([11.0], 11.2, 11.3)
    measures.told(11.5)
    measures.told(20.0)
    found: dict[str, object] = {
        name: (histogram.now.count, histogram.now.sum_s)
        for name, histogram in vars(measures).items()
        if isinstance(histogram, Histogram)
    }
    assert found == {
        "last_byte_to_batch": (3, pytest.approx(1.0 + 0.5 + 0.2)),
        "inference": (2, pytest.approx(0.3)),
        "batch_to_record": (2, pytest.approx(0.3 + 0.2)),
        "last_byte_to_result": (3, pytest.approx(1.5 + 1.0 + 0.5)),
    }


def test_alerts_are_counted_by_reason() -> None:
    """What was read before stays as it was: the counts are replaced, never changed."""
    measures = EngineMeasures()
    measures.alert("stalled")
    before = measures.alerts
    measures.alert("stalled")
    measures.alert("truncated")
    assert before == {"stalled": 1}
    assert measures.alerts == {"stalled": 2, "truncated": 1}
