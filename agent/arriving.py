"""One slide on its way: its parts and their files, and what of it has been told. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from agent.acquisition import Acquisition, State
from agent.arrivals import Arrival
from agent.intake import Problem, Progress
from agent.patience import Patience
from agent.source import Reading
from models.contract import Part, PatchKey, SlideKey

RETELL_S = 60.0
"""While bytes arrive, a slide's progress is told at least this often, so that `current` can be renewed."""
MOST_AT_REST = 256
"""Slides that ended without being complete, or with an unknown number of parts, and may go on where they were; a file
of one from before these makes its slide be read again from the start."""


@dataclass
class ArrivingSlide:
    """The files and parts of one slide, and what was told of it."""

    acquisition: Acquisition
    arrivals: dict[Part, Arrival] = field(default_factory=dict)
    expected: dict[Part, int] = field(default_factory=dict)
    live: bool = False
    """Something arrived after the first look into the folder."""
    told: tuple[State, int, int | None, bool] | None = None
    told_s: float = -math.inf
    """Last byte when it was told."""
    corrected: bool = False
    """A patch has other pixels than those that were counted, and no final was asked for since."""
    again: bool = False
    """Read again after it was finished: nobody is on the table because of it."""
    overtaken: bool = False
    """Somebody new has begun since it did: bytes that come late do not say who is being imaged."""
    ended: bool = False
    """Its patient ended before what was read of it had been compared with its settled files."""

    def limit_s(self, patience: Patience) -> float | None:
        """How long a slide may be silent; None when silence means nothing (any more)."""
        if self.acquisition.closed or self.acquisition.state is not State.RECEIVING:
            return None
        return patience.slide_quiet_s if self.acquisition.may_be_whole else patience.stall_after_s

    def explain(self) -> Iterator[Problem]:
        """What is at fault for a slide that is not complete."""
        acquisition = self.acquisition
        for arrival in self.arrivals.values():
            if arrival.part in acquisition.done:
                continue
            why = arrival.why_unformed()
            for source, detail in arrival.silent_files():
                if why not in source.reported:
                    source.reported.add(why)
                    stands = (source.tail.size, source.tail.mtime_ns)
                    yield Problem(why, detail, arrival.part.slide, source.file_id, stands)
        expected = "an unknown number of" if acquisition.expected is None else str(acquisition.expected)
        detail = f"nothing arrives any more; {len(acquisition.done)} of {expected} parts are complete"
        held = sum(source.tail.size for arrival in self.arrivals.values() for source in arrival.active())
        yield Problem("stalled", detail, acquisition.slide, content=(held, len(acquisition.done)))

    def unformed(self, missing: Callable[[Part], int]) -> dict[str, int]:
        """Why patches of parts that are not whole will not come → how many; `missing` counts those of a part."""
        counts: Counter[str] = Counter()
        for part, arrival in self.arrivals.items():
            if part not in self.acquisition.done:
                counts[arrival.why_unformed()] += missing(part)
        return dict(sorted((+counts).items()))

    def settle(self, part: Part, keys: frozenset[PatchKey], *, retracted: bool) -> None:
        """A part has these patches, which took some back; without any it is none of the slide's."""
        self.corrected |= retracted
        if keys:
            return
        self.arrivals.pop(part, None)
        self.expected.pop(part, None)
        self.acquisition.withdraw(part)

    @property
    def is_settled(self) -> bool:
        """Whether nothing that was read whole waits to be compared with its settled file."""
        return all(arrival.is_settled for arrival in self.arrivals.values())

    @property
    def is_gone(self) -> bool:
        """Whether none of its files is there any more."""
        return all(s.reading is Reading.GONE for arrival in self.arrivals.values() for s in arrival.files())

    @property
    def is_on_table(self) -> bool:
        """Whether what arrives of it says who is being imaged."""
        return not (self.again or self.ended)

    def rest(self) -> list[Part]:
        """Give up what was read of parts that are not whole, and the files of others; returns the former."""
        given_up = [part for part in self.arrivals if part not in self.acquisition.done]
        for part in given_up:
            self.arrivals[part].rest()
        if self.acquisition.state is State.COMPLETE:
            self.arrivals = {part: self.arrivals[part] for part in given_up}
        return given_up

    def tell(self) -> Iterator[Progress]:
        """Where the slide stands, if that is news."""
        acquisition = self.acquisition
        live = self.live and self.is_on_table and not self.overtaken
        now_told = (acquisition.state, len(acquisition.done), acquisition.expected, live)
        if now_told != self.told or acquisition.last_byte_at - self.told_s >= RETELL_S:
            self.told, self.told_s = now_told, acquisition.last_byte_at
            state, done, expected, live = now_told
            yield Progress(acquisition.slide, state, done, expected, acquisition.last_byte_at, live)


def longest_at_rest(slides: Mapping[SlideKey, ArrivingSlide], is_open: Container[str]) -> list[SlideKey]:
    """The first ones, beyond MOST_AT_REST, of patients who are not open: memory must not grow for ever."""
    if len(slides) <= MOST_AT_REST:
        return []
    at_rest = [
        key
        for key, slide in slides.items()
        if key.patient not in is_open and slide.acquisition.closed and slide.is_settled and not slide.again
    ]
    return at_rest[:-MOST_AT_REST]
