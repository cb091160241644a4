"""Figures about the running process, and whether its rooms are alive."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from agent import host
from agent.handover import Handover
from agent.ledger import Ledger, Record
from agent.measures import BOUNDS_S, Durations, EngineMeasures, Histogram, SenderMeasures
from agent.messages import Counts, Drift, Health, QueueState, StageLatency
from agent.publish import Session
from agent.reader import Reader
from agent.reducer import Reducer
from agent.speech import DISTRIBUTION, Speech
from agent.topics import Message
from agent.watch import Watch
from agent.worker import Work


class Pulse:
    """When each room last came round. A room that waits before a full hand-over is not at fault; the next one is."""

    def __init__(self, work: Handover[Work], records: Handover[Record]) -> None:
        self._full: dict[str, Handover[Work] | Handover[Record]] = {"reader": work, "engine": records}
        self._last: dict[str, float] = {}

    def beats(self, room: str, *also: Callable[[], None]) -> Callable[[], None]:
        """What the room calls each time it comes round; it runs `also`, too."""

        def beat() -> None:
            for task in also:
                task()
            self._last[room] = time.monotonic()

        self._last[room] = time.monotonic()
        return beat

    def is_healthy(self, limit_s: float) -> bool:
        """Whether every room came round within `limit_s`, or stands before a full hand-over."""
        now = time.monotonic()
        late = [room for room, last in self._last.items() if now - last > limit_s]
        return all(room in self._full and len(self._full[room]) >= self._full[room].capacity for room in late)


@dataclass
class Figures:
    """Reads the rooms' own counters (each written by one thread) when somebody asks, on whatever thread."""

    speech: Speech
    reducer: Reducer
    reader: Reader
    watch: Watch
    handovers: tuple[Handover[Work], Handover[Record]]
    session: Session
    ledger: Ledger
    engine: EngineMeasures
    sender: SenderMeasures
    started_s: float = field(default_factory=time.monotonic)
    version: str = field(default_factory=lambda: version(DISTRIBUTION))
    _unsent: int = 0
    _ledger_bytes: int = 0
    _disk_free_bytes: int = 0

    def look(self) -> None:
        """Count what waits in the ledger and what it takes on the disk; for the ledger's thread only."""
        self._unsent = self.ledger.outbox_length()
        path = self.ledger.path
        self._ledger_bytes = sum(_size(part) for part in (path, path.with_name(f"{path.name}-wal")))
        with suppress(OSError):
            self._disk_free_bytes = shutil.disk_usage(path.parent).free

    def health(self) -> Health:
        """The figures as they stand."""
        speaker, counts = self.speech.speaker, self.reducer.total
        last_byte = self.reader.last_byte_s
        now = time.monotonic()
        return Health(
            **speaker.stamp(),
            version=self.version,
            boot_seq=self.speech.boot_seq,
            profile=speaker.profile_ref,
            engine=speaker.engine,
            passed_over=tuple(self.speech.choice.passed_over),
            since=self.speech.since,
            uptime_s=now - self.started_s,
            patches=Counts(seen=counts.seen, used=counts.used, rejected=dict(counts.rejected)),
            handovers={
                h.name: QueueState(depth=len(h), high_water=h.high_water, capacity=h.capacity) for h in self.handovers
            },
            latency_bounds_ms=tuple(1e3 * bound for bound in BOUNDS_S),
            latency={stage: _latency(histogram.now) for stage, histogram in self._stages().items()},
            drift=self._drift(),
            connected=self.sender.connected,
            outbox=self._unsent,
            reconnects=self.session.reconnects,
            dropped=self.sender.dropped,
            refused=self.sender.refused,
            alerts=self.engine.alerts,
            folder_readable=self.watch.unavailable is None,
            scan_only_finds=self.watch.scan_only_finds,
            last_byte_age_s=None if last_byte is None else max(0.0, now - last_byte),
            rss_bytes=host.rss_bytes(),
            ledger_bytes=self._ledger_bytes,
            disk_free_bytes=self._disk_free_bytes,
        )

    def message(self) -> Message:
        """The figures as a message; for the ledger's thread only."""
        self.look()
        return self.speech.speaker.topics.message(self.health())

    def _stages(self) -> dict[str, Histogram]:
        """In the order of the data's way."""
        return {
            "last_byte_to_batch": self.engine.last_byte_to_batch,
            "inference": self.engine.inference,
            "batch_to_record": self.engine.batch_to_record,
            "last_byte_to_result": self.engine.last_byte_to_result,
            "ledger_write": self.sender.ledger_write,
            "publish_to_puback": self.sender.publish_to_puback,
        }

    def _drift(self) -> Drift:
        lately = self.engine.recent.now
        return Drift(
            used=lately.used,
            confidence=lately.confidence,
            judged=lately.judged,
            embedding_far=lately.marks.get("embedding_far", 0),
            intensity_outside=lately.marks.get("intensity_outside", 0),
            limit=self.reducer.profile.decision.most_marked,
        )


def _latency(took: Durations) -> StageLatency:
    p50, p99 = (took.quantile(q) for q in (0.5, 0.99))
    return StageLatency(
        count=took.count,
        sum_ms=round(1e3 * took.sum_s, 3),
        p50_ms=None if p50 is None else round(1e3 * p50, 2),
        p99_ms=None if p99 is None else round(1e3 * p99, 2),
        buckets=took.buckets,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
