"""What the board lacks and may ask for: cells from the agent, kept results from the broker, and how often. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.dashboard.heard import Now

LASTS_S = 6.0
"""Cells that are missing for so long will not come by themselves: the agent lets them wait for five seconds."""
FETCH_AFTER_S = 1.0
"""What the broker keeps should have come by then."""
FETCH_PAUSE_S = 5.0
"""Shortest time between two questions to the broker: it may have nothing."""


class Missing:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._asked_for: tuple[int, int] = (0, 0)
        self._since_s = math.inf
        self._fetch_at_s = math.inf

    def asks_agent(self, occasion: tuple[int, int], lacks: bool, now: Now) -> bool:
        """Whether to ask the agent now; once an occasion, which is a connection of ours and a birth of the agent."""
        if not lacks or occasion == self._asked_for:
            self._since_s = math.inf
            return False
        self._since_s = min(self._since_s, now.steady_s)
        if now.steady_s - self._since_s < LASTS_S:
            return False
        self._asked_for, self._since_s = occasion, math.inf
        return True

    def asks_broker(self, topics: Sequence[str], now: Now) -> Sequence[str]:
        """The topics to ask the broker for now: those without a result, after a while and from time to time."""
        if not topics:
            self._fetch_at_s = math.inf
            return ()
        self._fetch_at_s = min(self._fetch_at_s, now.steady_s + FETCH_AFTER_S)
        if now.steady_s < self._fetch_at_s:
            return ()
        self._fetch_at_s = now.steady_s + FETCH_PAUSE_S
        return topics
