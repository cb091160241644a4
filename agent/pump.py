"""The bytes of one part's files → chunks → network inputs, and what is wrong with them.

It knows how the channels of a part belong together; which files there are, and when to look, is the reader's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import xxhash

from agent.arrivals import Arrival
from agent.errors import FormatError
from agent.formats import Event, Header, Limits, Region
from agent.intake import Problem, Told
from agent.ledger_records import FileStanding, Outcome
from agent.roster import Roster
from agent.source import OpenParser, Reading, Source
from agent.tail import Change
from models.contract import Assembler, Chunk, ModelInput, ShapeError, SlideKey

RETRY_S = 5.0
"""A file that cannot be opened is tried again after this, seconds."""


class Pump:
    """See the module's docstring."""

    def __init__(
        self,
        assembler: Assembler,
        roster: Roster,
        open_parser: OpenParser,
        *,
        limits: Limits,
        settle_s: float,
        slice_bytes: int,
        beat: Callable[[], None],
    ) -> None:
        self._assembler = assembler
        self._roster = roster
        self._open_parser = open_parser
        self._limits = limits
        self._settle_s = settle_s
        self._slice = slice_bytes
        self._beat = beat

    def drain(self, arrival: Arrival, now: float, *, live: bool) -> Iterator[Told]:
        """Read the part's files in turns until they give nothing more; `live`: they came since the start."""
        progress = True
        while progress:
            progress = False
            for source in arrival.active():
                before = source.reading
                try:
                    change, events = self.look(source, now, header_only=not arrival.paired)
                except FormatError as error:
                    yield from self._refuse(arrival, source, error)
                    progress = True
                    continue
                if source.trouble:
                    yield from self.tell(source, "not_readable", f"{source.trouble}; it is tried again")
                if change is not Change.SAME:
                    yield from self._roster.receive(arrival.part, now, live=live)
                if change is Change.REWRITTEN:
                    arrival.unbind(source)
                    yield from self.tell(source, "rewritten", "the file was replaced or cut; it is read again")
                if source.header is not None and not arrival.is_bound(source):
                    yield from self._begin(arrival, source, source.header)
                    progress = True
                for event in events:
                    yield from self._take(arrival, source, event)
                progress |= bool(events) or source.reading is not before
        arrival.rest_reserves()
        if arrival.complete:
            yield from self._roster.part_done(arrival.part)

    def examine(self, arrival: Arrival, now: float) -> Iterator[Told]:
        """A whole part whose files have settled: was it read from what stands there now? If not, read it again.

        The assembler cuts every patch anew, and the roster tells which have other pixels than those counted.
        """
        files = arrival.active()
        if not arrival.complete or any(source.settles_in_s(now, self._settle_s) for source in files):
            return
        if arrival.must_be_read_again:
            self._assembler.forget(arrival.part)
            arrival.read_again()
            yield from self.drain(arrival, now, live=False)
        if arrival.complete:
            for source in files:
                yield from self._seal(source, now)

    def _seal(self, source: Source, now: float) -> Iterator[Told]:
        """Note a file as read whole."""
        if source.examined:
            return
        try:
            sha256 = source.sha256(now, self._beat)
        except OSError as error:
            source.retry_after(now + RETRY_S, error.strerror or str(error))
            return
        if sha256 is not None:
            source.examined = True
            yield self.standing(source, "whole", sha256=sha256)

    @staticmethod
    def standing(
        source: Source, outcome: Outcome, *, sha256: str = "", reason: str = "", detail: str = ""
    ) -> FileStanding:
        """What was made of a file, for the ledger."""
        slide = source.placed.part.slide if source.placed else SlideKey("", "")
        size, mtime_ns = source.tail.size, source.tail.mtime_ns
        return FileStanding(source.file_id, size, mtime_ns, outcome, *slide, sha256, reason, detail)

    def look(self, source: Source, now: float, *, header_only: bool) -> tuple[Change, list[Event]]:
        """One visit to a file. Raises FormatError; a file that cannot be opened now is tried again later."""
        try:
            return source.read(
                now,
                self._open_parser,
                self._limits,
                settle_s=self._settle_s,
                budget=self._slice,
                header_only=header_only,
            )
        except OSError as error:
            # A share that hiccups, missing permission, a file cut while it was read: in a while it may be better.
            source.retry_after(now + RETRY_S, error.strerror or str(error))
            return Change.SAME, []

    def _take(self, arrival: Arrival, source: Source, event: Event) -> Iterator[Told]:
        if isinstance(event, Region) and source.reading is not Reading.REFUSED:
            channel = arrival.channels_of(source)[event.plane]
            for cut in self._assembler.add(Chunk(arrival.part, channel, event.y, event.x, event.pixels)):
                item = _with_digest(cut)
                if self._roster.count(item.key, item.digest):
                    if item.rejected is not None and item.fault is not None:
                        yield from self.tell(source, item.rejected, item.fault)
                    yield item

    def _begin(self, arrival: Arrival, source: Source, header: Header) -> Iterator[Told]:
        """Tell the assembler a file's shape. Where the channels disagree, CH2's shape rules, in whatever order."""
        channels = arrival.channels_of(source)
        if header.planes != len(channels):
            error = FormatError("wrong_shape", f"{header.planes} planes where the name promises {len(channels)}")
            yield from self._refuse(arrival, source, error)
            return
        rival = arrival.begun.get(1) if channels == (0,) else None
        shape = (header.height, header.width)
        if rival is None or rival.header is None or (rival.header.height, rival.header.width) == shape:
            yield from self._shape(arrival, source, header)
            return
        self._assembler.forget(arrival.part)
        arrival.unbind(rival)
        yield from self._shape(arrival, source, header)
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
        arrival.unbind(source)
        yield from self.refuse(source, error.reason, error.detail)

    def refuse(self, source: Source, reason: str, detail: str) -> Iterator[Told]:
        """A file that is not read (again) until it changes."""
        source.refuse()
        yield from self.tell(source, reason, detail)
        yield self.standing(source, "refused", reason=reason, detail=detail)

    def tell(self, source: Source, reason: str, detail: str) -> Iterator[Told]:
        """A problem of a file, once for each content."""
        if reason not in source.reported:
            source.reported.add(reason)
            slide = source.placed.part.slide if source.placed else None
            yield Problem(reason, detail, slide, source.file_id, (source.tail.size, source.tail.mtime_ns))


def _with_digest(item: ModelInput) -> ModelInput:
    """The input with 64 bits of its pixels, as SQLite holds them: signed."""
    digest = xxhash.xxh3_64_intdigest(item.pixels.data)
    return replace(item, digest=digest - (1 << 64) if digest >> 63 else digest)
