"""One file on its way to being understood: where its bytes stand, what its parser made of them, how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Parser, Region, Window
from agent.layouts import Placed
from agent.tail import Change, Tail

OpenParser = Callable[[Window, Limits, int | None], Parser | None]
"""agent.formats.detect.open_parser: the parser that claims the file's first bytes; None = need more."""


class Reading(Enum):
    """How far a file has come."""

    GROWING = "growing"
    DONE = "done"
    REFUSED = "refused"
    GONE = "gone"


class Source:
    """A file of the watched folder and its parser. `now` is monotonic seconds, given by the caller."""

    def __init__(self, path: Path, file_id: str, placed: Placed | None, now: float) -> None:
        self.file_id = file_id
        """Pseudonym of the file, for logs and alerts."""
        self.placed = placed
        """Where its pixels belong; None until its tags have told."""
        self.reading = Reading.GROWING
        self.header: Header | None = None
        self.reported: set[str] = set()
        """Reasons already told about this content."""
        self.tail = Tail(path, now)
        self.pixels = 0
        """Pixels decoded so far, all planes."""
        self._parser: Parser | None = None
        self._settled_tried = False
        self._retry_at = -math.inf
        self.trouble = ""
        """Why the last visit could not open or read the file; empty when it could."""

    def read(
        self, now: float, open_parser: OpenParser, limits: Limits, *, settle_s: float, budget: int, header_only: bool
    ) -> tuple[Change, list[Event]]:
        """What changed on disk, and the next events: about `budget` bytes of pixels at most.

        Raises FormatError (once, the file is REFUSED from then on) and OSError (try again later).
        """
        with self.tail.visit(now) as (change, window):
            self.trouble = ""
            if window is None:
                self.reading = Reading.GONE
                return change, []
            if change is Change.REWRITTEN:
                self.reading = Reading.GROWING  # whatever it was: refused content has been replaced
                self.restart()
            if change is not Change.SAME:
                self._settled_tried = False
            if self.reading not in (Reading.GROWING, Reading.GONE):
                return change, []
            self.reading = Reading.GROWING
            try:
                return change, self._events(window, now, open_parser, limits, settle_s, budget, header_only)
            except FormatError:
                self.refuse()
                raise

    def refuse(self) -> None:
        """The file cannot be used: it is no such image, or its shape fits nothing."""
        self.reading = Reading.REFUSED

    def settles_in_s(self, now: float, settle_s: float) -> float | None:
        """Seconds until the file counts as settled; None when that would change nothing."""
        if self.reading is not Reading.GROWING or self._settled_tried:
            return None
        return max(0.0, settle_s - self.tail.quiet_s(now), self._retry_at - now)

    def retry_after(self, moment: float, trouble: str) -> None:
        """The file could not be opened: look again then, even when nothing announces a change."""
        self._retry_at, self.trouble = moment, trouble

    def restart(self, *, at_once: bool = True) -> None:
        """Forget what was read of a usable file: the next visit begins at its first byte.

        With `at_once` False that visit waits for new bytes instead of coming by itself once the file has settled.
        """
        if self.reading in (Reading.GROWING, Reading.DONE):
            self.reading, self.header, self._parser, self.pixels = Reading.GROWING, None, None, 0
            self._settled_tried = not at_once
            self.reported.clear()

    def rest(self) -> None:
        """Nothing to gain here until the file changes."""
        self._settled_tried = True

    def standing(self) -> str:
        """How far a file came, for people."""
        if self.header is None:
            return f"the file ends within its header, after {self.tail.size} bytes"
        total = self.header.height * self.header.width * self.header.planes
        return f"the file holds {self.pixels} of {total} pixels"

    def _events(
        self,
        window: Window,
        now: float,
        open_parser: OpenParser,
        limits: Limits,
        settle_s: float,
        budget: int,
        header_only: bool,
    ) -> list[Event]:
        settled = self.tail.quiet_s(now) >= settle_s
        if self._parser is None:
            self._parser = open_parser(window, limits, self.placed.planes if self.placed else None)
        events: list[Event] = []
        if self._parser is not None and not (header_only and self.header):
            for event in self._parser.advance(window, settled=settled):
                events.append(event)
                if isinstance(event, Header):
                    self.header = event
                    if header_only:
                        return events
                elif isinstance(event, Region):
                    self.pixels += event.pixels.size
                    budget -= event.pixels.nbytes
                    if budget <= 0:
                        return events
                elif isinstance(event, Complete):
                    self.reading, self._parser = Reading.DONE, None
        # All that a settled file can give has been asked for, until it changes again.
        self._settled_tried = settled
        return events
