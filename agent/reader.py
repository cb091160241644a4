"""The READER room: changes in the folder → network inputs and events, in the order things happened.

It decides which files to look at and where they belong; agent.pump reads them. It knows no engine and no message, and
never waits: time comes in as an argument, and whoever iterates `poll` sets the pace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import structlog

from agent.errors import FormatError
from agent.formats import Limits
from agent.identity import Naming
from agent.intake import Folder, Problem, Told
from agent.layouts import Ignored, Layouts, Misnumbered, Placed, Waiting, natural
from agent.pump import Pump
from agent.roster import Patience, Roster
from agent.source import OpenParser, Reading, Source
from models.contract import Assembler, PatchKey, SlideKey

IMAGE_SUFFIXES = {".dcm", ".dicom", ".tif", ".tiff"}
"""Names that promise an image: one that holds none is told, anything else is only logged."""


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
    ) -> None:
        self._folder = folder
        self._layouts = layouts
        self._naming = naming
        self._patience = patience
        self._sources: dict[str, Source] = {}
        self._waiting: set[str] = set()
        """Paths that cannot be placed before another file has come."""
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
        for path in sorted({*changes.touched, *due, *(self._waiting if changes.touched else ())}, key=natural):
            yield from self._visit(path, now)
            if path in self._sources and self._settles(path, now) < math.inf:
                self._unsettled.add(path)
            else:
                self._unsettled.discard(path)
        for path in changes.removed:
            yield from self._removed(path, now)
        yield from self._roster.silence(now)

    def wait_s(self, now: float) -> float:
        """Seconds until a poll would find something even without a hint."""
        settling = (self._settles(path, now) for path in self._unsettled)
        return min([self._folder.wait_s(now), self._roster.wait_s(now), *settling])

    def close_patient(self, patient: str | None) -> Iterator[Told]:
        """End a patient (None: every open one) on somebody's word."""
        yield from self._roster.close_patients(None if patient is None else {patient})

    @property
    def last_byte_s(self) -> float | None:
        """Monotonic seconds of the newest byte; None before the first."""
        return self._roster.last_byte_s

    def _settles(self, path: str, now: float) -> float:
        """Seconds until a file that has not changed any more counts as settled."""
        wait_s = self._sources[path].settles_in_s(now, self._patience.settle_s)
        return math.inf if wait_s is None else wait_s

    def _visit(self, path: str, now: float) -> Iterator[Told]:
        self._waiting.discard(path)
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
            if source.reading is Reading.GROWING:
                self._log.debug("not_read", file=source.file_id, why="its slide is complete")
                source.reading = Reading.DONE
            return
        yield from self._pump.drain(self._roster.arrival(source.placed.part, now), now)

    def _meet(self, path: str, now: float) -> Iterator[Told]:
        """A path seen for the first time: where does it belong?"""
        place = self._layouts.place(PurePosixPath(path))
        file_id = self._naming.of("file", path)
        if isinstance(place, Waiting):
            self._waiting.add(path)
        elif isinstance(place, Misnumbered):
            if path not in self._misnumbered:
                self._misnumbered.add(path)
                yield Problem("misnumbered", place.detail, file_id=file_id)
        elif not isinstance(place, Ignored):
            placed = place if isinstance(place, Placed) else None
            source = self._sources[path] = Source(self._folder.folder / path, file_id, placed, now)
            if placed and not self._roster.is_finished(placed.part):
                self._join(source, placed, now)

    def _join(self, source: Source, placed: Placed, now: float) -> None:
        if self._roster.arrival(placed.part, now).add(source, placed.channel):
            self._log.info("duplicate_file", file=source.file_id, slide=placed.part.slide.slide)

    def _place_by_tags(self, path: str, source: Source, now: float) -> Iterator[Told]:
        """No rule knows the name: look whether it is an image, and whether its tags tell where it belongs."""
        try:
            self._pump.look(source, now, header_only=True)
        except FormatError as error:
            if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
                yield from self._pump.tell(source, error.reason, f"{error}; no naming rule knows its name either")
            else:
                self._log.info("ignored", file=source.file_id, why=str(error))
            return
        if source.header is None:
            return
        place = self._layouts.place_by_tags(source.header.tags, source.header.planes)
        if isinstance(place, Placed):
            source.placed = place
            self._join(source, place, now)
            yield from self._roster.receive(place.part, now)
            yield from self._pump.begin(self._roster.arrival(place.part, now), source, source.header)
        elif isinstance(place, Waiting):
            self._waiting.add(path)
        else:
            detail = place.detail if isinstance(place, Misnumbered) else "no naming rule and no tag places this image"
            source.refuse(FormatError("unsupported", detail))
            yield from self._pump.tell(
                source, "misnumbered" if isinstance(place, Misnumbered) else "unknown_name", detail
            )

    def _removed(self, path: str, now: float) -> Iterator[Told]:
        self._waiting.discard(path)
        self._unsettled.discard(path)
        self._misnumbered.discard(path)
        source = self._sources.pop(path, None)
        if source is None or source.placed is None or source.reading is Reading.DONE:
            return
        source.reading = Reading.GONE
        yield from self._pump.tell(source, "vanished", "the file was removed before it was complete")
        if not self._roster.is_finished(source.placed.part):
            yield from self._roster.lost(source.placed.part)
            yield from self._pump.drain(self._roster.arrival(source.placed.part, now), now)  # a copy may serve
