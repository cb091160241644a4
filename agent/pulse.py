"""Whether the rooms are alive: each beats when it comes round, and some may be late for good reasons."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.calls import longest_s
from agent.handover import Handover
from agent.ledger import Record
from agent.worker import Work


class Pulse:
    """When each room last came round. A room that waits before a full hand-over is not at fault; the next one is.

    Nor is one that waits for a file system, which a restart would not mend (agent.answering tells of it).
    """

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

    def last(self, room: str) -> float:
        """Monotonic seconds at which a room that has signed on came round last."""
        return self._last[room]

    def is_healthy(self, limit_s: float) -> bool:
        """Whether every room came round within `limit_s`, or waits for something that is not its own fault."""
        now = time.monotonic()
        return all(self._is_excused(room) for room, last in self._last.items() if now - last > limit_s)

    def _is_excused(self, room: str) -> bool:
        if room == "reader" and longest_s() is not None:
            return True
        return room in self._full and len(self._full[room]) >= self._full[room].capacity
