"""The bytes of one part's files → chunks → network inputs, and what is wrong with them.

It knows how the channels of a part belong together; which files there are, and when to look, is the reader's matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace

import xxhash

from agent.arrivals import Arrival
from agent.errors import FormatError
from agent.formats import Event, Header, Limits, Region
from agent.intake import Problem, Told
from agent.ledger_records import FileStanding, Outcome
from agent.patience import Patience
from agent.roster import Roster
from agent.source import RETRY_S, OpenParser, Reading, Source
from agent.tail import Change
from models.contract import Assembler, Chunk, ModelInput, Part, ShapeError, SlideKey


class Pump:
    """See the module's docstring."""

    def __init__(
        self,
        assembler: Assembler,
        roster: Roster,
        open_parser: OpenParser,
        *,
        limits: Limits,
        patience: Patience,
        slice_bytes: int,
        beat: Callable[[], None],
    ) -> None:
        self._assembler = assembler
        self._roster = roster
        self._open_parser = open_parser
        self._limits = limits
        self._patience = patience
        self._slice = slice_bytes
        self._beat = beat

    def drain(
        self, arrival: Arrival, now: float, *, live: bool, most_turns: float = math.inf
    ) -> Generator[Told, None, bool]:
        """Read the part's files in turns until they give nothing more; `live`: they came since the start.

        True after `most_turns` turns, when they may have more to give.
        """
        turns, progress = 0, True
        while progress:
            if turns >= most_turns and not arrival.complete:
                return True
            turns, progress = turns + 1, False
            for source in arrival.active():
                before, was_whole = source.reading, bool(source.sha256)
                try:
                    change, events = self.look(source, now, header_only=not arrival.paired)
                except FormatError as error:
                    yield from self._refuse(arrival, source, error)
                    progress = True
                    continue
                if source.trouble:
                    yield from self.tell(source, "not_readable", f"{source.trouble}; it is tried again")
                if change is Change.GONE:
                    arrival.stale |= arrival.is_bound(source)
                elif change is Change.REWRITTEN or (change is Change.GREW and before is not Reading.DONE):
                    yield from self._roster.receive(arrival.part, now, live=live)
                if was_whole and not source.sha256:
                    yield self.standing(source, "changed")
                if change is Change.REWRITTEN:
                    arrival.reconcile(source)
                    yield from self.tell(source, "rewritten", "the file was replaced or cut; it is read again")
                elif change is Change.GREW and arrival.is_contradicted:
                    source.restart()  # its header may say another shape by now
                    arrival.reconcile(source)
                    events, progress = [], True
                if any(isinstance(event, Header) for event in events):
                    arrival.unbind(source)  # it is read from its first byte on
                if source.header is not None and not arrival.is_bound(source):
                    yield from self._begin(arrival, source, source.header)
                    progress = True
                for event in events:
                    yield from self._take(arrival, source, event)
                progress |= bool(events) or source.reading is not before
        arrival.rest_reserves()
        if arrival.complete:
            arrival.freed = True
            if (keys := frozenset(self._assembler.planned(arrival.part))) and not arrival.part.is_one_patch:
                yield from self._roster.settle(arrival.part, keys)
            yield from self._roster.part_done(arrival.part)
        return False

    def examine(self, arrival: Arrival, now: float) -> Iterator[Told]:
        """A part whose files have settled: was it read from what stands there now? If not, read it again.

        The assembler cuts every patch anew, and the roster tells which have other pixels than those counted.
        """
        if arrival.examine_in_s(now, self._patience.settle_s) != 0:
            return
        if arrival.must_be_read_again:
            self._assembler.forget(arrival.part)
            arrival.read_again()
            yield from self.drain(arrival, now, live=False)
            yield from self._roster.say_corrected(arrival.part.slide)
        for source in arrival.active():
            if source.tail.quiet_s(now) <= 0 or source.retry_at > now:
                continue  # it changed, or could not be read, this very moment
            source.examined = True
            if arrival.complete and not source.sha256 and (sha256 := self.hash(source, now)) is not None:
                source.sha256, source.noted = sha256, None
                yield self.standing(source, "whole", sha256=sha256)

    def forget(self, part: Part) -> None:
        """Nothing more comes of this part."""
        self._assembler.forget(part)

    def leave(self, arrival: Arrival) -> None:
        """A file of a part that was whole is gone in the middle of another reading, which is given up."""
        self._assembler.forget(arrival.part)
        arrival.rest()

    def hash(self, source: Source, now: float) -> str | None:
        """The file's SHA-256; None when it cannot be told now."""
        try:
            return source.hash(now, self._beat)
        except OSError as error:
            source.retry_after(now + RETRY_S, error.strerror or str(error))
            return None

    @staticmethod
    def standing(
        source: Source, outcome: Outcome, *, sha256: str = "", reason: str = "", detail: str = ""
    ) -> FileStanding:
        """What was made of a file, as it stood at the last visit, for the ledger."""
        slide = source.placed.part.slide if source.placed else SlideKey("", "")
        size, mtime_ns = source.tail.size, source.tail.mtime_ns
        return FileStanding(source.file_id, size, mtime_ns, outcome, *slide, sha256, reason, detail)

    def duplicate(self, source: Source) -> Iterator[Told]:
        """A file whose pixels another one gives; it is not opened."""
        with suppress(OSError):
            stands = source.tail.stands()
            if stands is None or stands == source.noted or (source.sha256 and stands == source.tail.seen):
                return
            source.noted = stands
            if source.reading is Reading.DONE:
                source.restart(at_once=False)
            detail = "another file holds the same part of the slide; this one is read only if that one is lost"
            yield from self.tell(source, "duplicate", detail)
            yield replace(self.standing(source, "duplicate"), size=stands[2], mtime_ns=stands[3])

    def look(self, source: Source, now: float, *, header_only: bool) -> tuple[Change, list[Event]]:
        """One visit to a file. Raises FormatError; a file that cannot be opened now is tried again later."""
        self._beat()  # what is read again may give nothing new for long
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
        if arrival.freed:
            arrival.begin_anew(source)
        arrival.doubt_others(source)
        if not arrival.begun:
            self._assembler.forget(arrival.part)
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

    def set_aside(self, source: Source, reason: str, detail: str, now: float) -> Iterator[Told]:
        """A file that is not read, whatever it holds."""
        if source.reading is not Reading.REFUSED:
            with suppress(OSError):
                source.tail.stamp(now)
            yield from self.refuse(source, reason, detail)
        source.lie()

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
