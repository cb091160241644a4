"""Which file is looked at next: those of the newest slide first, so that the patient on the table never waits for
what lay in the folder before. Pure.
"""

from __future__ import annotations

import heapq

from agent.layouts import natural
from models.contract import SlideKey

OLDEST_EVERY = 8
"""Each so many files, one of the oldest slide has its turn: no slide waits for ever."""


class _Group:
    """Waiting files of one slide (or of one folder, where no name tells the slide), in natural order."""

    def __init__(self) -> None:
        self.newest_ns = 0
        self.order: list[tuple[object, str]] = []
        self.paths: set[str] = set()


class Backlog:
    """Paths that wait for a look, each once."""

    def __init__(self) -> None:
        self._groups: dict[SlideKey | str, _Group] = {}
        self._place: dict[str, SlideKey | str] = {}
        self._taken = 0

    def __bool__(self) -> bool:
        return bool(self._place)

    def add(self, path: str, slide: SlideKey | None, modified_ns: int | None) -> None:
        """A path is to be looked at; files without a slide go by folder."""
        if path in self._place:
            return
        place = slide or path.rpartition("/")[0]
        self._place[path] = place
        group = self._groups.setdefault(place, _Group())
        group.newest_ns = max(group.newest_ns, modified_ns or 0)
        group.paths.add(path)
        heapq.heappush(group.order, (natural(path), path))

    def discard(self, path: str) -> None:
        """It is not there any more."""
        if (place := self._place.pop(path, None)) is not None:
            self._drop(place, path)

    def take(self) -> str | None:
        """The next path; None when nothing waits."""
        if not self._groups:
            return None
        self._taken += 1
        choose = min if self._taken % OLDEST_EVERY == 0 else max
        place = choose(self._groups, key=lambda key: self._groups[key].newest_ns)
        group = self._groups[place]
        while True:
            _, path = heapq.heappop(group.order)
            if path in group.paths:
                self._place.pop(path)
                self._drop(place, path)
                return path

    @property
    def slides(self) -> set[SlideKey]:
        """Slides of which a file waits."""
        return {place for place in self._groups if isinstance(place, SlideKey)}

    def _drop(self, place: SlideKey | str, path: str) -> None:
        group = self._groups[place]
        group.paths.discard(path)
        if not group.paths:
            del self._groups[place]
