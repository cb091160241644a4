"""Which file is looked at next: those of the newest slide first, so that the patient on the table never waits for
what lay in the folder before. Pure.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import NamedTuple

from agent.layouts import natural
from models.contract import SlideKey

OLDEST_EVERY = 8
"""Each so many files, the slide that has waited longest has its turn. Not the oldest one: second looks at files of
older slides would come before it, again and again."""


class _Turn(NamedTuple):
    minus_newest_ns: int
    serial: int
    place: SlideKey | str


class _Group:
    """Waiting files of one slide (or of one folder, where no name tells the slide), in natural order."""

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.newest_ns = 0
        self.order: list[tuple[object, str]] = []
        self.paths: set[str] = set()


class Backlog:
    """Paths that wait for a look, each once."""

    def __init__(self) -> None:
        self._groups: dict[SlideKey | str, _Group] = {}
        self._begun = 0
        """Groups so far: of equally new ones the first goes first."""
        self._newest: list[_Turn] = []
        """A heap, so that a thousand slides cost no more than ten; an entry counts while its group is as new."""
        self.slides: set[SlideKey] = set()
        """Slides of which a file waits; it changes with them."""
        self._place: OrderedDict[str, SlideKey | str] = OrderedDict()
        """Where each path belongs; the one that has waited longest first."""
        self._taken = 0
        self._newest_ns = 0
        """Of the slides of which a file was taken since nothing waited any more."""
        self.was_overtaken = False
        """Whether a file of a newer slide was taken while the last one waited: it says little of what happens now."""

    def __bool__(self) -> bool:
        return bool(self._place)

    def add(self, path: str, slide: SlideKey | None, modified_ns: int | None) -> None:
        """A path is to be looked at; files without a slide go by folder."""
        if path in self._place:
            return
        place = slide or path.rpartition("/")[0]
        self._place[path] = place
        group = self._groups.get(place)
        if group is None:
            self._begun += 1
            group = self._groups[place] = _Group(self._begun)
            if isinstance(place, SlideKey):
                self.slides.add(place)
        if not group.paths or (modified_ns or 0) > group.newest_ns:
            group.newest_ns = max(group.newest_ns, modified_ns or 0)
            heapq.heappush(self._newest, _Turn(-group.newest_ns, group.serial, place))
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
        is_for_oldest = self._taken % OLDEST_EVERY == 0
        longest = next(iter(self._place)) if is_for_oldest else None
        place = self._newest_place() if longest is None else self._place[longest]
        group = self._groups[place]
        self.was_overtaken = group.newest_ns < self._newest_ns
        self._newest_ns = max(self._newest_ns, group.newest_ns)
        while True:
            path = longest or heapq.heappop(group.order)[1]
            if path in group.paths:
                self._place.pop(path)
                self._drop(place, path)
                return path

    def _newest_place(self) -> SlideKey | str:
        while True:
            turn = self._newest[0]
            group = self._groups.get(turn.place)
            if group is not None and (-group.newest_ns, group.serial) == turn[:2]:
                return turn.place
            heapq.heappop(self._newest)

    def _drop(self, place: SlideKey | str, path: str) -> None:
        group = self._groups[place]
        group.paths.discard(path)
        if not group.paths:
            del self._groups[place]
            if isinstance(place, SlideKey):
                self.slides.discard(place)
        if not self._groups:
            self._newest_ns = 0
            self._newest.clear()
