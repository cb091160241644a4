"""The running posterior of a slide or patient: exact, whatever the order, and each patch counted once.

Sums are integers (fixed point, 2^-40), so that the same patches give the same bits in any order, with
repetitions, and across restarts. The mean of the calibrated patch probabilities is SpineXtract's rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.beta import beta_quantile
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


class Counting(IntEnum):
    """What counting a patch did; false when it changed nothing."""

    SAME = 0
    """It was counted before, from the same pixels."""
    NEW = 1
    CORRECTED = 2
    """It was counted before, from other pixels; what it is now has taken the place of what it was."""


class _Outcome(NamedTuple):
    """How one patch was counted: values, or why it was rejected."""

    values: tuple[int, ...] | None
    rejected: str | None
    marks: Marks | None
    pixels: int | None


@dataclass
class Tally:
    """Outcome of every patch of one slide, by key. The same pixels twice change nothing; other pixels correct."""

    classes: int
    _sums: list[int] = field(init=False)
    _outcomes: dict[PatchKey, _Outcome] = field(init=False, default_factory=dict)
    _rejected: Counter[str] = field(init=False, default_factory=Counter)
    _judged: int = field(init=False, default=0)
    _marks: Counter[str] = field(init=False, default_factory=Counter)
    _frozen: Counts | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start with nothing counted."""
        self._sums = [0] * self.classes

    def __contains__(self, key: PatchKey) -> bool:
        return key in self._outcomes

    def use(
        self, key: PatchKey, values: tuple[int, ...], marks: Marks | None = None, pixels: int | None = None
    ) -> Counting:
        """Count a patch with its fixed-point probabilities.

        `marks` say how it is unlike the profile's reference (models.domain); None: it was not compared. `pixels` is
        a digest of what it was computed from; None, for patches of old ledgers, equals every other.
        """
        if len(values) != self.classes:
            raise AssertionError(f"{len(values)} values for {self.classes} classes")
        return self._put(key, _Outcome(values, None, marks, pixels))

    def reject(self, key: PatchKey, reason: str, pixels: int | None = None) -> Counting:
        """Count a patch as seen but not used."""
        return self._put(key, _Outcome(None, reason, None, pixels))

    def retract(self, key: PatchKey) -> Counting:
        """Forget a patch that the slide does not have any more."""
        if (before := self._outcomes.pop(key, None)) is None:
            return Counting.SAME
        self._weigh(before, -1)
        return Counting.CORRECTED

    def of_strip(self, strip: int) -> list[PatchKey]:
        """Patches counted of one strip; none once it is frozen."""
        return [key for key in self._outcomes if key.strip == strip]

    def _put(self, key: PatchKey, outcome: _Outcome) -> Counting:
        before = self._outcomes.get(key)
        if self._frozen is not None or (before is not None and not differ(before.pixels, outcome.pixels)):
            return Counting.SAME
        if before is not None:
            self._weigh(before, -1)
        self._outcomes[key] = outcome
        self._weigh(outcome, 1)
        return Counting.NEW if before is None else Counting.CORRECTED

    def _weigh(self, outcome: _Outcome, sign: int) -> None:
        """Add an outcome to the sums and counts, or take it out again: exact, since all are integers."""
        if outcome.values is None:
            assert outcome.rejected is not None
            self._rejected[outcome.rejected] += sign
            return
        self._sums = [a + sign * b for a, b in zip(self._sums, outcome.values, strict=True)]
        self._judged += sign * (outcome.marks is not None)
        for mark in outcome.marks or ():
            self._marks[mark] += sign

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
    def is_frozen(self) -> bool:
        """Whether nothing can be added any more."""
        return self._frozen is not None

    @property
    def counts(self) -> Counts:
        """Used and rejected patches so far."""
        if self._frozen is not None:
            return self._frozen
        return Counts(len(self._outcomes) - self._rejected.total(), dict(sorted((+self._rejected).items())))

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
        return dict(sorted((+self._marks).items()))


def differ(one: int | None, other: int | None) -> bool:
    """Whether two digests of pixels say that they changed; None equals everything."""
    return one is not None and other is not None and one != other


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
