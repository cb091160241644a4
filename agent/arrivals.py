"""One part of a slide arriving (a scan strip, a mosaic, a finished patch): its files and how they pair up.

Rows of both channels are read in step, so that memory holds little more than what the next patches need. CH2's
shape always rules, whichever file came first, so that the answer does not depend on the order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.source import Reading, Source
from models.contract import Part

CHANNELS = 2


@dataclass
class Arrival:
    """The files of one part, by channel; None stands for a file that holds both channels."""

    part: Part
    sources: dict[int | None, list[Source]] = field(default_factory=dict)
    begun: dict[int, Source] = field(default_factory=dict)
    """Channel → the file whose shape the assembler was told."""
    stale: bool = False
    """Patches may have been cut from pixels that are not in the folder any more."""

    def add(self, source: Source) -> bool:
        """Take a file, once; True when another usable file holds the same pixels (this one is kept as a reserve)."""
        assert source.placed is not None
        files = self.sources.setdefault(source.placed.channel, [])
        if source not in files:
            files.append(source)
        return source.reading is Reading.GROWING and source not in self.active()

    def active(self) -> list[Source]:
        """The files to read, CH2 first: of several with the same pixels, the first that was not refused or lost."""
        chosen = []
        for channel in sorted(self.sources, key=lambda c: -1 if c is None else c):
            usable = [s for s in self.sources[channel] if s.reading in (Reading.GROWING, Reading.DONE)]
            chosen += usable[:1]
        return chosen

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
    def must_be_read_again(self) -> bool:
        """A whole part whose files may have changed while they were read."""
        return self.stale or not all(source.is_as_read for source in self.begun.values())

    def read_again(self) -> None:
        """Begin anew at every file's first byte."""
        self.begun.clear()
        self.stale = False
        for source in self.active():
            source.restart()

    def rest_reserves(self) -> None:
        """A file whose pixels another one gives is not looked at by itself."""
        active = self.active()
        for source in self.files():
            if source not in active:
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
