"""Who is on the table: open patients, their slides and parts, and when each of them ends.

Decides completion: by the format first (all parts seen), by silence second. Pure: time comes in as an argument.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.acquisition import Acquisition, Happening, State
from agent.arrivals import Arrival
from agent.intake import PatientClosed, Problem, Progress, SlideClosed, Told
from agent.source import Reading
from models.contract import Assembler, Part, PatchKey, SlideKey, by_slide

RETELL_S = 60.0
"""While bytes arrive, a slide's progress is told at least this often, so that `current` can be renewed."""


@dataclass
class Patience:
    """How long silence must last, seconds. Plain values, which may be replaced while rooms look at them."""

    settle_s: float = 1.0
    """After this a file counts as settled."""
    stall_after_s: float = 120.0
    """After this an acquisition that lacks something is stalled."""
    slide_quiet_s: float = 20.0
    """After this a slide without a known number of parts is complete."""
    patient_quiet_s: float = 900.0
    """After this a patient has ended."""
    next_ends_patient: bool = True
    """The next patient's first byte ends this one."""


@dataclass
class _Slide:
    acquisition: Acquisition
    arrivals: dict[Part, Arrival] = field(default_factory=dict)
    expected: dict[Part, int] = field(default_factory=dict)
    live: bool = False
    """Something arrived after the first look into the folder."""
    told: tuple[State, int, int | None, bool] | None = None
    told_s: float = -math.inf
    """Last byte when it was told."""


