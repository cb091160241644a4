"""Who is on the table: open patients, their slides and parts, and when each of them ends.

Decides completion: by the format first (all parts seen), by silence second. Pure: time comes in as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from agent.acquisition import Acquisition, Happening, State
from agent.arrivals import Arrival
from agent.arriving import ArrivingSlide, longest_at_rest
from agent.counted import Counted
from agent.intake import PatientClosed, SlideClosed, Told
from agent.ledger_records import PartRead
from agent.patience import Patience
from models.contract import Assembler, Part, PatchKey, SlideKey
from models.posterior import Counting


class Roster:
    """See the module's docstring."""

    def __init__(
        self,
        assembler: Assembler,
        patience: Patience,
        counted: Mapping[PatchKey, int | None],
        finished: Iterable[SlideKey],
    ) -> None:
        """`counted` (pixels' digests) and `finished` are from before a restart: their patients are open again, until
        silence or the next patient closes them, which says nothing twice."""
        self._assembler = assembler
        self._patience = patience
        self._counted = Counted(counted)
        self._finished = set(finished)
        self._pruned = self._finished - self._counted.slides
        """Finished slides of which no patch is kept any more."""
        self._slides: dict[SlideKey, ArrivingSlide] = {}
        patients = sorted({slide.patient for slide in self._counted.slides | self._finished})
        self._open: dict[str, float | None] = dict.fromkeys(patients)
        """Open patients → monotonic seconds of their last byte (None: before the restart), oldest patient first."""
        self._met = set(patients)
        """Patients ever seen."""
        self._succeeded: set[str] = set()
        """Open patients after whom another one has begun."""
        self.busy: set[SlideKey] = set()
        """Slides of which files wait to be looked at: their silence says nothing."""
        self.last_byte_s: float | None = None

    def arrival(self, part: Part, now: float) -> Arrival:
        """The part's files so far; a part not seen before joins its slide."""
        slide = self._slides.get(part.slide)
        if slide is None:
            slide = self._slides[part.slide] = ArrivingSlide(Acquisition(part.slide, now))
        slide.acquisition.parts.add(part)
        return slide.arrivals.setdefault(part, Arrival(part))

    def count(self, key: PatchKey, digest: int | None = None) -> Counting:
        """Whether a patch is new, the same as before (also before a restart), or has other pixels now."""
        counting = self._counted.count(key, digest)
        self._slides[key.of_slide].corrected |= counting is Counting.CORRECTED
        return counting

    def is_pruned(self, slide: SlideKey) -> bool:
        """Whether a finished slide is so old that its patches are not kept any more."""
        return slide in self._pruned

    def held(self, part: Part) -> Arrival | None:
        """The part's files, as long as they are held."""
        slide = self._slides.get(part.slide)
        return None if slide is None else slide.arrivals.get(part)

    def is_whole(self, part: Part) -> bool:
        """Whether every segment of a part has been seen."""
        slide = self._slides.get(part.slide)
        return slide is not None and part in slide.acquisition.done

    def reopen(self, key: SlideKey, now: float) -> None:
        """A finished slide is read again from the start; its patches stay counted."""
        self._finished.discard(key)
        before = self._slides.pop(key, None)
        for part in before.arrivals if before else ():
            self._assembler.forget(part)
        self._slides[key] = ArrivingSlide(Acquisition(key, now), again=True)

    def is_finished(self, part: Part) -> bool:
        """Whether nothing of this part needs to be read (any more): its slide is complete."""
        slide = self._slides.get(part.slide)
        if slide is None:
            return part.slide in self._finished
        return slide.acquisition.state is State.COMPLETE and part in slide.acquisition.done

    def receive(self, part: Part, now: float, *, live: bool) -> Iterator[Told]:
        """New bytes of a part: its patient is on the table, and the one before may have ended.

        `live`: they came while the agent ran; what lay in the folder already may be long over.
        """
        patient = part.slide.patient
        # Only somebody new ends the patient on the table, not late bytes of an earlier one.
        if patient not in self._met and live and self._patience.next_ends_patient:
            self._succeeded |= self._open.keys()
            for key, slide in self._slides.items():
                slide.overtaken |= key.patient != patient
            yield from self._close_succeeded()
        self._met.add(patient)
        slide = self._slides[part.slide]
        slide.ended &= slide.acquisition.state is State.COMPLETE
        slide.acquisition.receive(now)
        if slide.is_on_table:
            self._open[patient] = self.last_byte_s = now
            slide.live |= live
        yield from slide.tell()

    def expect(self, part: Part, parts: int | None) -> Iterator[Told]:
        """A part's shape says how many parts its slide has; the largest word of a slide's parts counts."""
        slide = self._slides[part.slide]
        if parts is not None:
            slide.expected[part] = parts
            slide.acquisition.expect(max(slide.expected.values()))
        yield from slide.tell()

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
            yield from slide.tell()

    def settle(self, part: Part, keys: frozenset[PatchKey]) -> Iterator[Told]:
        """A part has these patches, and no others of an older shape; without any it is no part of its slide."""
        if (slide := self._slides.get(part.slide)) is not None:
            slide.settle(part, keys, retracted=self._counted.retract(part.slide, part.strip, keys))
        yield PartRead(part, keys)

    def say_corrected(self, key: SlideKey) -> Iterator[Told]:
        """Patches were corrected after a final had been asked for: another one is due."""
        slide = self._slides[key]
        if slide.corrected and slide.acquisition.closed:
            yield from self._close(slide)

    def lost(self, part: Part) -> Iterator[Told]:
        """A file of a part is gone; a slide that has no file left is abandoned."""
        slide = self._slides[part.slide]
        if slide.is_gone and slide.acquisition.state not in (State.COMPLETE, State.ABANDONED):
            slide.acquisition.happen(Happening.REMOVED)
            yield from self._close(slide)

    def excuse(self, away_s: float) -> None:
        """For so long the folder was away or did not answer: what could not be seen was no silence."""
        for slide in self._slides.values():
            slide.acquisition.last_byte_at += away_s
        self._open = {p: None if last is None else last + away_s for p, last in self._open.items()}

    def silence(self, now: float) -> Iterator[Told]:
        """What the time that has passed without bytes means, except for what still waits to be looked at."""
        yield from self._close_succeeded()
        for key, slide in list(self._slides.items()):
            limit, quiet_s = slide.limit_s(self._patience), slide.acquisition.quiet_s(now)
            if limit is not None and quiet_s >= limit and key not in self.busy:
                yield from self._fall_silent(slide)
            is_over = not slide.is_on_table and slide.acquisition.closed and slide.is_settled
            if is_over and (quiet_s >= self._patience.patient_quiet_s or not slide.again):
                self._put_away(slide)
        for key in longest_at_rest(self._slides, self._open):
            self._finish(key)
        self._open = {p: now if last is None else last for p, last in self._open.items()}
        quiet = {
            p for p, last in self._open.items() if last is not None and now - last >= self._patience.patient_quiet_s
        }
        yield from self.close_patients(quiet - self._busy_patients())

    def _busy_patients(self) -> set[str]:
        """Those of whom more is to be said soon: files of theirs wait, or a slide of theirs is being read again."""
        again = {key for key, slide in self._slides.items() if slide.again and slide.limit_s(self._patience)}
        return {slide.patient for slide in again | self.busy}

    def _close_succeeded(self) -> Iterator[Told]:
        """Those after whom somebody new has begun, as soon as everything of theirs has been read."""
        ready = self._succeeded - self._busy_patients()
        self._succeeded -= ready
        yield from self.close_patients(ready)

    def wait_s(self, now: float) -> float:
        """Seconds until silence would mean something; infinity when it cannot."""
        slides = [
            limit - slide.acquisition.quiet_s(now)
            for slide in self._slides.values()
            if (limit := slide.limit_s(self._patience)) is not None
        ]
        patients = [last + self._patience.patient_quiet_s - now for last in self._open.values() if last is not None]
        return max(0.0, min([*slides, *patients], default=math.inf))

    def close_patients(self, patients: set[str] | None = None) -> Iterator[Told]:
        """End these patients (None: all): a final for each slide that has none yet, then the patient's own."""
        for patient in [p for p in self._open if patients is None or p in patients]:
            for key, slide in list(self._slides.items()):
                if key.patient != patient or (slide.again and not slide.acquisition.closed):
                    continue
                if not slide.acquisition.closed and slide.acquisition.state is not State.SEEN:
                    yield from self._fall_silent(slide)
                slide.ended = not slide.is_settled
                if not slide.ended:
                    self._put_away(slide)
            del self._open[patient]
            yield PatientClosed(patient)

    def _put_away(self, slide: ArrivingSlide) -> None:
        """Free what an ended slide holds; one that lacks something can still go on."""
        slide.ended = False
        if slide.acquisition.state is State.COMPLETE and slide.acquisition.expected is not None:
            self._finish(slide.acquisition.slide)
            return
        for part in slide.rest():
            self._assembler.forget(part)

    def _finish(self, key: SlideKey) -> None:
        """None of its files needs a look before one of them changes."""
        self._finished.add(key)
        self._counted.forget(key)
        for part in self._slides.pop(key).acquisition.parts:
            self._assembler.forget(part)

    def _fall_silent(self, slide: ArrivingSlide) -> Iterator[Told]:
        acquisition = slide.acquisition
        if acquisition.state is State.RECEIVING:
            acquisition.happen(Happening.ALL_PARTS if acquisition.may_be_whole else Happening.SILENCE)
        if acquisition.state is State.STALLED:
            yield from slide.explain()
        yield from self._close(slide)

    def _close(self, slide: ArrivingSlide) -> Iterator[Told]:
        slide.acquisition.closed = True
        yield from slide.tell()
        slide.corrected = False
        yield SlideClosed(slide.acquisition.slide, slide.unformed(lambda part: len(self._unformed(slide, part))))
        if slide.acquisition.slide.patient not in self._open:
            yield PatientClosed(slide.acquisition.slide.patient)  # what was said of the patient may be corrected, too

    def _unformed(self, slide: ArrivingSlide, part: Part) -> list[PatchKey]:
        """Patches of a part's grid that have not come out."""
        return self._counted.missing(slide.acquisition.slide, self._assembler.planned(part))
