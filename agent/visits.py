"""One look at one file: where it belongs, what is new in it, whether it still is what was read.

When to look at which file is the reader's matter, its bytes are agent.pump's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import structlog

from agent.arrivals import Arrival
from agent.closed_files import ClosedFiles
from agent.errors import FormatError
from agent.identity import Naming
from agent.intake import SlideReopened, Told
from agent.late_files import LateFiles
from agent.layouts import IMAGES, Misnumbered, Placed, Unknown, Waiting, may_be_image
from agent.mosaics import Mosaics
from agent.patience import Patience
from agent.placing import Placing
from agent.pump import Pump
from agent.roster import Roster
from agent.source import RETRY_S, Reading, Source
from models.contract import Part

MOST_TURNS = 4
"""So many slices are read of a part's files at one look; then something newer may go first."""
REPETITION = "this slide is here as scan strips or patches, too: the mosaic shows the same tissue and is not counted"
MOST_SOURCES = 1000
"""So many files are remembered before it is looked which of them need not be."""


class Visits:
    """See the module's docstring. Without `examine`, files are taken to be as they were when they were read."""

    def __init__(
        self,
        folder: Path,
        naming: Naming,
        placing: Placing,
        roster: Roster,
        pump: Pump,
        patience: Patience,
        closed: ClosedFiles,
        mosaics: Mosaics,
        *,
        examine: bool,
    ) -> None:
        self._folder = folder
        self._naming = naming
        self._placing = placing
        self._roster = roster
        self._pump = pump
        self._patience = patience
        self._closed = closed
        self._late_files = LateFiles(closed, roster, pump, patience, examine=examine)
        self._examine = examine
        self._mosaics = mosaics
        self._sources: dict[str, Source] = {}
        self._most_sources = MOST_SOURCES
        self.again: list[str] = []
        """Paths that a look showed to need another one; whoever looks takes them out."""
        self._log = structlog.get_logger("reader")

    def of(self, path: str) -> Source | None:
        """The file under a path; None for one that is no image, not placed yet, or done with."""
        return self._sources.get(path)

    def settles_in_s(self, path: str, now: float) -> float:
        """Seconds until a file that has not changed any more counts as settled; infinity when that means nothing."""
        source = self._sources.get(path)
        if source is None:
            return math.inf
        settle_s = self._patience.settle_s
        waits = [source.settles_in_s(now, settle_s if source.caution is None else settle_s * source.caution)]
        if self._examine and source.placed and (arrival := self._roster.held(source.placed.part)):
            waits.append(arrival.examine_in_s(now, settle_s))
        return min((wait for wait in waits if wait is not None), default=math.inf)

    def meet(self, path: str, now: float) -> Iterator[Told]:
        """A path that nobody knows yet: where does it belong?"""
        if path in self._sources:
            return
        place = self._placing.by_name(path, now)
        if isinstance(place, Misnumbered):
            yield from self._placing.misnumbered(path, place)
        elif isinstance(place, Placed) or (isinstance(place, Unknown) and may_be_image(PurePosixPath(path))):
            placed = place if isinstance(place, Placed) else None
            self._sources[path] = Source(self._folder / path, self._naming.of("file", path), placed, now)
            self._spare_memory()
            if placed is not None:
                yield from self._meet_part(placed.part)

    def visit(self, path: str, now: float, *, live: bool) -> Iterator[Told]:
        """Everything that is new in a file; `live`: it came while the agent ran."""
        source = self._sources.get(path)
        if source is None:
            return
        if source.placed is None:
            yield from self._place_by_tags(path, source, now, live)
        if source.placed is None:
            return
        if self._mosaics.is_repetition(source.placed.part):
            yield from self._pump.set_aside(source, "mixed_kinds", REPETITION, now)
            return
        if self._roster.is_finished(source.placed.part) and self._roster.held(source.placed.part) is None:
            yield from self._late(path, source, now)
            return
        self._reconsider(source, now)
        arrival = self._roster.arrival(source.placed.part, now)
        yield from self._welcome_back(arrival, source)
        arrival.add(source)
        for reserve in arrival.reserves():
            yield from self._pump.duplicate(reserve)
        if (yield from self._pump.drain(arrival, now, live=live, most_turns=MOST_TURNS)):
            self.again.append(path)
            return
        if self._examine:
            yield from self._pump.examine(arrival, now)
            self._close_examined(arrival)

    def _meet_part(self, part: Part) -> Iterator[Told]:
        """A part of a slide, by its name or tags; the slide's mosaic does not count (any more) because of it."""
        mosaic = self._mosaics.meet(part)
        if mosaic is not None:
            self._pump.forget(mosaic)
            yield from self._roster.settle(mosaic, frozenset())
            self.again += [path for path, of in self._sources.items() if of.placed and of.placed.part == mosaic]

    def removed(self, path: str, now: float, *, live: bool) -> Iterator[Told]:
        """A file is gone."""
        self._placing.forget(path)
        self._closed.forget(path)
        source = self._sources.get(path)
        if source is None:
            return
        part = source.placed.part if source.placed else None
        if part is None or not self._holds(source):
            del self._sources[path]
        if part is None:
            return
        source.reading, arrival = Reading.GONE, self._roster.held(part)
        if self._roster.is_whole(part) or self._roster.is_finished(part):
            if arrival is not None and not arrival.freed:
                self._pump.leave(arrival)
                yield from self._pump.drain(arrival, now, live=live)  # a copy may serve
            return
        yield from self._pump.tell(source, "vanished", "the file was removed before it was complete")
        if arrival is not None:
            arrival.stale |= arrival.is_bound(source)
            yield from self._roster.lost(part)
            yield from self._pump.drain(arrival, now, live=live)  # a copy may serve

    def _late(self, path: str, source: Source, now: float) -> Iterator[Told]:
        """A file of a slide that is finished: if it is not as it was then, the whole slide is read again."""
        assert source.placed is not None
        slide = source.placed.part.slide
        changed = yield from self._late_files.judge(path, source, now)
        if changed is not None:
            del self._sources[path]
        if changed:
            yield SlideReopened(slide)
            self._roster.reopen(slide, now)
            of_slide = {p for p, s in self._sources.items() if s.placed and s.placed.part.slide == slide}
            self.again += sorted({path, *of_slide, *self._closed.reopen(slide)})
            for other in of_slide:
                del self._sources[other]

    def _holds(self, source: Source) -> bool:
        """Whether a file still belongs to a part that is held."""
        assert source.placed is not None
        arrival = self._roster.held(source.placed.part)
        return arrival is not None and source in arrival.files()

    def _close_examined(self, arrival: Arrival) -> None:
        """What is certain needs no look until it changes."""
        for source in arrival.files():
            path = source.tail.path.relative_to(self._folder).as_posix()
            if not source.sha256:
                self._closed.forget(path)
            else:
                stamp = source.tail.size, source.tail.mtime_ns
                self._closed.close(path, arrival.part.slide, stamp, source.sha256)

    def _spare_memory(self) -> None:
        """Forget files of finished slides, of which `_closed` knows enough, or which are not there any more."""
        if len(self._sources) < self._most_sources:
            return
        for path, source in list(self._sources.items()):
            is_over = source.placed and source.reading in (Reading.DONE, Reading.GONE)
            if is_over and not self._holds(source):
                del self._sources[path]
        self._most_sources = max(MOST_SOURCES, 2 * len(self._sources))

    def _welcome_back(self, arrival: Arrival, source: Source) -> Iterator[Told]:
        """A file that was gone and is there again counts from its first byte on."""
        with suppress(OSError):  # it is asked for again when the folder tells of it
            was_whole = bool(source.sha256)
            if source.come_back():
                arrival.unbind(source)
                if was_whole:
                    yield self._pump.standing(source, "changed")

    def _reconsider(self, source: Source, now: float) -> None:
        """A refused file that has changed since is read again, once it has settled."""
        if source.reading is Reading.REFUSED:
            try:
                source.reconsider(now, self._patience.settle_s)
            except OSError as error:
                source.retry_after(now + RETRY_S, error.strerror or str(error))

    def _place_by_tags(self, path: str, source: Source, now: float, live: bool) -> Iterator[Told]:
        """No rule knows the name: look whether it is an image, and whether its tags tell where it belongs."""
        self._reconsider(source, now)
        try:
            self._pump.look(source, now, header_only=True)
        except FormatError as error:
            if PurePosixPath(path).suffix.lower() in IMAGES:
                detail = f"{error.detail}; no naming rule knows its name either"
                yield from self._pump.refuse(source, error.reason, detail)
            else:
                self._log.info("ignored", file=source.file_id, why=error.reason)
            return
        if source.header is None:
            return
        place = self._placing.by_tags(path, source.header.tags, source.header.planes, now)
        if isinstance(place, Waiting):
            return
        if isinstance(place, Placed):
            source.placed = place
            yield from self._meet_part(place.part)
            if not self._roster.is_finished(place.part):
                self._roster.arrival(place.part, now)
                yield from self._roster.receive(place.part, now, live=live)
            return
        reason, detail = "unknown_name", "no naming rule and no tag places this image"
        if isinstance(place, Misnumbered):
            reason, detail = "misnumbered", place.detail
        yield from self._pump.refuse(source, reason, detail)
