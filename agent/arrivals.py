"""One part of a slide arriving (a scan strip, a mosaic, a finished patch): its files and how they pair up.

Rows of both channels are read in step, so that memory holds little more than what the next patches need. CH2's
shape always rules, whichever file came first, so that the answer does not depend on the order of arrival.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agent.source import Reading, Source
from models.contract import Part

CHANNELS = 2
UNFINISHED = 16
"""A part that lacks something must be quiet so many times longer than a whole one before it is read again."""
FREE_READINGS = 2
"""After so many readings from the start each further one must be waited for twice as long, up to DOUBLINGS times."""
DOUBLINGS = 6


@dataclass
class Arrival:
    """The files of one part, by channel; None stands for a file that holds both channels."""

    part: Part
    sources: dict[int | None, list[Source]] = field(default_factory=dict)
    begun: dict[int, Source] = field(default_factory=dict)
    """Channel → the file whose shape the assembler was told."""
    stale: bool = False
    """Patches may have been cut from pixels that are not in the folder any more."""
    freed: bool = False
    """It was whole, and the assembler holds nothing of it any more."""
    readings: int = 0
    """How often it was read again from the start."""

    def add(self, source: Source) -> None:
        """Take a file, once."""
        assert source.placed is not None
        files = self.sources.setdefault(source.placed.channel, [])
        if source not in files:
            files.append(source)

    def active(self) -> list[Source]:
        """The files to read, CH2 first: of several with the same pixels, the first that was not refused or lost."""
        chosen = []
        for channel in sorted(self.sources, key=lambda c: -1 if c is None else c):
            usable = [s for s in self.sources[channel] if s.reading in (Reading.GROWING, Reading.DONE)]
            chosen += usable[:1]
            if channel is None and chosen:
                break  # it holds both channels
        return chosen

    def reserves(self) -> list[Source]:
        """Usable files of which another one holds the same pixels, and is read."""
        active = self.active()
        usable = (source for source in self.files() if source.reading in (Reading.GROWING, Reading.DONE))
        return [source for source in usable if source not in active]

    @property
    def paired(self) -> bool:
        """Both channels are here and their shapes agree: pixels may be read."""
        return len(self.begun) == CHANNELS

    @property
    def complete(self) -> bool:
        """Every segment of both channels has been seen."""
        return self.paired and all(source.reading is Reading.DONE for source in self.begun.values())

    def channels_of(self, source: Source) -> tuple[int, ...]:
        """Channel of each plane of a file."""
        assert source.placed is not None
        return (source.placed.channel,) if source.placed.channel is not None else tuple(range(CHANNELS))

    def is_bound(self, source: Source) -> bool:
        """Whether the assembler was told this file's shape."""
        return any(begun is source for begun in self.begun.values())

    def unbind(self, source: Source) -> None:
        """This file's pixels do not count (any more)."""
        self.stale |= self.is_bound(source)
        self.begun = {channel: begun for channel, begun in self.begun.items() if begun is not source}

    @property
    def is_contradicted(self) -> bool:
        """Whether a file was refused since its shape does not fit."""
        return any(s.reading is Reading.REFUSED and "wrong_shape" in s.reported for s in self.files())

    def reconcile(self, changed: Source) -> None:
        """A file may be another one now: those whose shape did not fit are asked once more."""
        self.unbind(changed)
        for source in self.files():
            if source.reading is Reading.REFUSED and "wrong_shape" in source.reported:
                source.reading = Reading.GROWING
                source.restart()
                source.reported.add("wrong_shape")  # it is told already

    def doubt_others(self, source: Source) -> None:
        """A file's shape contradicts another's, whose header may be another one by now: it is asked once more."""
        assert source.header is not None
        shape = (source.header.height, source.header.width)
        for other in {begun for begun in self.begun.values() if begun is not source}:
            if other.header and (other.header.height, other.header.width) != shape and other.read_header_again():
                self.unbind(other)

    @property
    def must_be_read_again(self) -> bool:
        """Whether files may have changed since their first bytes were read."""
        return self.stale or not all(source.is_as_read for source in self.begun.values())

    def examine_in_s(self, now: float, settle_s: float) -> float | None:
        """Seconds until its files have been quiet for so long that they are compared with what was read; None when
        there is nothing to compare. A file that is written for ever makes each further comparison rarer.
        """
        files = self.active()
        if not self.paired or any(source not in files for source in self.begun.values()):
            return None
        if all(source.sha256 for source in files):
            return None
        if not self.complete and (all(source.examined for source in files) or not self.must_be_read_again):
            return None
        doublings = min(max(0, self.readings - FREE_READINGS), DOUBLINGS)
        patience_s = settle_s * (1 << doublings) * (1 if self.complete else UNFINISHED)
        return max(0.0, *(patience_s - source.tail.quiet_s(now) for source in files), self._retry_in_s(now))

    def _retry_in_s(self, now: float) -> float:
        return max((source.retry_at - now for source in self.active()), default=-math.inf)

    def read_again(self) -> None:
        """Begin anew at every file's first byte."""
        self.begun.clear()
        self.stale = self.freed = False
        self.readings += 1
        for source in self.active():
            source.restart()

    def begin_anew(self, first: Source) -> None:
        """One file of a part that was whole is another one now: the files beside it are read once more, too."""
        self.begun.clear()
        self.stale, self.freed = True, False
        for source in self.active():
            if source is not first:
                source.restart()

    @property
    def is_settled(self) -> bool:
        """Whether no whole part waits to be compared with its files."""
        if any(source.is_doubted for source in self.files()):
            return False
        return not self.complete or all(source.sha256 for source in self.active())

    def rest_reserves(self) -> None:
        """A file whose pixels another one gives is not looked at by itself."""
        for source in self.reserves():
            source.rest()

    def files(self) -> list[Source]:
        """Every file of this part, reserves included."""
        return [source for group in self.sources.values() for source in group]

    def rest(self) -> None:
        """Give up what was read of files that are not complete; if they go on, they are read from the start."""
        self.begun.clear()
        for source in self.files():
            source.restart(at_once=False)

    def why_unformed(self) -> str:
        """Why patches of a part that is not complete will not come, in one word."""
        if any(source.reading is Reading.REFUSED for source in self.files()):
            return "unreadable"
        if any(source.reading is Reading.GONE for source in self.files()):
            return "vanished"
        if len(self.sources) < CHANNELS and None not in self.sources:
            return "missing_channel"
        return "truncated"

    def silent_files(self) -> list[tuple[Source, str]]:
        """Files that are at fault for a part that is not complete and were not told of before, each with why."""
        why = self.why_unformed()
        if why in ("unreadable", "vanished"):
            return []  # told when it happened
        if why == "missing_channel":
            (present,) = self.sources
            absent = f"channel {CHANNELS - 1 - (present or 0)} of strip {self.part.strip} never came"
            return [(source, absent) for source in self.active()]
        growing = [source for source in self.active() if source.reading is Reading.GROWING]
        # A whole file is not read beyond its header while its partner's header is missing: not its fault.
        at_fault = [source for source in growing if source.header is None] or growing
        return [(source, source.standing()) for source in at_fault]
