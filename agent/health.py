"""Figures about the running process, and whether its rooms are alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent import host
from agent.handover import Handover
from agent.ledger import Ledger, Record
from agent.messages import Counts, Health, QueueState
from agent.publish import Session
from agent.reader import Reader
from agent.reducer import Reducer
from agent.reporter import Speaker
from agent.topics import Message
from agent.watch import Watch
from agent.worker import Work


class Pulse:
    """When each room last came round. A room that waits before a full hand-over is not at fault; the next one is."""

    def __init__(self, work: Handover[Work], records: Handover[Record]) -> None:
        self._full: dict[str, Handover[Work] | Handover[Record]] = {"reader": work, "engine": records}
        self._last: dict[str, float] = {}

    def beats(self, room: str, also: Callable[[], None] = lambda: None) -> Callable[[], None]:
        """What the room calls each time it comes round; it runs `also`, too."""

        def beat() -> None:
            also()
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
    """Reads the rooms' own counters (plain numbers, each written by one thread) when somebody asks."""

    speaker: Speaker
    reducer: Reducer
    reader: Reader
    watch: Watch
    handovers: tuple[Handover[Work], Handover[Record]]
    session: Session
    ledger: Ledger
    started_s: float = field(default_factory=time.monotonic)
    _unsent: int = 0

    def look(self) -> None:
        """Count what waits in the ledger; for the ledger's thread only."""
        self._unsent = self.ledger.outbox_length()

    def health(self) -> Health:
        """The figures as they stand."""
        counts = self.reducer.total
        last_byte = self.reader.last_byte_s
        now = time.monotonic()
        return Health(
            **self.speaker.stamp(),
            patches=Counts(seen=counts.seen, used=counts.used, rejected=dict(counts.rejected)),
            handovers={
                h.name: QueueState(depth=len(h), high_water=h.high_water, capacity=h.capacity) for h in self.handovers
            },
            outbox=self._unsent,
            reconnects=self.session.reconnects,
            scan_only_finds=self.watch.scan_only_finds,
            engine=self.speaker.engine,
            uptime_s=now - self.started_s,
            last_byte_age_s=None if last_byte is None else max(0.0, now - last_byte),
            rss_bytes=host.rss_bytes(),
        )

    def message(self) -> Message:
        """The figures as a message; for the ledger's thread only."""
        self.look()
        return self.speaker.topics.message(self.health())
