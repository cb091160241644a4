"""The READER room: changes in the folder → network inputs and events, in the order things happened.

It decides which files to look at and where they belong; agent.pump reads them. It knows no engine and no message, and
never waits: time comes in as an argument, and whoever iterates `poll` sets the pace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

import structlog

from agent.errors import FormatError
from agent.formats import Limits
from agent.identity import Naming
from agent.intake import Folder, Problem, Told
from agent.layouts import IMAGES, Layouts, Misnumbered, Placed, Unknown, Waiting, may_be_image, natural
from agent.pump import Pump
from agent.roster import Patience, Roster
from agent.source import OpenParser, Reading, Source
from models.contract import Assembler, PatchKey, SlideKey


class Reader:
    """See the module's docstring.

    `counted`: patches that the ledger has already; `finished`: slides that were complete before a restart.
    """

    def __init__(
        self,
        folder: Folder,
        layouts: Layouts,
        naming: Naming,
        assembler: Assembler,
        open_parser: OpenParser,
        *,
        limits: Limits,
        patience: Patience,
        counted: Iterable[PatchKey] = (),
        finished: Iterable[SlideKey] = (),
        slice_bytes: int = 4 << 20,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._layouts = layouts
        self._naming = naming
        self._patience = patience
        self._beat = beat
        self._sources: dict[str, Source] = {}
        self._waiting: dict[str, tuple[float, str]] = {}
        """Paths that cannot be placed before another file has come → since when, and why."""
        self._told_waiting: set[str] = set()
        self._closed_files: dict[str, tuple[int, int]] = {}
        """Files of finished slides → size and mtime, so that a later change is told."""
        self._told_late: set[str] = set()
        self._unsettled: set[str] = set()
        """Paths that may give more once they count as settled."""
        self._folder_missing = False
        self._misnumbered: set[str] = set()
        """Paths whose counter contradicts their slide's and that have been told."""
        self._roster = Roster(assembler, patience, counted, finished)
        self._pump = Pump(
            assembler,
            self._roster,
            open_parser,
            limits=limits,
            settle_s=patience.settle_s,
            slice_bytes=slice_bytes,
        )
        self._log = structlog.get_logger("reader")

    def poll(self, now: float) -> Iterator[Told]:
        """Everything that became known since the last poll, to the end; then what silence says."""
        changes = self._folder.poll(now)
        if changes.unavailable and not self._folder_missing:
            yield Problem("folder_unavailable", f"the watched folder cannot be read: {changes.unavailable}")
        self._folder_missing = changes.unavailable is not None
        due = [path for path in self._unsettled if self._settles(path, now) == 0]
        waiting = self._waiting if changes.touched else ()
        for path in sorted({*changes.touched, *due, *waiting}, key=natural):
            self._beat()
            yield from self._visit(path, now)
            if path in self._sources and self._settles(path, now) < math.inf:
                self._unsettled.add(path)
            else:
                self._unsettled.discard(path)
        for path in changes.removed:
            yield from self._removed(path, now)
        yield from self._roster.silence(now, looked=changes.unavailable is None)
        yield from self._tell_waiting(now - self._patience.stall_after_s)

    def wait_s(self, now: float) -> float:
        """Seconds until a poll would find something even without a hint."""
        settling = (self._settles(path, now) for path in self._unsettled)
        return min([self._folder.wait_s(now), self._roster.wait_s(now), *settling])

    def close_patient(self, patient: str | None) -> Iterator[Told]:
        """End a patient (None: every open one) on somebody's word."""
        yield from self._roster.close_patients(None if patient is None else {patient})

    def close(self) -> Iterator[Told]:
        """Nothing more will come: end every patient, and tell which files never found their place."""
        yield from self.close_patient(None)
        yield from self._tell_waiting(math.inf)

    @property
    def last_byte_s(self) -> float | None:
        """Monotonic seconds of the newest byte; None before the first."""
        return self._roster.last_byte_s

    def _settles(self, path: str, now: float) -> float:
        """Seconds until a file that has not changed any more counts as settled."""
        wait_s = self._sources[path].settles_in_s(now, self._patience.settle_s)
        return math.inf if wait_s is None else wait_s

    def _visit(self, path: str, now: float) -> Iterator[Told]:
        if path not in self._sources:
            yield from self._meet(path, now)
        source = self._sources.get(path)
        if source is None:
            return
        if source.placed is None:
            yield from self._place_by_tags(path, source, now)
        if source.placed is None:
            return
        if self._roster.is_finished(source.placed.part):
            yield from self._late(path, source, now)
            return
        arrival = self._roster.arrival(source.placed.part, now)
        if arrival.add(source):
            detail = "another file holds the same part of the slide; this one is read only if that one is lost"
            yield from self._pump.tell(source, "duplicate", detail)
        yield from self._pump.drain(arrival, now)

    def _meet(self, path: str, now: float) -> Iterator[Told]:
        """A path without a source: where does it belong?"""
        place = self._layouts.place(PurePosixPath(path))
        if isinstance(place, Waiting):
            self._wait(path, place, now)
            return
        self._waiting.pop(path, None)
        file_id = self._naming.of("file", path)
        if isinstance(place, Misnumbered):
            if path not in self._misnumbered:
                self._misnumbered.add(path)
                yield Problem("misnumbered", place.detail, file_id=file_id)
        elif isinstance(place, Placed) or (isinstance(place, Unknown) and may_be_image(PurePosixPath(path))):
            placed = place if isinstance(place, Placed) else None
            self._sources[path] = Source(self._folder.folder / path, file_id, placed, now)

    def _wait(self, path: str, place: Waiting, now: float) -> None:
        if path not in self._waiting:
            self._log.info("waiting", file=self._naming.of("file", path), why=place.why)
            self._waiting[path] = (now, place.why)

    def _tell_waiting(self, since: float) -> Iterator[Told]:
        """Files that cannot be placed for too long: a wrong setting would otherwise look like silence."""
        for why in sorted({why for seen, why in self._waiting.values() if seen <= since} - self._told_waiting):
            self._told_waiting.add(why)
            yield Problem("waiting", why)

    def _late(self, path: str, source: Source, now: float) -> Iterator[Told]:
        """A file of a slide that is complete: it is not read (again), but a change is told."""
        seen = source.tail.stamp(now)
        before = self._closed_files.get(path)
        if before is not None and seen != before and path not in self._told_late:
            self._told_late.add(path)
            yield from self._pump.tell(
                source, "changed_late", "a file of a complete slide changed; it is not read again"
            )
        self._closed_files[path] = seen
        del self._sources[path]

    def _place_by_tags(self, path: str, source: Source, now: float) -> Iterator[Told]:
        """No rule knows the name: look whether it is an image, and whether its tags tell where it belongs."""
        try:
            self._pump.look(source, now, header_only=True)
        except FormatError as error:
            if PurePosixPath(path).suffix.lower() in IMAGES:
                detail = f"{error.detail}; no naming rule knows its name either"
                yield from self._pump.tell(source, error.reason, detail)
            else:
                self._log.info("ignored", file=source.file_id, why=error.reason)
            return
        if source.header is None:
            return
        place = self._layouts.place_by_tags(source.header.tags, source.header.planes)
        if isinstance(place, Waiting):
            self._wait(path, place, now)
            return
        self._waiting.pop(path, None)
        if isinstance(place, Placed):
            source.placed = place
            if not self._roster.is_finished(place.part):
                self._roster.arrival(place.part, now)
                yield from self._roster.receive(place.part, now)
            return
        reason, detail = "unknown_name", "no naming rule and no tag places this image"
        if isinstance(place, Misnumbered):
            reason, detail = "misnumbered", place.detail
        source.refuse()
        yield from self._pump.tell(source, reason, detail)

    def _removed(self, path: str, now: float) -> Iterator[Told]:
        for paths in (self._unsettled, self._misnumbered):
            paths.discard(path)
        self._waiting.pop(path, None)
        self._closed_files.pop(path, None)
        source = self._sources.pop(path, None)
        if source is None or source.placed is None or source.reading is Reading.DONE:
            return
        source.reading = Reading.GONE
        yield from self._pump.tell(source, "vanished", "the file was removed before it was complete")
        if not self._roster.is_finished(source.placed.part):
            yield from self._roster.lost(source.placed.part)
            yield from self._pump.drain(self._roster.arrival(source.placed.part, now), now)  # a copy may serve
