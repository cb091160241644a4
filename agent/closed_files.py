"""Files that need no look until they change: how they stood, by path while the agent runs, by pseudonym before."""

from __future__ import annotations

from collections.abc import Iterable

from agent.ledger_records import FileStanding
from models.contract import SlideKey

Stamp = tuple[int, int]
"""(size, mtime in ns)."""


class ClosedFiles:
    """See the module's docstring. `before`: what the ledger knows from before this start."""

    def __init__(self, before: Iterable[FileStanding] = ()) -> None:
        self._before = {standing.file_id: standing for standing in before}
        self._stamps: dict[str, Stamp] = {}
        self._slides: dict[SlideKey, set[str]] = {}

    def close(self, path: str, slide: SlideKey, stamp: Stamp) -> None:
        """This file is settled."""
        self._stamps[path] = stamp
        self._slides.setdefault(slide, set()).add(path)

    def stamp(self, path: str, file_id: str) -> Stamp | None:
        """How the file stood when it was closed; None when it never was."""
        before = self._before.get(file_id)
        return self._stamps.get(path) or (before.stamp if before else None)

    def forget(self, path: str) -> None:
        """The file is gone."""
        self._stamps.pop(path, None)

    def reopen(self, slide: SlideKey) -> set[str]:
        """Forget a slide's files; returns their paths."""
        paths = self._slides.pop(slide, set())
        return {path for path in paths if self._stamps.pop(path, None) is not None}
