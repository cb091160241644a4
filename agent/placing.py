"""Where the folder's files belong by their names or tags, and which of them cannot be told yet. Opens no file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import structlog

from agent.identity import Naming
from agent.intake import Problem
from agent.layouts import Layouts, Misnumbered, Place, Placed, Waiting


class Placing:
    """Layouts, with a memory of what was asked in vain."""

    def __init__(self, layouts: Layouts, naming: Naming) -> None:
        self._layouts = layouts
        self._naming = naming
        self._waiting: dict[str, tuple[float, str]] = {}
        """Paths that cannot be placed before another file has come → since when, and why."""
        self._told_waiting: set[str] = set()
        self._misnumbered: set[str] = set()
        """Paths whose counter contradicts their slide's and that have been told."""
        self._placed_since = False
        """A file has found its place since those that wait were asked for theirs."""
        self._log = structlog.get_logger("reader")

    def by_name(self, path: str, now: float) -> Place:
        """Where a path belongs."""
        return self._note(path, self._layouts.place(PurePosixPath(path)), now)

    def by_tags(self, path: str, tags: Mapping[str, str], planes: int, now: float) -> Place:
        """Where a file belongs whose name no rule knows."""
        return self._note(path, self._layouts.place_by_tags(tags, planes), now)

    def misnumbered(self, path: str, place: Misnumbered) -> Iterator[Problem]:
        """Tell it, once a path."""
        if path not in self._misnumbered:
            self._misnumbered.add(path)
            yield Problem("misnumbered", place.detail, file_id=self._naming.of("file", path))

    @property
    def may_retry(self) -> bool:
        """Whether a path that waits may find its place now."""
        return self._placed_since and bool(self._waiting)

    def retry(self) -> list[str]:
        """Paths that may find their place now, since others have."""
        again, self._placed_since = self._placed_since, False
        return sorted(self._waiting) if again else []

    def tell_waiting(self, since: float = math.inf) -> Iterator[Problem]:
        """Files that cannot be placed for too long: a wrong setting would otherwise look like silence."""
        for why in sorted({why for seen, why in self._waiting.values() if seen <= since} - self._told_waiting):
            self._told_waiting.add(why)
            yield Problem("waiting", why)

    def forget(self, path: str) -> None:
        """The file is gone."""
        self._waiting.pop(path, None)
        self._misnumbered.discard(path)

    def _note(self, path: str, place: Place, now: float) -> Place:
        if not isinstance(place, Waiting):
            self._waiting.pop(path, None)
            self._placed_since |= isinstance(place, Placed)
        elif path not in self._waiting:
            self._log.info("waiting", file=self._naming.of("file", path), why=place.why)
            self._waiting[path] = (now, place.why)
        return place
