"""Figures about the running process, for `health` and for the metrics."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from agent import host
from agent.answering import Answering
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
    answering: Answering
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
        trouble = self.answering.trouble or self.watch.unavailable
        return Health(
            **speaker.stamp(),
            version=self.version,
            boot_seq=self.speech.boot_seq,
            profile=speaker.profile_ref,
            engine=speaker.engine,
            passed_over=tuple(self.speech.choice.passed_over),
            engine_replacements=self.engine.replacements,
            since=self.speech.since,
            uptime_s=now - self.started_s,
            patches=Counts(seen=counts.seen, used=counts.used, rejected=dict(counts.rejected)),
            corrected=self.reducer.corrected,
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
            alerts=self._alerts(),
            folder_readable=trouble is None,
            folder_trouble=trouble,
            scan_only_finds=self.watch.scan_only_finds,
            events_lost=self.watch.events_lost,
            last_byte_age_s=None if last_byte is None else max(0.0, now - last_byte),
            rss_bytes=host.rss_bytes(),
            ledger_bytes=self._ledger_bytes,
            disk_free_bytes=self._disk_free_bytes,
            audit=self.ledger.audit.head,
        )

    def message(self) -> Message:
        """The figures as a message; for the ledger's thread only."""
        self.look()
        return self.speech.speaker.topics.message(self.health())

    def _alerts(self) -> dict[str, int]:
        """By reason; those of the ENGINE room, and those that speak of the process itself."""
        hangs = {"folder_hangs": self.answering.alerts} if self.answering.alerts else {}
        return {**self.engine.alerts, **hangs}

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
