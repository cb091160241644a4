"""The running posterior of a slide or patient: exact, whatever the order, and each patch counted once.

Sums are integers (fixed point, 2^-40), so that the same patches give the same bits in any order, with
repetitions, and across restarts. The mean of the calibrated patch probabilities is SpineXtract's rule.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.contract import PatchKey
from models.domain import Marks

FRACTION_BITS = 40
_ONE = 1 << FRACTION_BITS


def to_fixed(p_K: NDArray[np.float64]) -> tuple[int, ...]:
    """One patch's probabilities as integers in units of 2^-40 (rounded half to even)."""
    return tuple(round(float(p) * _ONE) for p in p_K)


@dataclass(frozen=True)
class Counts:
    """Patches of a slide or patient; seen = used + rejected always holds."""

    used: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """Patches whose place is known, used or not."""
        return self.used + sum(self.rejected.values())

    def plus(self, other: Counts) -> Counts:
        """The counts of both."""
        total = Counter(self.rejected) + Counter(other.rejected)
        return Counts(self.used + other.used, dict(sorted(total.items())))


@dataclass(frozen=True)
class Posterior:
    """A distribution over classes with its credible interval (all length K; empty when nothing was used)."""

    probabilities: tuple[float, ...]
    interval: tuple[tuple[float, float], ...]
    counts: Counts
    judged: int = 0
    """Used patches that were compared with the profile's reference (models.domain)."""
    marks: dict[str, int] = field(default_factory=dict)
    """Mark → used patches that bear it: those unlike the reference."""

    @property
    def predicted(self) -> int | None:
        """Index of the most probable class; None when nothing was used."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__, default=None)

    @property
    def confidence(self) -> float:
        """The largest probability; 0 when nothing was used."""
        return max(self.probabilities, default=0.0)


@dataclass
class Tally:
    """Outcome of every patch of one slide, by key. Adding a key twice changes nothing."""

    classes: int
    _sums: list[int] = field(init=False)
    _outcomes: dict[PatchKey, str | None] = field(init=False, default_factory=dict)
    _rejected: Counter[str] = field(init=False, default_factory=Counter)
    _judged: int = field(init=False, default=0)
    _marks: Counter[str] = field(init=False, default_factory=Counter)
    _frozen: Counts | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start with nothing counted."""
        self._sums = [0] * self.classes

    def __contains__(self, key: PatchKey) -> bool:
        return key in self._outcomes

    def use(self, key: PatchKey, values: tuple[int, ...], marks: Marks | None = None) -> bool:
        """Count a patch with its fixed-point probabilities; False when it was counted before.

        `marks` say how it is unlike the profile's reference (models.domain); None: it was not compared.
        """
        if len(values) != self.classes:
            raise AssertionError(f"{len(values)} values for {self.classes} classes")
        if key in self._outcomes or self._frozen is not None:
            return False
        self._outcomes[key] = None
        self._sums = [a + b for a, b in zip(self._sums, values, strict=True)]
        self._judged += marks is not None
        self._marks.update(marks or ())
        return True

    def reject(self, key: PatchKey, reason: str) -> bool:
        """Count a patch as seen but not used; False when it was counted before."""
        if key in self._outcomes or self._frozen is not None:
            return False
        self._outcomes[key] = reason
        self._rejected[reason] += 1
        return True

    def freeze(self) -> None:
        """Keep exact sums, counts and marks and forget which patches they are made of; nothing can be added then."""
        self._frozen, self._outcomes = self.counts, {}

    @classmethod
    def frozen(
        cls, sums: tuple[int, ...], counts: Counts, judged: int = 0, marks: Mapping[str, int] | None = None
    ) -> Tally:
        """A tally of patches that are not known one by one any more."""
        tally = cls(len(sums))
        tally._sums, tally._frozen = list(sums), counts
        tally._judged, tally._marks = judged, Counter(marks)
        return tally

    @property
    def counts(self) -> Counts:
        """Used and rejected patches so far."""
        if self._frozen is not None:
            return self._frozen
        return Counts(len(self._outcomes) - self._rejected.total(), dict(sorted(self._rejected.items())))

    @property
    def sums(self) -> tuple[int, ...]:
        """Exact sums of the used patches' probabilities, units of 2^-40."""
        return tuple(self._sums)

    @property
    def judged(self) -> int:
        """Used patches that were compared with the profile's reference."""
        return self._judged

    @property
    def marks(self) -> dict[str, int]:
        """Mark → used patches that bear it."""
        return dict(sorted(self._marks.items()))


def combine(tallies: Iterable[Tally], classes: int, *, independence: float, mass: float) -> Posterior:
    """The posterior over one slide's tally, or over all tallies of a patient, with their counts and marks added up.

    Mean of the patch probabilities (every patch weighs the same, also across slides), normalised exactly.
    Interval: each class's Beta marginal of a Dirichlet with 1/K prior mass a class plus `independence` times the
    sums (neighbouring patches are correlated), holding `mass`, widened to include the mean.
    """
    sums = [0] * classes
    counts, judged, marks = Counts(), 0, Counter[str]()
    for tally in tallies:
        sums = [a + b for a, b in zip(sums, tally.sums, strict=True)]
        counts = counts.plus(tally.counts)
        judged += tally.judged
        marks.update(tally.marks)
    total = sum(sums)
    if total == 0:
        return Posterior((), (), counts)
    probabilities = tuple(s / total for s in sums)
    observed = independence * total / _ONE
    interval = []
    for p in probabilities:
        a = 1 / classes + observed * p
        b = 1 - 1 / classes + observed * (1 - p)
        low, high = beta_quantile((1 - mass) / 2, a, b), beta_quantile((1 + mass) / 2, a, b)
        interval.append((min(low, p), max(high, p)))
    return Posterior(probabilities, tuple(interval), counts, judged, dict(sorted(marks.items())))


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(x, a, b) / a
    return 1 - front * _continued_fraction(1 - x, b, a) / b


def _continued_fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 400):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def beta_quantile(q: float, a: float, b: float) -> float:
    """The x in [0, 1] with beta_cdf(x, a, b) = q, to 1e-10, by the secant method kept inside a bracket."""
    low, high, f_low, f_high = 0.0, 1.0, -q, 1 - q
    side = 0
    x = a / (a + b)
    for _ in range(200):
        f = beta_cdf(x, a, b) - q
        if f == 0 or high - low < 1e-10:
            return x
        if f < 0:
            low, f_low = x, f
            f_high = f_high / 2 if side < 0 else f_high
            side = -1
        else:
            high, f_high = x, f
            f_low = f_low / 2 if side > 0 else f_low
            side = 1
        x = low + (high - low) * f_low / (f_low - f_high)
        if not low + 1e-12 < x < high - 1e-12:
            x = (low + high) / 2
    return x
