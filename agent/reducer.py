"""Batches → predictions → calibrated, counted, exact posteriors. Shared by the daemon and by `score`.

It knows no file, topic or ledger; time does not matter to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agent.acquisition import State
from agent.batching import Batch
from agent.engine import Engine, predict_padded
from agent.engine.isolation import FAILED, Isolation
from agent.errors import AgentError, EngineError
from agent.intake import Progress
from agent.ledger import CountedPatch, FinalRow
from agent.ledger_records import RETRACTED, PartRead
from models.calibration import CalibrationInputError, calibrate
from models.contract import ModelInput, Prediction, SlideKey
from models.domain import Marks, Reference, marks
from models.posterior import Counting, Counts, Posterior, Tally, combine, to_fixed
from models.profile import Profile
from models.registry import MODALITIES

_Answer = tuple[tuple[int, ...], Marks | None]
"""One patch's fixed-point probabilities, and how it is unlike the reference."""


@dataclass
class SlideRecord:
    """What is known of one slide."""

    tally: Tally
    state: State = State.RECEIVING
    done: int = 0
    expected: int | None = None
    unformed: dict[str, int] = field(default_factory=dict)
    """Reason → patches that were announced but never came, at the slide's last closing."""
    again: bool = False
    """It was complete, and is read again: what was counted then stays counted, whatever comes of it now."""
    said: tuple[int, int | None] = (0, None)
    """Parts done and expected in its last final before this start: their files may be gone, their patches count."""
    anew: Tally | None = None
    """Takes the tally's place if the slide, of which only sums were left, can be read again as far as before."""

    def follow(self, progress: Progress) -> None:
        """Take over where the slide stands; what seemed lost may come after all while it is receiving."""
        if progress.state is State.RECEIVING:
            self.unformed = {}
        self.state, self.done, self.expected = progress.state, progress.done, progress.expected
        if self.expected == self.said[1]:
            self.done = max(self.done, self.said[0])


def state_of(records: Iterable[SlideRecord]) -> State:
    """The state of several slides together: the one that is furthest from complete."""
    order = (State.RECEIVING, State.SEEN, State.STALLED, State.ABANDONED, State.COMPLETE)
    states = {record.state for record in records}
    found = next(state for state in order if state in states)
    return State.RECEIVING if found is State.SEEN else found


def _row(item: ModelInput, answer: _Answer | None) -> CountedPatch:
    """A patch as it is counted; without an answer it was one that the engine cannot run."""
    values, borne = answer or (None, None)
    return CountedPatch(item.key, values, None if answer else FAILED, borne, item.digest)


