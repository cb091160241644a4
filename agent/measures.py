"""What a room measures of itself: how long its stages take, what its latest patches looked like, what it told people.

One writer for each number and any reader, without a lock: whatever has more than one part is replaced whole. Pure:
times come in as arguments.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from models.domain import Marks
from models.posterior import FRACTION_BITS

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of a histogram's buckets, inclusive; one more bucket holds what took longer."""
RECENT_PATCHES = 1000
"""How many used patches `Recent` looks back: several slides of a small specimen, about one of a large one."""


@dataclass(frozen=True)
class Durations:
    """A histogram as it stood at one moment."""

    buckets: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    """How many fell into each bucket (not cumulative)."""
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    def quantile(self, q: float) -> float | None:
        """The duration that a share `q` stayed below, interpolated inside its bucket as Prometheus does.

        None without any; the last bound when it lies above that.
        """
        rank, below, low = q * self.count, 0, 0.0
        if not self.count:
            return None
        for count, high in zip(self.buckets, BOUNDS_S, strict=False):
            if count and below + count >= rank:
                return low + (high - low) * (rank - below) / count
            below, low = below + count, high
        return BOUNDS_S[-1]


class Histogram:
    """Durations in fixed buckets; `now` may be read by any thread."""

    def __init__(self) -> None:
        self.now = Durations()

    def add(self, seconds: float) -> None:
        """Count one more; for the one thread that writes. A clock that stepped back counts as no time at all."""
        place = bisect_left(BOUNDS_S, seconds)
        was = self.now
        buckets = (*was.buckets[:place], was.buckets[place] + 1, *was.buckets[place + 1 :])
        self.now = Durations(buckets, was.sum_s + max(0.0, seconds))


@dataclass(frozen=True)
class Lately:
    """The last used patches taken together."""

    used: int = 0
    confidence_sum: int = 0
    """Their largest probabilities, units of 2^-40: integers, so that adding and taking away leaves no error."""
    judged: int = 0
    """Those that were compared with the profile's reference."""
    marks: dict[str, int] = field(default_factory=dict)
    """Mark → those that bear it (models.domain)."""

    @property
    def confidence(self) -> float | None:
        """Mean of their largest probabilities."""
        return self.confidence_sum / self.used / (1 << FRACTION_BITS) if self.used else None


class Recent:
    """A window over the last used patches, whatever slide they were of; `now` may be read by any thread."""

    def __init__(self, size: int = RECENT_PATCHES) -> None:
        self.now = Lately()
        self._rows: deque[tuple[int, Marks | None]] = deque()
        self._size = size

    def add(self, values: tuple[int, ...], marks: Marks | None) -> None:
        """One more used patch: its fixed-point probabilities, and how it is unlike the reference."""
        self._rows.append((max(values), marks))
        self._step(max(values), marks, 1)
        if len(self._rows) > self._size:
            self._step(*self._rows.popleft(), -1)

    def _step(self, confidence: int, marks: Marks | None, sign: int) -> None:
        was = self.now
        borne = Counter(was.marks)
        for mark in marks or ():
            borne[mark] += sign
        judged = was.judged + sign * (marks is not None)
        self.now = Lately(was.used + sign, was.confidence_sum + sign * confidence, judged, dict(borne))


class EngineMeasures:
    """What the ENGINE room measures; its thread writes, anybody reads."""

    def __init__(self) -> None:
        self.last_byte_to_batch = Histogram()
        """From a patch's last bytes to the start of the run that it was in."""
        self.inference = Histogram()
        """A run of the engine: network, calibration, comparison with the reference, counting."""
        self.batch_to_record = Histogram()
        """From the end of a run until its results were handed to the SENDER room."""
        self.last_byte_to_result = Histogram()
        """All of these: from a patch's last bytes until its result was handed to the SENDER room."""
        self.recent = Recent()
        self.alerts: dict[str, int] = {}
        """Reason → problems told to people; replaced whole."""
        self.replacements = 0
        """Engines that broke and were replaced by the next."""
        self._waiting: list[tuple[float, list[float]]] = []

    def ran(self, seen_s: Iterable[float], started_s: float, ended_s: float) -> None:
        """A batch went through the engine; `seen_s` are the times of its patches' last bytes."""
        seen = list(seen_s)
        for at in seen:
            self.last_byte_to_batch.add(started_s - at)
        self.inference.add(ended_s - started_s)
        self._waiting.append((ended_s, seen))

    def told(self, now_s: float) -> None:
        """Everything that ran has been handed on."""
        for ended_s, seen in self._waiting:
            self.batch_to_record.add(now_s - ended_s)
            for at in seen:
                self.last_byte_to_result.add(now_s - at)
        self._waiting = []

    def alert(self, reason: str) -> None:
        """A problem was told to people."""
        self.alerts = {**self.alerts, reason: self.alerts.get(reason, 0) + 1}


class SenderMeasures:
    """What the SENDER room measures; its thread writes, anybody reads."""

    def __init__(self) -> None:
        self.connected = False
        """Whether there is a broker to send to."""
        self.dropped = 0
        """QoS 0 messages that could not be sent."""
        self.refused = 0
        """Times that the broker would not take a message."""
        self.ledger_write = Histogram()
        """One transaction of the ledger, synced to the disk."""
        self.publish_to_puback = Histogram()
        """From handing a QoS 1 message to the network until the broker acknowledged it."""
