"""Files that need no look until they change: how they stood, by path while the agent runs, by pseudonym before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from agent.ledger_records import FileStanding
from models.contract import SlideKey

Stamp = tuple[int, int]
"""(size, mtime in ns)."""


class Known(NamedTuple):
    """A file as it was when it was closed."""

    stamp: Stamp
    sha256: str
    """Empty where it is not known."""
    slide: SlideKey


class ClosedFiles:
    """See the module's docstring. `before`: what the ledger knows from before this start."""

    def __init__(self, before: Iterable[FileStanding] = ()) -> None:
        standings = (of for of in before if of.outcome != "changed")
        self._before = {of.file_id: Known(of.stamp, of.sha256, SlideKey(of.patient, of.slide)) for of in standings}
        self._known: dict[str, Known] = {}
        self._doubts: Counter[str] = Counter()
        self._slides: dict[SlideKey, set[str]] = {}

    def close(self, path: str, slide: SlideKey, stamp: Stamp, sha256: str = "") -> None:
        """This file is settled."""
        self._known[path] = Known(stamp, sha256, slide)
        self._slides.setdefault(slide, set()).add(path)

    def known(self, path: str, file_id: str) -> Known | None:
        """How the file stood when it was closed; None when it never was."""
        return self._known.get(path) or self._before.get(file_id)

    def doubt(self, path: str) -> int:
        """Its times have changed; returns how often that happened before without a change of its bytes."""
        self._doubts[path] += 1
        return self._doubts[path] - 1

    def forget(self, path: str) -> None:
        """The file is gone."""
        self._doubts.pop(path, None)
        if (known := self._known.pop(path, None)) is not None:
            paths = self._slides.get(known.slide, set())
            paths.discard(path)
            if not paths:
                self._slides.pop(known.slide, None)

    def reopen(self, slide: SlideKey) -> set[str]:
        """Forget a slide's files; returns their paths."""
        self._before = {file_id: known for file_id, known in self._before.items() if known.slide != slide}
        paths = self._slides.pop(slide, set())
        return {path for path in paths if self._known.pop(path, None) is not None}