class Reducer:
    """Holds one exact tally per slide; `restored` are the patches that the ledger has already.

    Without a `reference`, or with an engine that gives no embedding, patches are counted but not judged. `self_test`
    and the callables after it: see agent.engine.isolation.
    """

    def __init__(
        self,
        engine: Engine,
        profile: Profile,
        restored: Iterable[CountedPatch] = (),
        reference: Reference | None = None,
        *,
        self_test: Callable[[], object] | None = None,
        beat: Callable[[], None] = lambda: None,
        next_engine: Callable[[AgentError], None] | None = None,
    ) -> None:
        self.engine = engine
        self.profile = profile
        self._reference = reference
        self._isolation = Isolation(self_test, beat, next_engine)
        self.slides: dict[SlideKey, SlideRecord] = {}
        self._of_patient: dict[str, list[SlideKey]] = {}
        self.total = Counts()
        """Patches counted since the start; replaced whole, so that another thread may read it."""
        self.corrected = 0
        """Patches counted since the start that had been counted before, from other pixels."""
        for row in restored:
            self._count(row)

    def resume(self, finals: Iterable[FinalRow]) -> None:
        """Slides stand where their last final before a restart left them, until their files tell more."""
        for row in finals:
            if row.scope == "slide":
                known = row.of_slide in self.slides
                record = self.slide(row.of_slide)
                record.state, record.done, record.expected = State(row.state), row.done, row.expected
                record.said = row.done, row.expected
                tally = json.loads(row.tally)
                said = row.seen
                if record.tally.counts.seen <= said:  # else some that had not come have come since
                    record.unformed = json.loads(row.unformed)
                if not known and said:
                    # Its patches were pruned: what they amounted to still belongs to the patient.
                    counts = Counts(tally["used"], tally["rejected"])
                    judged, borne = tally.get("judged", 0), tally.get("marks", {})
                    record.tally = Tally.frozen(tuple(tally["sums"]), counts, judged, borne)

    def slide(self, key: SlideKey) -> SlideRecord:
        """The slide's record, new when it is not known yet."""
        if key not in self.slides:
            self.slides[key] = SlideRecord(Tally(len(self.profile.classes)))
            self._of_patient.setdefault(key.patient, []).append(key)
        return self.slides[key]

    def reopen(self, key: SlideKey) -> None:
        """A slide that was put away is read again from the start."""
        record = self.slide(key)
        record.again |= record.state is State.COMPLETE
        if record.tally.is_frozen:
            record.anew = Tally(len(self.profile.classes))

    def close(self, key: SlideKey, unformed: dict[str, int]) -> None:
        """Nothing more of a slide comes for now; `unformed`: see SlideRecord."""
        record = self.slide(key)
        record.again &= record.state is not State.COMPLETE
        record.unformed = {} if record.again else unformed
        if record.anew is not None and not record.again:
            is_whole = record.state is State.COMPLETE and record.expected is not None
            if is_whole or record.anew.counts.seen >= record.tally.counts.seen:
                record.tally, record.anew = record.anew, None

    def run(self, batch: Batch) -> list[CountedPatch]:
        """Predict, calibrate, judge and count; returns the patches that are new or corrected.

        A patch that the engine cannot run is rejected as `engine_failed`. When it is the engine that is broken, the
        whole batch is run again on the next; raises EngineError when there is none: then nothing of it is counted.
        """
        rows = [CountedPatch(key, None, reason, None, digest) for key, reason, digest in batch.rejected]
        if batch.inputs:
            x_NCHW = np.stack([timed.item.pixels for timed in batch.inputs])
            answers = self._isolation.run(x_NCHW, self._answers)
            rows += [_row(timed.item, answer) for timed, answer in zip(batch.inputs, answers, strict=True)]
        counted = [(row, counting) for row in rows if (counting := self._count(row))]
        new = [row for row, counting in counted if counting is Counting.NEW]
        why = Counter(row.rejected for row in new if row.rejected is not None)
        self.total = self.total.plus(Counts(len(new) - why.total(), dict(why)))
        self.corrected += len(counted) - len(new)
        return [row for row, _ in counted]

    def settle(self, read: PartRead) -> list[CountedPatch]:
        """A part was read to its end: returns what does not count any more."""
        tally = self._tally(read.part.slide)
        gone = [key for key in tally.of_strip(read.part.strip) if key not in read.keys]
        self.corrected += len(gone)
        for key in gone:
            tally.retract(key)
        return [CountedPatch(key, None, RETRACTED) for key in gone]

    def _answers(self, x_NCHW: NDArray[np.uint16]) -> list[_Answer]:
        prediction = predict_padded(self.engine, x_NCHW)
        values = [to_fixed(p_K) for p_K in self._calibrated(prediction)]
        return list(zip(values, self._marks(x_NCHW, prediction), strict=True))

    def _calibrated(self, prediction: Prediction) -> NDArray[np.float64]:
        """Calibrated class probabilities [N, K]."""
        try:
            if "logits" in prediction:
                return calibrate(prediction["logits"], self.profile.calibration, "logits")
            return calibrate(prediction["probabilities"], self.profile.calibration, "probabilities")
        except CalibrationInputError as error:
            raise EngineError(f"engine {self.engine.name}: {error}") from error

    def _marks(self, x_NCHW: NDArray[np.uint16], prediction: Prediction) -> Sequence[Marks | None]:
        """How each patch is unlike the reference; None for patches that cannot be compared."""
        if self._reference is None or "embedding" not in prediction:
            return [None] * len(x_NCHW)
        statistics_NS = MODALITIES[self.profile.modality].intensity_statistics(self.profile, x_NCHW)
        return marks(self._reference, statistics_NS, prediction["embedding"])

    def of_slide(self, key: SlideKey) -> Posterior:
        """The slide's posterior as it stands."""
        return self.combine([self.slide(key)])

    def of_patient(self, patient: str) -> Posterior:
        """The posterior over all patches of all slides of a patient."""
        return self.combine([record for _, record in self.slides_of(patient)])

    def slides_of(self, patient: str) -> list[tuple[SlideKey, SlideRecord]]:
        """The patient's slides by name."""
        return [(key, self.slides[key]) for key in sorted(self._of_patient.get(patient, ()))]

    def freeze(self, patient: str, *, everything: bool = False) -> bool:
        """A patient ended long ago: keep what the complete slides amount to (of all slides, if `everything`), not the
        single patches. True when single patches are left.
        """
        are_left = False
        for _, record in self.slides_of(patient):
            if everything or (record.state is State.COMPLETE and record.expected is not None):
                record.tally.freeze()
            else:
                are_left = True
        return are_left

    def _count(self, row: CountedPatch) -> Counting:
        tally = self._tally(row.key.of_slide)
        if row.rejected is not None:
            return tally.reject(row.key, row.rejected, row.pixels)
        assert row.values is not None
        return tally.use(row.key, row.values, row.marks, row.pixels)

    def _tally(self, key: SlideKey) -> Tally:
        record = self.slide(key)
        return record.tally if record.anew is None else record.anew

    def combine(self, records: list[SlideRecord]) -> Posterior:
        """The posterior over the patches of these slides; announced patches that never came count as rejected."""
        rule = self.profile.aggregation
        posterior = combine(
            (record.tally for record in records),
            len(self.profile.classes),
            independence=rule.independence,
            mass=rule.interval,
        )
        counts = posterior.counts
        for record in records:
            counts = counts.plus(Counts(0, record.unformed))
        return replace(posterior, counts=counts)
