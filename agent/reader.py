"""The READER room: changes in the folder → bytes → chunks → network inputs, in the order things happened.

It joins watch, tail, formats, layouts and the modality's assembler. It knows no engine and no message, and never
waits: time comes in as an argument, and whoever iterates `poll` sets the pace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import structlog

from agent.arrivals import Arrival
from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Region
from agent.identity import Naming
from agent.intake import Folder, Problem, Told
from agent.layouts import Ignored, Layouts, Misnumbered, Placed, Waiting, natural
from agent.roster import Patience, Roster
from agent.source import OpenParser, Reading, Source
from agent.tail import Change
from models.contract import Assembler, Chunk, PatchKey, ShapeError, SlideKey

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
        self._assembler = assembler
        self._open_parser = open_parser
        self._limits = limits
        self._patience = patience
        self._slice = slice_bytes
        self._sources: dict[str, Source] = {}
        self._waiting: set[str] = set()
        """Paths that cannot be placed before another file has come."""
        self._unsettled: set[str] = set()
        """Paths that may give more once they count as settled."""
        self._roster = Roster(assembler, patience, counted, finished)
        self._log = structlog.get_logger("reader")

    def poll(self, now: float) -> Iterator[Told]:
        """Everything that became known since the last poll, to the end; then what silence says."""
        changes = self._folder.poll(now)
        due = [path for path in self._unsettled if self._settles(path, now) == 0]
        for path in sorted({*changes.touched, *due, *(self._waiting if changes.touched else ())}, key=natural):
            yield from self._visit(path, now)
            if path in self._sources and self._settles(path, now) < math.inf:
                self._unsettled.add(path)
            else:
                self._unsettled.discard(path)
        for path in changes.removed:
            yield from self._removed(path)
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
        yield from self._pump(self._roster.arrival(source.placed.part, now), now)

    def _meet(self, path: str, now: float) -> Iterator[Told]:
        """A path seen for the first time: where does it belong?"""
        place = self._layouts.place(PurePosixPath(path))
        file_id = self._naming.of("file", path)
        if isinstance(place, Waiting):
            self._waiting.add(path)
        elif isinstance(place, Misnumbered):
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
            self._read(source, now, header_only=True)
        except FormatError as error:
            if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
                yield from self._tell(source, error.reason, f"{error}; no naming rule knows its name either")
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
            yield from self._begin(self._roster.arrival(place.part, now), source, source.header)
        elif isinstance(place, Waiting):
            self._waiting.add(path)
        else:
            detail = place.detail if isinstance(place, Misnumbered) else "no naming rule and no tag places this image"
            source.refuse(FormatError("unsupported", detail))
            yield from self._tell(source, "misnumbered" if isinstance(place, Misnumbered) else "unknown_name", detail)

    def _pump(self, arrival: Arrival, now: float) -> Iterator[Told]:
        """Read the part's files in turns until they give nothing more."""
        progress = True
        while progress:
            progress = False
            for source in arrival.active():
                before = source.reading
                try:
                    change, events = self._read(source, now, header_only=not arrival.paired)
                except FormatError as error:
                    yield from self._refuse(arrival, source, error)
                    progress = True
                    continue
                if change is not Change.SAME:
                    yield from self._roster.receive(arrival.part, now)
                if change is Change.REWRITTEN:
                    yield from self._tell(source, "rewritten", "the file was replaced or cut; it is read again")
                for event in events:
                    yield from self._take(arrival, source, event)
                progress |= bool(events) or source.reading is not before
        if arrival.complete:
            yield from self._roster.part_done(arrival.part, now)

    def _read(self, source: Source, now: float, *, header_only: bool) -> tuple[Change, list[Event]]:
        try:
            return source.read(
                now,
                self._open_parser,
                self._limits,
                settle_s=self._patience.settle_s,
                budget=self._slice,
                header_only=header_only,
            )
        except OSError as error:
            # A share that hiccups or a file being replaced: the next scan looks again.
            self._log.warning("not_readable_now", file=source.file_id, detail=str(error.strerror or error))
            return Change.SAME, []

    def _take(self, arrival: Arrival, source: Source, event: Event) -> Iterator[Told]:
        if isinstance(event, Header):
            yield from self._begin(arrival, source, event)
        elif isinstance(event, Region) and source.reading is not Reading.REFUSED:
            channel = arrival.channels_of(source)[event.plane]
            for item in self._assembler.add(Chunk(arrival.part, channel, event.y, event.x, event.pixels)):
                if self._roster.count(item.key):
                    yield item
        elif isinstance(event, Complete):
            self._log.debug("file_complete", file=source.file_id, bytes=source.tail.size)

    def _begin(self, arrival: Arrival, source: Source, header: Header) -> Iterator[Told]:
        """Tell the assembler a file's shape. Where the channels disagree, CH2's shape rules, in whatever order."""
        channels = arrival.channels_of(source)
        if header.planes != len(channels):
            error = FormatError("wrong_shape", f"{header.planes} planes where the name promises {len(channels)}")
            yield from self._refuse(arrival, source, error)
            return
        rival = arrival.begun.get(1) if channels == (0,) and 0 not in arrival.begun else None
        if rival is not None and rival.header is not None:
            self._assembler.forget(arrival.part)
            del arrival.begun[1]
        yield from self._shape(arrival, source, header)
        if rival is not None and rival.header is not None:
            yield from self._shape(arrival, rival, rival.header)

    def _shape(self, arrival: Arrival, source: Source, header: Header) -> Iterator[Told]:
        try:
            for channel in arrival.channels_of(source):
                expected = self._assembler.begin(arrival.part, channel, header.height, header.width)
                arrival.begun[channel] = source
                yield from self._roster.expect(arrival.part, expected)
        except ShapeError as error:
            yield from self._refuse(arrival, source, FormatError("wrong_shape", str(error)))

    def _refuse(self, arrival: Arrival, source: Source, error: FormatError) -> Iterator[Told]:
        source.refuse(error)
        arrival.begun = {channel: begun for channel, begun in arrival.begun.items() if begun is not source}
        yield from self._tell(source, error.reason, str(error))

    def _tell(self, source: Source, reason: str, detail: str) -> Iterator[Told]:
        if reason not in source.reported:
            source.reported.add(reason)
            yield Problem(reason, detail, source.placed.part.slide if source.placed else None, source.file_id)

    def _removed(self, path: str) -> Iterator[Told]:
        self._waiting.discard(path)
        self._unsettled.discard(path)
        source = self._sources.pop(path, None)
        if source is None or source.placed is None or source.reading is Reading.DONE:
            return
        source.reading = Reading.GONE
        yield from self._tell(source, "vanished", "the file was removed before it was complete")
        if not self._roster.is_finished(source.placed.part):
            yield from self._roster.lost(source.placed.part)
