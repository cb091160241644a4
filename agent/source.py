"""One file on its way to being understood: where its bytes stand, what its parser made of them, how it ended."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Parser, Region, Window
from agent.layouts import Placed
from agent.tail import Change, Tail

OpenParser = Callable[[Window, Limits, int | None], Parser | None]
"""agent.formats.detect.open_parser: the parser that claims the file's first bytes; None = need more."""


HASH_SLICE = 1 << 20


RETRY_S = 5.0
"""A file that cannot be opened or read is tried again after this, seconds."""


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
        self.examined = False
        """Settled, and read from its first byte on since then or unchanged since it was."""
        self.sha256 = ""
        """Of an examined file that was read whole; empty before."""
        self.noted: tuple[int, ...] | None = None
        """How it stood when it was last told to be another file's duplicate."""
        self._read_from: tuple[int, ...] | None = None
        """How the file stood when its reading began, if a later change must show; None if it need not."""
        self._parser: Parser | None = None
        self._fault: FormatError | None = None
        """Why nothing can follow what was given already."""
        self._settled_tried = False
        self._changed_to: tuple[tuple[int, ...], float] | None = None
        """How a refused file stands since it changed, and since when."""
        self._judged_twice: tuple[int, ...] | None = None
        """How a refused file stood when it was read a second time, since it had changed during the first."""
        self._header_doubted: tuple[int, ...] | None = None
        self.caution: int | None = None
        """Where it belongs to a finished slide: so many times as long it must be quiet before it is compared."""
        self.retry_at = -math.inf
        """Not before this moment, since it could not be opened or read."""
        self.trouble = ""
        """Why the last visit could not open or read the file; empty when it could."""

    def read(
        self, now: float, open_parser: OpenParser, limits: Limits, *, settle_s: float, budget: int, header_only: bool
    ) -> tuple[Change, list[Event]]:
        """What changed on disk, and the next events: about `budget` bytes of pixels at most.

        Raises FormatError (once, the file is REFUSED from then on) and OSError (it cannot be opened now). Whatever a
        file gave before its fault is given first; a read that fails is tried again later.
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
                self._settled_tried, self.retry_at = False, -math.inf
                self._doubt()
            if self.reading not in (Reading.GROWING, Reading.GONE):
                return change, []
            self.reading = Reading.GROWING
            events: list[Event] = []
            try:
                for event in self._events(window, now, open_parser, limits, settle_s, budget, header_only):
                    events.append(event)  # noqa: PERF402 - those before a fault are kept
            except OSError as error:
                self.retry_after(now + RETRY_S, error.strerror or str(error))
            except FormatError as error:
                self._fault = error
            if self._fault is not None and not events:
                self.refuse()
                raise self._fault
            return change, events

    def read_header_again(self) -> bool:
        """Begin anew if the file may have changed since its header was read, once for each state of it; True then."""
        if self.is_as_read or self._header_doubted == self.tail.seen:
            return False
        self._header_doubted = self.tail.seen
        self.restart()
        return True

    def refuse(self) -> None:
        """The file cannot be used: it is no such image, or its shape fits nothing.

        If it may have been changed while it was read, that is found out once it has settled.
        """
        self.reading = Reading.REFUSED
        if not self.is_as_read and self._judged_twice != self.tail.seen:
            self._changed_to = self.tail.seen, self.tail.changed_at

    def lie(self) -> None:
        """Whatever comes of a refused file, it is not looked at by itself."""
        self._changed_to = None

    @property
    def is_doubted(self) -> bool:
        """Refused, and to be looked at once more."""
        return self.reading is Reading.REFUSED and self._changed_to is not None

    def settles_in_s(self, now: float, settle_s: float) -> float | None:
        """Seconds until the file counts as settled; None when that would give nothing more to read."""
        if self.reading is Reading.REFUSED and self._changed_to is not None:
            return max(0.0, self._changed_to[1] + settle_s - now, self.retry_at - now)
        if self.reading is not Reading.GROWING or self._settled_tried:
            return None
        return max(0.0, settle_s - self.tail.quiet_s(now), self.retry_at - now)

    def retry_after(self, moment: float, trouble: str) -> None:
        """The file could not be opened: look again then, even when nothing announces a change."""
        self.retry_at, self.trouble = moment, trouble

    def restart(self, *, at_once: bool = True) -> None:
        """Forget what was read of a usable file: the next visit begins at its first byte.

        With `at_once` False that visit waits for new bytes instead of coming by itself once the file has settled.
        """
        if self.reading in (Reading.GROWING, Reading.DONE):
            self.reading, self.header, self.pixels = Reading.GROWING, None, 0
            self._parser = self._fault = None
            self._changed_to = None
            self._doubt()
            self._settled_tried = not at_once
            self.reported.clear()

    def reconsider(self, now: float, settle_s: float) -> bool:
        """Look whether a refused file is another one by now: it is read again once it has settled; True then."""
        stands = self.tail.stands()
        is_same = stands == self.tail.seen
        if stands is None or (is_same and (self.is_as_read or self._judged_twice == stands)):
            self._changed_to = None
            return False
        if self._changed_to is None or self._changed_to[0] != stands:
            self._changed_to = stands, now
        if now - self._changed_to[1] < settle_s:
            return False
        told = self.reported.copy() if is_same else set()
        self.reading, self._judged_twice = Reading.GROWING, stands
        self.restart()
        self.tail.forget()
        self.reported |= told
        return True

    @property
    def is_as_read(self) -> bool:
        """Whether the file is certainly what it was when its reading began."""
        return self._read_from == self.tail.seen

    def come_back(self) -> bool:
        """Whether a file that was gone is there again: it is read from the start."""
        if self.reading is not Reading.GONE or self.tail.stands() is None:
            return False
        self.reading = Reading.GROWING
        self.restart()
        self.tail.forget()
        return True

    def hash(self, now: float, beat: Callable[[], None]) -> str | None:
        """SHA-256 of the file's bytes; None when they are not (any more) those of the last visit. Raises OSError."""
        digest = hashlib.sha256()
        with self.tail.visit(now) as (change, window):
            if window is None:
                self.reading = Reading.GONE
            if change is not Change.SAME or window is None:
                self._doubt()
                return None
            for offset in range(0, window.size, HASH_SLICE):
                digest.update(window.read(offset, min(HASH_SLICE, window.size - offset)))
                beat()
        return digest.hexdigest()

    def rest(self) -> None:
        """Nothing to gain here until the file changes."""
        self._settled_tried = True

    def _doubt(self) -> None:
        self.examined, self.sha256 = False, ""

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
    ) -> Iterator[Event]:
        if self._fault is not None:
            return
        settled = self.tail.quiet_s(now) >= settle_s
        if self._parser is None:
            self._read_from = self.tail.seen if self.tail.shows_changes else None
            self._parser = open_parser(window, limits, self.placed.planes if self.placed else None)
        if self._parser is not None and not (header_only and self.header):
            for event in self._parser.advance(window, settled=settled):
                if isinstance(event, Header):
                    self.header = event
                elif isinstance(event, Region):
                    self.pixels += event.pixels.size
                    budget -= event.pixels.nbytes
                elif isinstance(event, Complete):
                    self.reading, self._parser = Reading.DONE, None
                yield event
                if budget <= 0 or (header_only and self.header):
                    return
        # All that a settled file can give has been asked for, until it changes again.
        self._settled_tried = settled
