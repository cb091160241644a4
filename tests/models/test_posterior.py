"""models.posterior: exact, order-free, each patch once."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.beta import beta_cdf, beta_quantile
from models.contract import PatchKey
from models.domain import MARKS, Marks
from models.posterior import FRACTION_BITS, Counts, Tally, combine, to_fixed

K = 4


def key(i: int) -> PatchKey:
    """The i-th patch of one slide."""
    return PatchKey("p", "s", i // 60, i % 3, i)


def marks_of(i: int) -> Marks | None:
    """How the i-th patch is unlike the reference: every combination occurs, not being compared included."""
    return (None, (), MARKS[:1], MARKS[1:], MARKS)[i % 5]


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[tuple[int, tuple[int, ...] | str]], list[int]]:
    """Outcomes of some patches, and an order of delivery with repetitions that covers all of them."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    outcomes: list[tuple[int, tuple[int, ...] | str]] = [
        (i, "empty" if rng.random() < 0.2 else to_fixed(rng.dirichlet(np.ones(K)))) for i in range(n)
    ]
    order = draw(st.permutations(list(range(n)))) + draw(st.lists(st.integers(0, n - 1), max_size=20))
    return outcomes, order


def fill(outcomes: list[tuple[int, tuple[int, ...] | str]], order: list[int]) -> Tally:
    """A tally of these outcomes, delivered in this order."""
    tally = Tally(K)
    for i in order:
        value = outcomes[i][1]
        if isinstance(value, str):
            tally.reject(key(i), value)
        else:
            tally.use(key(i), value, marks_of(i))
    return tally


@given(deliveries())
def test_order_and_repetition_do_not_change_one_bit(
    case: tuple[list[tuple[int, tuple[int, ...] | str]], list[int]],
) -> None:
    """The same patches in any order, any of them twice, give the identical posterior."""
    outcomes, order = case
    straight = combine([fill(outcomes, list(range(len(outcomes))))], K, independence=0.1, mass=0.95)
    shuffled = combine([fill(outcomes, order)], K, independence=0.1, mass=0.95)
    assert straight == shuffled
    assert straight.counts.seen == straight.counts.used + sum(straight.counts.rejected.values()) == len(outcomes)


@given(deliveries())
def test_the_mean_is_the_exact_mean(case: tuple[list[tuple[int, tuple[int, ...] | str]], list[int]]) -> None:
    """The posterior is the mean of the patch probabilities, as a slow exact loop finds it."""
    outcomes, order = case
    used = [value for _, value in outcomes if not isinstance(value, str)]
    posterior = combine([fill(outcomes, order)], K, independence=0.1, mass=0.95)
    if not used:
        assert posterior.probabilities == () and posterior.predicted is None and posterior.confidence == 0
        return
    total = sum((Fraction(v) for row in used for v in row), Fraction(0))
    for k, p in enumerate(posterior.probabilities):
        assert p == float(sum((Fraction(row[k]) for row in used), Fraction(0)) / total)
    assert posterior.predicted == int(np.argmax(posterior.probabilities))


@given(deliveries())
def test_marks_are_counted_once(case: tuple[list[tuple[int, tuple[int, ...] | str]], list[int]]) -> None:
    """Judged patches and marks are those of the used patches, each once; a frozen tally keeps them to the number."""
    outcomes, order = case
    borne = [marks_of(i) for i, value in outcomes if not isinstance(value, str)]
    tally = fill(outcomes, order)
    expected = Counter(mark for row in borne for mark in row or ())
    assert (tally.judged, Counter(tally.marks)) == (sum(row is not None for row in borne), expected)
    before = combine([tally], K, independence=0.1, mass=0.95)
    assert (before.judged, before.marks) == (tally.judged, tally.marks)
    restored = Tally.frozen(tally.sums, tally.counts, tally.judged, tally.marks)
    tally.freeze()
    assert not tally.use(key(999), to_fixed(np.ones(K) / K), MARKS)
    for kept in (tally, restored):
        assert combine([kept], K, independence=0.1, mass=0.95) == before
    twice = combine([tally, restored], K, independence=0.1, mass=0.95)
    assert (twice.judged, twice.marks) == (2 * before.judged, {mark: 2 * n for mark, n in before.marks.items()})


def test_the_interval_holds_the_mean_and_narrows_with_patches() -> None:
    """More patches narrow the credible interval, and it always contains the mean."""
    widths = []
    for n in (1, 10, 100, 1000):
        tally = Tally(K)
        for i in range(n):
            tally.use(key(i), to_fixed(np.array([0.7, 0.2, 0.06, 0.04])))
        posterior = combine([tally], K, independence=0.1, mass=0.95)
        for p, (low, high) in zip(posterior.probabilities, posterior.interval, strict=True):
            assert 0 <= low <= p <= high <= 1
        widths.append(posterior.interval[0][1] - posterior.interval[0][0])
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.2


def test_slides_combine_patch_by_patch() -> None:
    """A patient's posterior weighs every patch alike, whichever slide it came from."""
    one, two, both = Tally(K), Tally(K), Tally(K)
    for i in range(5):
        one.use(key(i), to_fixed(np.array([0.9, 0.1, 0, 0])))
        both.use(key(i), to_fixed(np.array([0.9, 0.1, 0, 0])))
    two.use(key(99), to_fixed(np.array([0, 0, 0, 1.0])))
    both.use(key(99), to_fixed(np.array([0, 0, 0, 1.0])))
    assert combine([one, two], K, independence=0.1, mass=0.95) == combine([both], K, independence=0.1, mass=0.95)


def test_a_patch_counts_once_whatever_it_is_called_later() -> None:
    """A patch that was used cannot be rejected later, nor the other way round."""
    tally = Tally(K)
    assert tally.use(key(1), (1 << FRACTION_BITS, 0, 0, 0))
    assert not tally.reject(key(1), "empty")
    assert tally.reject(key(2), "empty")
    assert not tally.use(key(2), (0, 1 << FRACTION_BITS, 0, 0))
    assert tally.counts == Counts(1, {"empty": 1})


@pytest.mark.parametrize("a", [0.25, 1.0, 3.5, 120.0, 5000.0])
@pytest.mark.parametrize("b", [0.75, 1.0, 40.0, 900.0])
def test_beta_against_scipy(a: float, b: float) -> None:
    """The Beta distribution function and its quantiles agree with scipy's."""
    for q in (0.025, 0.1, 0.5, 0.9, 0.975):
        assert beta_quantile(q, a, b) == pytest.approx(stats.beta.ppf(q, a, b), rel=1e-6, abs=1e-8)
    for x in (1e-6, 0.01, 0.3, 0.77, 0.999):
        assert beta_cdf(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-9, abs=1e-12)
    assert (beta_cdf(0, a, b), beta_cdf(1, a, b)) == (0, 1)


def test_fixed_point_keeps_more_than_float32() -> None:
    """One step of the fixed point is below 1e-12, so that nothing a network says is lost."""
    values = np.array([1 / 3, 1e-9, math.pi / 4, 1.0])
    assert np.array(to_fixed(values)) / 2**FRACTION_BITS == pytest.approx(values, abs=1e-12)
