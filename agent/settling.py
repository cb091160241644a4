"""Paths that may give more once they count as settled, and which of them does next. Pure: time comes in."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable


class Settling:
    """A heap, so that thousands of files that settle cost a look nothing before their time.

    `settles_in_s(path, now)` says how long a path takes, infinity when that means nothing. It may turn out to
    take longer than it said; sooner only when the path is noted again.
    """

    def __init__(self, settles_in_s: Callable[[str, float], float]) -> None:
        self._settles_in_s = settles_in_s
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def note(self, path: str, now: float) -> None:
        """This path was looked at: it is due when it has settled, if that means anything."""
        at_s = now + self._settles_in_s(path, now)
        if math.isinf(at_s):
            self._at.pop(path, None)
        elif self._at.get(path) != at_s:
            self._at[path] = at_s
            heapq.heappush(self._heap, (at_s, path))

    def discard(self, path: str) -> None:
        """It is not there any more."""
        self._at.pop(path, None)

    def due(self, now: float) -> list[str]:
        """Paths that have settled; each is forgotten until it is noted again."""
        paths = []
        while self.wait_s(now) == 0:
            _, path = heapq.heappop(self._heap)
            del self._at[path]
            paths.append(path)
        return paths

    def wait_s(self, now: float) -> float:
        """Seconds until a path has settled; infinity when none will."""
        while self._heap:
            at_s, path = self._heap[0]
            is_known = self._at.get(path) == at_s
            if is_known and now + self._settles_in_s(path, now) <= max(at_s, now):
                return max(0.0, at_s - now)
            heapq.heappop(self._heap)
            if is_known:
                del self._at[path]
                self.note(path, now)
        return math.inf