class Roster:
    """See the module's docstring."""

    def __init__(
        self, assembler: Assembler, patience: Patience, counted: Iterable[PatchKey], finished: Iterable[SlideKey]
    ) -> None:
        """`counted` and `finished` come from before a restart; their patients are open again, until silence or the
        next patient closes them, which says nothing twice.
        """
        self._assembler = assembler
        self._patience = patience
        self._counted = {slide: set(keys) for slide, keys in by_slide(counted).items()}
        self._finished = set(finished)
        self._slides: dict[SlideKey, _Slide] = {}
        patients = sorted({key.patient for key in (*self._counted, *self._finished)})
        self._open: dict[str, float | None] = dict.fromkeys(patients)
        """Open patients → monotonic seconds of their last byte (None: before the restart), oldest patient first."""
        self._met = set(patients)
        """Patients ever seen."""
        self._first_look = True
        self.last_byte_s: float | None = None

    def arrival(self, part: Part, now: float) -> Arrival:
        """The part's files so far; a part not seen before joins its slide."""
        slide = self._slides.get(part.slide)
        if slide is None:
            slide = self._slides[part.slide] = _Slide(Acquisition(part.slide, now))
        slide.acquisition.parts.add(part)
        return slide.arrivals.setdefault(part, Arrival(part))

    def count(self, key: PatchKey) -> bool:
        """True the first time that a patch is seen, before a restart included."""
        keys = self._counted.setdefault(key.of_slide, set())
        new = key not in keys
        keys.add(key)
        return new

    def is_finished(self, part: Part) -> bool:
        """Whether nothing of this part needs to be read (any more): its slide is complete."""
        slide = self._slides.get(part.slide)
        if slide is None:
            return part.slide in self._finished
        return slide.acquisition.state is State.COMPLETE and part in slide.acquisition.done

    def receive(self, part: Part, now: float) -> Iterator[Told]:
        """New bytes of a part: its patient is on the table, and the one before may have ended."""
        patient = part.slide.patient
        # Only somebody new ends the patient on the table: not late bytes of an earlier one, and not what lay in the
        # folder already when the agent started.
        if patient not in self._met and not self._first_look and self._patience.next_ends_patient:
            yield from self.close_patients()
        self._met.add(patient)
        self._open[patient] = self.last_byte_s = now
        slide = self._slides[part.slide]
        slide.acquisition.receive(now)
        slide.live |= not self._first_look
        yield from self._tell(slide)

    def expect(self, part: Part, parts: int | None) -> Iterator[Told]:
        """A part's shape says how many parts its slide has; the largest word of a slide's parts counts."""
        slide = self._slides[part.slide]
        if parts is not None:
            slide.expected[part] = parts
            slide.acquisition.expected = max(slide.expected.values())
        yield from self._tell(slide)

    def part_done(self, part: Part) -> Iterator[Told]:
        """Every segment of a part has been seen."""
        slide = self._slides[part.slide]
        if unformed := self._unformed(slide, part):
            # Both files are whole, so every patch must have come out: anything else is a mistake of ours.
            raise AssertionError(f"{len(unformed)} patches of a complete part never came out of the assembler")
        slide.acquisition.done.add(part)
        self._assembler.forget(part)
        if slide.acquisition.all_done and slide.acquisition.state in (State.RECEIVING, State.STALLED):
            slide.acquisition.happen(Happening.ALL_PARTS)
            yield from self._close(slide)
        else:
            yield from self._tell(slide)

    def lost(self, part: Part) -> Iterator[Told]:
        """A file of a part is gone; a slide that has no file left is abandoned."""
        slide = self._slides[part.slide]
        files = [source for arrival in slide.arrivals.values() for source in arrival.files()]
        gone = all(source.reading is Reading.GONE for source in files)
        if gone and slide.acquisition.state is not State.COMPLETE and slide.acquisition.state is not State.ABANDONED:
            slide.acquisition.happen(Happening.REMOVED)
            yield from self._close(slide)

    def silence(self, now: float, *, looked: bool = True) -> Iterator[Told]:
        """What the time that has passed without bytes means; `looked`: the folder could be read before."""
        self._first_look = self._first_look and not looked
        for slide in list(self._slides.values()):
            limit = self._limit_s(slide)
            if limit is not None and slide.acquisition.quiet_s(now) >= limit:
                yield from self._fall_silent(slide)
        for patient, last in self._open.items():
            self._open[patient] = now if last is None else last
        quiet = {
            p for p, last in self._open.items() if last is not None and now - last >= self._patience.patient_quiet_s
        }
        yield from self.close_patients(quiet)

    def wait_s(self, now: float) -> float:
        """Seconds until silence would mean something; infinity when it cannot."""
        slides = [
            limit - slide.acquisition.quiet_s(now)
            for slide in self._slides.values()
            if (limit := self._limit_s(slide)) is not None
        ]
        patients = [last + self._patience.patient_quiet_s - now for last in self._open.values() if last is not None]
        return max(0.0, min([*slides, *patients], default=math.inf))

    def close_patients(self, patients: set[str] | None = None) -> Iterator[Told]:
        """End these patients (None: all): a final for each slide that has none yet, then the patient's own."""
        for patient in [p for p in self._open if patients is None or p in patients]:
            for key, slide in list(self._slides.items()):
                if key.patient != patient:
                    continue
                if not slide.acquisition.closed and slide.acquisition.state is not State.SEEN:
                    yield from self._fall_silent(slide)
                self._put_away(slide)
            del self._open[patient]
            yield PatientClosed(patient)

    def _put_away(self, slide: _Slide) -> None:
        """Free what an ended slide holds; one that lacks something can still go on."""
        acquisition = slide.acquisition
        if acquisition.state is State.COMPLETE and acquisition.expected is not None:
            self._finished.add(acquisition.slide)
            self._counted.pop(acquisition.slide, None)
            del self._slides[acquisition.slide]
            return
        slide.arrivals = {part: a for part, a in slide.arrivals.items() if part not in acquisition.done}
        for part, arrival in slide.arrivals.items():
            self._assembler.forget(part)
            arrival.rest()

    def _limit_s(self, slide: _Slide) -> float | None:
        """How long a slide may be silent; None when silence means nothing (any more)."""
        if slide.acquisition.closed or slide.acquisition.state is not State.RECEIVING:
            return None
        return self._patience.slide_quiet_s if slide.acquisition.may_be_whole else self._patience.stall_after_s

    def _fall_silent(self, slide: _Slide) -> Iterator[Told]:
        acquisition = slide.acquisition
        if acquisition.state is State.RECEIVING:
            acquisition.happen(Happening.ALL_PARTS if acquisition.may_be_whole else Happening.SILENCE)
        if acquisition.state is State.STALLED:
            yield from self._explain(slide)
        yield from self._close(slide)

    def _explain(self, slide: _Slide) -> Iterator[Told]:
        acquisition = slide.acquisition
        for arrival in slide.arrivals.values():
            if arrival.part in acquisition.done:
                continue
            why = arrival.why_unformed()
            for source, detail in arrival.silent_files():
                if why not in source.reported:
                    source.reported.add(why)
                    yield Problem(why, detail, arrival.part.slide, source.file_id)
        expected = "an unknown number of" if acquisition.expected is None else str(acquisition.expected)
        detail = f"nothing arrives any more; {len(acquisition.done)} of {expected} parts are complete"
        yield Problem("stalled", detail, acquisition.slide)

    def _close(self, slide: _Slide) -> Iterator[Told]:
        slide.acquisition.closed = True
        yield from self._tell(slide)
        unformed: Counter[str] = Counter()
        for arrival in slide.arrivals.values():
            if arrival.part not in slide.acquisition.done:
                missing = self._unformed(slide, arrival.part)
                unformed.update({arrival.why_unformed(): len(missing)} if missing else {})
        yield SlideClosed(slide.acquisition.slide, dict(sorted(unformed.items())))

    def _unformed(self, slide: _Slide, part: Part) -> list[PatchKey]:
        """Patches of a part's grid that have not come out."""
        counted = self._counted.get(slide.acquisition.slide, set())
        return [key for key in self._assembler.planned(part) if key not in counted]

    def _tell(self, slide: _Slide) -> Iterator[Told]:
        acquisition = slide.acquisition
        now_told = (acquisition.state, len(acquisition.done), acquisition.expected, slide.live)
        if now_told != slide.told or acquisition.last_byte_at - slide.told_s >= RETELL_S:
            slide.told, slide.told_s = now_told, acquisition.last_byte_at
            state, done, expected, live = now_told
            yield Progress(acquisition.slide, state, done, expected, acquisition.last_byte_at, live)
