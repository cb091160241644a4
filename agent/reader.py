"""The READER room: changes in the folder → network inputs and events, newest slide first.

It decides which files to look at and where they belong; agent.pump reads them. It knows no engine and no message, and
never waits: time comes in as an argument, and whoever iterates `poll` sets the pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from agent.backlog import Backlog
from agent.closed_files import ClosedFiles
from agent.formats import Limits
from agent.identity import Naming
from agent.intake import Folder, Problem, Told
from agent.layouts import Layouts
from agent.ledger_records import FileStanding
from agent.mosaics import Mosaics
from agent.patience import Patience
from agent.placing import Placing
from agent.pump import Pump
from agent.roster import Roster
from agent.settling import Settling
from agent.source import OpenParser
from agent.visits import Visits
from models.contract import Assembler, PatchKey, SlideKey

TURN_S = 0.25
"""Longest time that one poll goes on to another file before it looks for changes again."""
MOST_AT_ONCE = 1000
"""Of more changes than these the newest find their place first, and not all in one poll."""


class Reader:
    """See the module's docstring.

    From before a restart: `counted`, patches with their pixels' digests; `finished`, slides that were complete;
    `files`, what was made of which file. Without `examine`, files are taken to be as they were when they were read.
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
        counted: Mapping[PatchKey, int | None] | None = None,
        finished: Iterable[SlideKey] = (),
        files: Iterable[FileStanding] = (),
        examine: bool = True,
        slice_bytes: int = 4 << 20,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._placing = Placing(layouts, naming)
        self._patience = patience
        self._beat = beat
        self._clock = clock
        self._backlog = Backlog()
        self._touched: dict[str, None] = {}
        """Paths that changed and have not found their place yet; the newest come last."""
        self._looked = False
        self._old: set[str] = set()
        """Paths that lay in the folder at the first look and have not been looked at yet."""
        self._folder_missing = False
        self._roster = Roster(assembler, patience, counted or {}, finished)
        pump = Pump(
            assembler,
            self._roster,
            open_parser,
            limits=limits,
            patience=patience,
            slice_bytes=slice_bytes,
            beat=beat,
        )
        self._visits = Visits(
            folder.folder,
            naming,
            self._placing,
            self._roster,
            pump,
            patience,
            ClosedFiles(files),
            Mosaics({key.of_slide for key in counted or {} if key.strip}),
            examine=examine,
        )
        self._settling = Settling(self._visits.settles_in_s)

    def poll(self, now: float) -> Iterator[Told]:
        """What became known: changes, the next files that wait for a look, and what silence says.

        `behind` afterwards: more waits. A poll ends early for changes, so that something new can go first.
        """
        changes = self._folder.poll(now)
        if changes.unavailable and not self._folder_missing:
            yield Problem("folder_unavailable", f"the watched folder cannot be read: {changes.unavailable}")
        self._folder_missing = changes.unavailable is not None
        for path in changes.removed:
            self._touched.pop(path, None)
            self._settling.discard(path)
            self._backlog.discard(path)
            yield from self._visits.removed(path, now, live=path not in self._old)
        yield from self._take_in(changes.touched, now)
        if self._looked:
            self._old.difference_update(changes.touched)  # it grows, although it was not read yet
        elif changes.unavailable is None:
            self._looked = True
            self._old.update(changes.touched)
        for path in self._settling.due(now):
            yield from self._queue(path, now)
        yield from self._work(now)
        if changes.unavailable is None:
            self._roster.excuse(changes.away_s)
            yield from self._roster.silence(now)
        yield from self._placing.tell_waiting(now - self._patience.stall_after_s)

    def wait_s(self, now: float) -> float:
        """Seconds until a poll would find something even without a hint."""
        if self.behind:
            return 0.0
        return min(self._folder.wait_s(now), self._roster.wait_s(now), self._settling.wait_s(now))

    @property
    def behind(self) -> bool:
        """Whether files wait for a look."""
        return bool(self._backlog or self._touched) or self._placing.may_retry

    def _take_in(self, touched: list[str], now: float) -> Iterator[Told]:
        """Paths that changed find their place: at once, unless there are too many."""
        if len(touched) <= MOST_AT_ONCE:
            for path in touched:
                self._touched.pop(path, None)
                yield from self._queue(path, now)
        else:
            newest_last = sorted(touched, key=lambda path: self._folder.modified_ns(path) or 0)
            for path in newest_last:
                self._touched.pop(path, None)
                self._touched[path] = None
        ends_s = self._clock() + TURN_S
        while self._touched and self._clock() < ends_s:
            yield from self._queue(self._touched.popitem()[0], now)

    def _work(self, now: float) -> Iterator[Told]:
        """Look at the files that wait, until the turn is over."""
        ends_s = self._clock() + TURN_S
        while True:
            if not self._backlog:
                for waiting in self._placing.retry():
                    yield from self._queue(waiting, now)
            if (path := self._backlog.take()) is None:
                return
            self._roster.busy = self._backlog.slides
            self._beat()
            live = path not in self._old and not self._backlog.was_overtaken
            yield from self._visits.visit(path, now, live=live)
            looked = self._visits.of(path)
            if path not in self._visits.again and not (looked and looked.trouble):
                self._old.discard(path)
            self._settling.note(path, now)
            while self._visits.again:
                yield from self._queue(self._visits.again.pop(0), now)
            if self._clock() >= ends_s or self._folder.wait_s(now) == 0:
                return

    def _queue(self, path: str, now: float) -> Iterator[Told]:
        """A path that should be looked at: find its place, and let it wait for its turn."""
        self._beat()
        yield from self._visits.meet(path, now)
        if (source := self._visits.of(path)) is not None:
            slide = source.placed.part.slide if source.placed else None
            self._backlog.add(path, slide, self._folder.modified_ns(path))

    def close_patient(self, patient: str | None) -> Iterator[Told]:
        """End a patient (None: every open one) on somebody's word."""
        yield from self._roster.close_patients(None if patient is None else {patient})

    def close(self) -> Iterator[Told]:
        """Nothing more will come: end every patient, and tell which files never found their place."""
        yield from self.close_patient(None)
        yield from self._placing.tell_waiting()

    @property
    def last_byte_s(self) -> float | None:
        """Monotonic seconds of the newest byte; None before the first."""
        return self._roster.last_byte_s
