"""A file of a slide that is finished: is it still what it was then?

It reads bytes and no pixels; what follows from a change is agent.visits' matter.
"""

from __future__ import annotations

from collections.abc import Generator

from agent.closed_files import ClosedFiles, Known
from agent.intake import Told
from agent.patience import Patience
from agent.pump import Pump
from agent.roster import Roster
from agent.source import RETRY_S, Source
from agent.tail import NOWHERE

DOUBLINGS = 6
"""How often the wait before the same file is compared once more is doubled."""


class LateFiles:
    """See the module's docstring. Without `examine`, files are taken to be as they were when they were read."""

    def __init__(self, closed: ClosedFiles, roster: Roster, pump: Pump, patience: Patience, *, examine: bool) -> None:
        self._closed = closed
        self._roster = roster
        self._pump = pump
        self._patience = patience
        self._examine = examine

    def judge(self, path: str, source: Source, now: float) -> Generator[Told, None, bool | None]:
        """Whether its slide must be read again; None when that cannot be told yet."""
        assert source.placed is not None
        slide = source.placed.part.slide
        try:
            stamp = source.tail.stamp(now)
        except OSError as error:
            source.retry_after(now + RETRY_S, error.strerror or str(error))
            return None
        if stamp == NOWHERE:
            return False
        before = self._closed.known(path, source.file_id)
        is_new = before is None and not self._roster.is_pruned(slide)
        if not self._examine or (not is_new and (before is None or stamp == before.stamp)):
            self._closed.close(path, slide, stamp, before.sha256 if before else "")
            return False
        if before is None:
            return True
        is_same: bool | None = False
        if before.sha256 and stamp[0] == before.stamp[0]:
            is_same = yield from self._compare(path, source, before, now)
        if is_same is False:
            detail = "a file of a finished slide changed; the slide is read again, and corrected if need be"
            yield from self._pump.tell(source, "changed_late", detail)
        return None if is_same is None else not is_same

    def _compare(self, path: str, source: Source, before: Known, now: float) -> Generator[Told, None, bool | None]:
        """Whether a file of another time (a copy that was put back, say) holds the same bytes as before.

        At once when it happens first; a file that is touched again and again is compared ever less often.
        """
        assert source.placed is not None
        if source.caution is None:
            times = self._closed.doubt(path)
            source.caution = 1 << min(times, DOUBLINGS) if times else 0
        if source.tail.quiet_s(now) < source.caution * self._patience.settle_s:
            return None
        found = self._pump.hash(source, now)
        if found == before.sha256:
            self._closed.close(path, source.placed.part.slide, (source.tail.size, source.tail.mtime_ns), found)
            yield self._pump.standing(source, "whole", sha256=found)
        return None if found is None else found == before.sha256
