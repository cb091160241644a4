"""Promises of the ENGINE room: worker, reducer and reporter together, with an engine that answers at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.acquisition import State
from agent.batching import Batch, Rejected, Timed
from agent.ended import KEPT_INCOMPLETE, KEPT_PATIENTS, EndedPatients
from agent.engine import Engine
from agent.errors import AgentError, EngineError, FormatError
from agent.handover import CancelToken, Handover
from agent.intake import PatientClosed, Problem, Progress, SlideClosed
from agent.ledger import CountedPatch, FinalRow, Record
from agent.ledger_records import RETRACTED, PartRead
from agent.measures import EngineMeasures
from agent.messages import EngineRef
from agent.reducer import Reducer
from agent.reporter import LOOK_AT, Reporter, Speaker
from agent.topics import CURRENT_EXPIRY_S, Message, Topics
from agent.worker import RENEW_S, Work, Worker
from models.contract import ModelInput, Part, PatchKey, Prediction, SlideKey
from models.domain import MARKS, Marks, Reference, marks
from models.posterior import to_fixed
from models.profile import LoadedProfile
from models.srh.intensity import intensity_statistics
from tests.fakes import FakeEngine, fake_profile, fake_reference

SLIDE = SlideKey("P", "S")
PROFILE = LoadedProfile(
    fake_profile(), "ab" * 32, b"", np.zeros((1, 2, 300, 300), np.uint16), np.zeros((1, 4), np.float32)
)
ALWAYS_S = 0.0
NEVER_S = 1e9


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class EngineRoom:
    """A worker between two hand-overs; `work` runs it to the end of what it is given."""

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        restored: Sequence[CountedPatch] = (),
        finals: Sequence[FinalRow] = (),
        interval_s: float = ALWAYS_S,
        reference: Reference | None = None,
        self_test: Callable[[], object] | None = None,
        next_engine: Callable[[AgentError], None] | None = None,
    ) -> None:
        self.clock = Clock()
        self.beats = 0
        self.measures = EngineMeasures()
        self.engine = engine or FakeEngine()
        self.reducer = Reducer(
            self.engine,
            PROFILE.spec,
            restored,
            reference,
            self_test=self_test,
            beat=self._beat,
            next_engine=next_engine,
        )
        self.reducer.resume(finals)
        self.speaker = Speaker(
            "session",
            Topics("srh/v1", "site", "scope"),
            PROFILE,
            EngineRef(name="fake", precision="fp32"),
            lambda: datetime(2026, 1, 2, tzinfo=UTC),
        )
        self.reporter = Reporter(self.reducer, self.speaker, finals)
        self._times: list[float] = []
        self._interval_s = interval_s
        self._token = CancelToken()
        self.records: list[Record] = []

    def work(self, *works: Work, seconds: Sequence[float] = ()) -> list[Record]:
        """Take these in, as the worker's thread does, and return the records that came of them.

        With `seconds`, each is taken in so many seconds after the first.
        """
        self._times = [self.clock.now + later for later in seconds]
        inbox: Handover[Work] = Handover("work", len(works) + 1, self._token)
        outbox: Handover[Record] = Handover("records", 10 * len(works) + 10, self._token)
        for work in works:
            inbox.put(work)
        inbox.close()
        self.worker = Worker(
            inbox,
            outbox,
            self.reducer,
            self.reporter,
            PROFILE.sha256,
            interval_s=self._interval_s,
            beat=self._beat,
            clock=self.clock,
            wall=lambda: datetime(2026, 1, 2, 0, 0, 10, tzinfo=UTC),
            measures=self.measures,
        )
        self.worker.run()
        records = []
        while not outbox.ended:
            record = outbox.get()
            assert record is not None
            records.append(record)
        self.records += records
        return records

    def said(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of one kind so far, in order."""
        return [json.loads(m.payload) for record in self.records for m in record.messages if m.kind == kind]

    def rows(self) -> list[CountedPatch]:
        """Counted patches so far."""
        return [row for record in self.records for row in record.patches]

    def finals(self) -> list[FinalRow]:
        """Finals so far."""
        return [row for record in self.records for row in record.finals]

    def _beat(self) -> None:
        self.beats += 1
        if self._times:
            self.clock.now = self._times.pop(0)


def patch(number: int, slide: SlideKey = SLIDE) -> ModelInput:
    """A patch of noise, the same for the same number."""
    rng = np.random.default_rng(number)
    key = PatchKey(slide.patient, slide.slide, 0, 300 * number, 0)
    return ModelInput(key, rng.integers(0, 60_000, (2, 300, 300), np.uint16))


def batch(
    numbers: Iterable[int], rejected: Iterable[tuple[int, str]] = (), slide: SlideKey = SLIDE, seen_s: float = 99.0
) -> Batch:
    """Patches by number and rejections by number and reason."""
    inputs = tuple(Timed(patch(number, slide), seen_s) for number in numbers)
    return Batch(inputs, tuple(Rejected(patch(number, slide).key, why) for number, why in rejected))


def progress(state: State, done: int = 0, expected: int | None = 2, slide: SlideKey = SLIDE) -> Progress:
    """Where the slide stands."""
    return Progress(slide, state, done, expected, 99.0)


def slow_posterior(numbers: Iterable[int]) -> NDArray[np.float64]:
    """The mean of the patches' softmax probabilities, one patch at a time."""
    engine = FakeEngine(batch_size=1)
    rows = []
    for number in sorted(set(numbers)):
        logits = engine.predict(patch(number).pixels[np.newaxis])["logits"][0].astype(np.float64)
        rows.append(np.exp(logits) / np.exp(logits).sum())
    mean: NDArray[np.float64] = np.mean(rows, axis=0)
    return mean


# Posteriors


def test_a_strip_of_another_shape_takes_back_what_it_has_no_more() -> None:
    """Patches of other places count no more, in the posterior and in the ledger; those of other strips do."""
    room = EngineRoom()
    room.work(batch(range(4)), Batch((), (Rejected(PatchKey(*SLIDE, 1, 0, 0), "empty"),)))
    kept = frozenset(patch(number).key for number in (0, 1))
    (record,) = room.work(PartRead(Part(SLIDE, "strip", 0), kept))
    assert {row.key: row.rejected for row in record.patches} == {patch(n).key: RETRACTED for n in (2, 3)}
    last = room.said("slide.posterior")[-1]
    assert last["counts"] == {"seen": 3, "used": 2, "rejected": {"empty": 1}}
    assert last["probabilities"] == pytest.approx(slow_posterior(range(2)))
    assert room.reducer.corrected == 2


def test_a_posterior_is_the_mean_of_its_patches() -> None:
    """Batches of several sizes, with padding, give the mean of all patches' probabilities."""
    room = EngineRoom()
    room.work(batch(range(3)), batch(range(3, 10)), batch([10]))
    (*_, last) = room.said("slide.posterior")
    np.testing.assert_allclose(last["probabilities"], slow_posterior(range(11)), atol=1e-9)
    assert last["counts"] == {"seen": 11, "used": 11, "rejected": {}}
    assert last["predicted"] == PROFILE.spec.classes[int(np.argmax(last["probabilities"]))]
    assert last["confidence"] == max(last["probabilities"])
    assert last["low_tissue"] is True


@settings(max_examples=12, deadline=None)
@given(st.permutations([*range(8), 0, 1, 7]), st.integers(1, 5))
def test_order_repetition_and_batching_change_no_bit(numbers: list[int], size: int) -> None:
    """Patches in any order, some twice, in batches of any size: the same bits, and each counted once."""
    together, apart = EngineRoom(), EngineRoom(engine=FakeEngine(batch_size=size))
    together.work(batch(range(8)))
    apart.work(*(batch(numbers[start : start + size]) for start in range(0, len(numbers), size)))
    assert together.reducer.of_slide(SLIDE) == apart.reducer.of_slide(SLIDE)
    assert sorted(apart.rows()) == sorted(together.rows())
    assert apart.reducer.total == together.reducer.total


def test_a_final_is_said_after_the_last_posterior_of_the_same_data() -> None:
    """Whoever sorts by time finds the final last: nothing provisional is stamped after it."""
    room = EngineRoom()
    room.work(batch([0, 1]), progress(State.COMPLETE, 2), SlideClosed(SLIDE), PatientClosed("P"))
    kinds = [message.kind for record in room.records for message in record.messages]
    for scope in ("slide", "patient"):
        last_posterior = max(at for at, kind in enumerate(kinds) if kind == f"{scope}.posterior")
        assert last_posterior < kinds.index(f"{scope}.final")


def test_rejected_patches_are_counted_with_their_reasons() -> None:
    """Rejections reach the ledger, the counts and the heat map, and never a posterior."""
    room = EngineRoom()
    room.work(batch([0, 1], [(2, "empty"), (3, "blood"), (4, "empty")]))
    (posterior,) = room.said("slide.posterior")
    assert posterior["counts"] == {"seen": 5, "used": 2, "rejected": {"blood": 1, "empty": 2}}
    np.testing.assert_allclose(posterior["probabilities"], slow_posterior([0, 1]), atol=1e-9)
    (heat,) = room.said("slide.patches")
    by_x = dict(zip(heat["x"], zip(heat["predicted"], heat["confidence"], strict=True), strict=True))
    assert heat["reasons"] == ["blood", "empty"]
    assert [by_x[300 * number] for number in (2, 3, 4)] == [(-2, 0), (-1, 0), (-2, 0)]
    assert all(index >= 0 and confidence > 63 for index, confidence in (by_x[0], by_x[300]))
    assert {row.rejected for row in room.rows()} == {None, "empty", "blood"}


def test_a_slide_of_rejections_has_no_answer() -> None:
    """Nothing used: probabilities, interval, prediction and confidence are null, and the counts say why."""
    room = EngineRoom()
    room.work(batch([], [(0, "empty")]), SlideClosed(SLIDE))
    (final,) = room.said("slide.final")
    assert [final[key] for key in ("probabilities", "interval", "predicted", "confidence")] == [None] * 4
    assert final["counts"] == {"seen": 1, "used": 0, "rejected": {"empty": 1}}
    assert final["high_confidence"] is False


def test_a_patient_is_all_slides_together() -> None:
    """The patient's posterior weighs every patch of every slide the same."""
    room = EngineRoom()
    second = SlideKey("P", "S2")
    room.work(batch(range(3)), batch(range(3, 8), slide=second), batch(range(2), slide=SlideKey("Q", "S")))
    by_patient = {said["patient"]: said for said in room.said("patient.posterior")}
    np.testing.assert_allclose(by_patient["P"]["probabilities"], slow_posterior(range(8)), atol=1e-9)
    assert (by_patient["P"]["slides"], by_patient["Q"]["slides"]) == (2, 1)
    assert by_patient["Q"]["counts"]["used"] == 2


def test_the_latency_is_that_of_the_newest_patch() -> None:
    """last_byte_to_result runs from the newest byte of the batch to the end of its inference."""
    room = EngineRoom()
    room.work(batch([0], seen_s=98.5))
    (said,) = room.said("slide.posterior")
    assert (said["latency"]["last_byte_to_result_ms"], said["latency"]["inference_ms"]) == (1500.0, 0.0)
    assert said["latency"]["last_byte_at"] == "2026-01-02T00:00:08.500000Z"


def test_the_room_measures_its_stages_drift_and_alerts() -> None:
    """Each new patch counts once in stages and drift, each problem once by its reason; copies count nowhere."""
    room = EngineRoom()
    room.work(batch([0, 1], [(2, "empty")], seen_s=98.0), Problem("stalled", "silence", SLIDE), batch([0, 1]))
    assert room.measures.last_byte_to_result.now.count == 2
    assert room.measures.last_byte_to_result.now.sum_s == pytest.approx(4.0)
    assert room.measures.inference.now.count == 1
    assert room.measures.recent.now.used == 2
    assert room.measures.alerts == {"stalled": 1}


def test_what_every_result_says_of_itself() -> None:
    """Intended use, profile, engine, calibration and session are in every result."""
    room = EngineRoom()
    room.work(batch([0]), SlideClosed(SLIDE), PatientClosed("P"))
    for kind in ("slide.posterior", "patient.posterior", "slide.final", "patient.final"):
        for said in room.said(kind):
            assert said["intended_use"] == "research use only"
            assert said["profile"] == {"name": "fake", "version": 1, "sha256": PROFILE.sha256}
            assert said["engine"] == {"name": "fake", "precision": "fp32"}
            assert said["calibration"] == "none"
            assert said["session_id"] == "session"
            assert said["classes"] == list(PROFILE.spec.classes)


# Records


def test_a_record_holds_patches_and_what_follows_from_them() -> None:
    """The rows of a batch and its messages are one record: one transaction of the ledger."""
    room = EngineRoom()
    (record,) = room.work(batch([0, 1]))
    assert record.profile_sha256 == PROFILE.sha256
    assert len(record.patches) == 2
    assert [message.kind for message in record.messages] == [
        "slide.patches",
        "slide.posterior",
        "patient.posterior",
    ]


@pytest.mark.parametrize(("interval_s", "records"), [(ALWAYS_S, 5), (NEVER_S, 2)])
def test_posteriors_are_coalesced_while_work_waits(interval_s: float, records: int) -> None:
    """While work waits posteriors are told at most once an interval; no row and no count is lost by it.

    Nothing was told before the first batch, so it is told at once; with a long interval the others come at the end.
    """
    room = EngineRoom(interval_s=interval_s)
    found = room.work(*(batch([number]) for number in range(5)))
    assert len(found) == records
    assert len(room.rows()) == 5
    assert room.said("slide.posterior")[-1]["counts"]["used"] == 5


def test_nothing_new_makes_no_record() -> None:
    """A batch of patches that were all counted before leaves nothing to write or say."""
    room = EngineRoom()
    room.work(batch([0, 1]))
    assert room.work(batch([1, 0])) == []


def test_the_room_beats_each_time_it_comes_round() -> None:
    """The heartbeat that the watchdog hangs on comes with every piece of work."""
    room = EngineRoom()
    room.work(batch([0]), batch([1]), batch([2]))
    assert room.beats >= 3


def test_finals_come_after_the_posteriors_they_rest_on() -> None:
    """In one record the running posteriors come first, then the final, then the patient's."""
    room = EngineRoom(interval_s=NEVER_S)
    room.work(batch([0]))
    (record,) = room.work(batch([1]), progress(State.COMPLETE, 2), SlideClosed(SLIDE), PatientClosed("P"))[-1:]
    kinds = [m.kind for r in room.records for m in r.messages]
    assert kinds.index("slide.final") > kinds.index("slide.posterior")
    assert kinds.index("patient.final") > kinds.index("slide.final")
    assert room.said("slide.final")[0]["counts"]["used"] == 2
    assert {row.scope for row in record.finals} == {"slide", "patient"}


# Finals and revisions


def test_the_same_answer_is_said_once() -> None:
    """A second closing without anything new makes neither a message nor a row."""
    room = EngineRoom()
    for _ in range(3):
        room.work(batch([0]), progress(State.COMPLETE, 2), SlideClosed(SLIDE), PatientClosed("P"))
    assert len(room.said("slide.final")) == len(room.said("patient.final")) == 1
    assert [(row.scope, row.revision) for row in room.finals()] == [("slide", 1), ("patient", 1)]


def test_a_later_patch_makes_a_revision() -> None:
    """New data after a final: revision 2, which names the event that it replaces."""
    room = EngineRoom()
    room.work(batch([0]), SlideClosed(SLIDE), batch([1]), SlideClosed(SLIDE), batch([], [(2, "empty")]))
    room.work(SlideClosed(SLIDE))
    finals = room.said("slide.final")
    assert [final["revision"] for final in finals] == [1, 2, 3]
    assert finals[0]["supersedes"] is None
    assert all(later["supersedes"] == earlier["event_id"] for earlier, later in pairwise(finals))
    assert [row.event_id for row in room.finals()] == [final["event_id"] for final in finals]


def test_another_state_makes_a_revision() -> None:
    """A slide that was stalled and is complete after all says so, although no patch was added."""
    room = EngineRoom()
    room.work(batch([0]), progress(State.STALLED, 1), SlideClosed(SLIDE))
    room.work(progress(State.RECEIVING, 1), progress(State.COMPLETE, 2), SlideClosed(SLIDE))
    assert [(f["state"], f["strips"]["done"]) for f in room.said("slide.final")] == [("stalled", 1), ("complete", 2)]


def test_unformed_patches_count_as_rejected_until_they_come() -> None:
    """What was announced and never came is in the final's counts; while the slide receives again it is not."""
    room = EngineRoom()
    room.work(batch([0]), progress(State.STALLED, 1), SlideClosed(SLIDE, {"truncated": 3}))
    assert room.said("slide.final")[0]["counts"] == {"seen": 4, "used": 1, "rejected": {"truncated": 3}}
    room.work(progress(State.RECEIVING, 1), batch([1]))
    assert room.said("slide.posterior")[-1]["counts"] == {"seen": 2, "used": 2, "rejected": {}}
    room.work(batch([2, 3]), progress(State.COMPLETE, 2), SlideClosed(SLIDE))
    assert room.said("slide.final")[1]["counts"] == {"seen": 4, "used": 4, "rejected": {}}


def test_a_restart_says_nothing_twice() -> None:
    """With patches and finals restored, closing again is silent, and new data continue the revisions."""
    before = EngineRoom()
    before.work(batch(range(4)), progress(State.COMPLETE, 2), SlideClosed(SLIDE), PatientClosed("P"))
    after = EngineRoom(restored=before.rows(), finals=before.finals())
    assert after.reducer.of_slide(SLIDE) == before.reducer.of_slide(SLIDE)
    after.work(batch(range(4)), SlideClosed(SLIDE), PatientClosed("P"))
    assert not after.finals() and not after.rows()
    after.work(batch([4]), SlideClosed(SLIDE), PatientClosed("P"))
    assert [final["revision"] for final in after.said("slide.final") + after.said("patient.final")] == [2, 2]
    assert after.said("slide.final")[0]["supersedes"] == before.finals()[0].event_id
    assert after.said("slide.final")[0]["state"] == "complete"


def test_a_crash_before_the_final_was_written_repeats_its_id() -> None:
    """The same data give a final of the same event_id, so that consumers recognise what comes again."""
    ids = []
    for _ in range(2):
        room = EngineRoom()
        room.work(batch(range(2)), SlideClosed(SLIDE))
        ids.append(room.said("slide.final")[0]["event_id"])
    assert ids[0] == ids[1]


def test_restored_unformed_patches_stay_rejected() -> None:
    """A slide that was closed with patches missing says the same counts after a restart."""
    before = EngineRoom()
    before.work(batch([0]), progress(State.STALLED, 1), SlideClosed(SLIDE, {"truncated": 3}))
    after = EngineRoom(restored=before.rows(), finals=before.finals())
    after.work(PatientClosed("P"))
    (final,) = after.said("patient.final")
    assert (final["counts"]["rejected"], final["state"]) == ({"truncated": 3}, "stalled")


def test_a_patient_without_slides_has_no_final() -> None:
    """The end of a patient of whom nothing was seen says nothing."""
    room = EngineRoom()
    assert room.work(PatientClosed("nobody")) == []


@pytest.mark.parametrize(
    ("states", "together"),
    [
        ((State.COMPLETE, State.COMPLETE), "complete"),
        ((State.COMPLETE, State.STALLED), "stalled"),
        ((State.STALLED, State.RECEIVING), "receiving"),
        ((State.ABANDONED, State.COMPLETE), "abandoned"),
        ((State.SEEN, State.COMPLETE), "receiving"),
    ],
)
def test_a_patient_stands_where_the_worst_slide_stands(states: tuple[State, State], together: str) -> None:
    """The state of a patient is that of the slide furthest from complete; parts add up."""
    room = EngineRoom()
    other = SlideKey("P", "S2")
    room.work(progress(states[0], 2), progress(states[1], 1, 4, other), batch([0]), PatientClosed("P"))
    (final,) = room.said("patient.final")
    assert (final["state"], final["strips"]) == (together, {"done": 3, "expected": 6})


def test_an_unknown_number_of_parts_stays_unknown_together() -> None:
    """Where one slide's number of parts is unknown, so is the patient's."""
    room = EngineRoom()
    room.work(progress(State.COMPLETE, 2), progress(State.COMPLETE, 9, None, SlideKey("P", "S2")))
    assert room.said("patient.posterior")[-1]["strips"] == {"done": 11, "expected": None}


class SureEngine(FakeEngine):
    """An engine that gives the first class one probability, whatever the patch."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        rest = (1 - probability) / 3
        self._logits_K = np.log([probability, rest, rest, rest]).astype(np.float32)

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """The same row for every patch."""
        return {"logits": np.tile(self._logits_K, (len(x_BCHW), 1))}


@pytest.mark.parametrize(("probability", "high"), [(0.7699, False), (0.7701, True), (0.99, True), (0.3, False)])
def test_high_confidence_is_the_profiles_operating_point(probability: float, high: bool) -> None:
    """A result is of high confidence from the operating point 0.77 on, running and final."""
    room = EngineRoom(engine=SureEngine(probability))
    room.work(batch([0, 1]), SlideClosed(SLIDE), PatientClosed("P"))
    for kind in ("slide.posterior", "patient.posterior", "slide.final", "patient.final"):
        assert all(said["high_confidence"] is high for said in room.said(kind))
        assert room.said(kind)[-1]["confidence"] == pytest.approx(probability, abs=1e-6)


# How patches compare with the profile's reference


def slow_marks(numbers: Iterable[int]) -> list[Marks]:
    """The marks of the patches, one patch at a time."""
    engine, borne = FakeEngine(batch_size=1), []
    for number in sorted(set(numbers)):
        x_1CHW = patch(number).pixels[np.newaxis]
        borne += marks(fake_reference(), intensity_statistics(x_1CHW), engine.predict(x_1CHW)["embedding"])
    return borne


def domain_of_patches(numbers: Iterable[int]) -> dict[str, Any]:
    """The `domain` of a result over these patches."""
    borne = slow_marks(numbers)
    count = Counter(mark for row in borne for mark in row)
    return {"judged": len(borne), **{mark: count[mark] for mark in MARKS}, "limit": 0.5}


def test_marks_go_from_the_engine_to_the_message() -> None:
    """Batches with padding: each patch bears the marks that it has alone, and results count them exactly."""
    room = EngineRoom(reference=fake_reference())
    room.work(batch(range(3)), batch(range(3, 10), [(20, "empty")]), SlideClosed(SLIDE), PatientClosed("P"))
    rows = {row.key.x // 300: row.marks for row in room.rows()}
    assert [rows[number] for number in range(10)] == slow_marks(range(10))
    assert rows[20] is None
    expected = domain_of_patches(range(10))
    assert 0 < expected["embedding_far"] < 10 and 0 < expected["intensity_outside"] < 10
    for kind in ("slide.posterior", "patient.posterior", "slide.final", "patient.final"):
        assert room.said(kind)[-1]["domain"] == expected


@settings(max_examples=12, deadline=None)
@given(st.permutations([*range(8), 0, 1, 7]), st.integers(1, 5))
def test_marks_do_not_depend_on_order_or_batch(numbers: list[int], size: int) -> None:
    """Patches in any order, some twice, in batches of any size: the same marks, each counted once."""
    room = EngineRoom(engine=FakeEngine(batch_size=size), reference=fake_reference())
    room.work(*(batch(numbers[start : start + size]) for start in range(0, len(numbers), size)))
    assert room.said("slide.posterior")[-1]["domain"] == domain_of_patches(range(8))


@pytest.mark.parametrize(
    ("engine", "reference"), [(FakeEngine(), None), (FakeEngine(embeds=False), fake_reference())]
)
def test_without_reference_or_embedding_nothing_is_judged(engine: Engine, reference: Reference | None) -> None:
    """A profile without a reference, or an engine without an embedding: `domain` is null, whatever the patches."""
    room = EngineRoom(engine=engine, reference=reference)
    room.work(batch(range(4)), SlideClosed(SLIDE))
    assert room.said("slide.final")[0]["domain"] is None
    assert all(row.marks is None for row in room.rows())


def test_a_patient_adds_the_marks_of_all_slides() -> None:
    """Judged patches and marks of the slides together are the patient's."""
    room = EngineRoom(reference=fake_reference())
    room.work(batch(range(4)), batch(range(4, 9), slide=SlideKey("P", "S2")), PatientClosed("P"))
    assert room.said("patient.final")[0]["domain"] == domain_of_patches(range(9))


def test_a_restart_keeps_the_marks() -> None:
    """With the ledger's patches restored, the domain is as before, is not counted twice, and goes on."""
    before = EngineRoom(reference=fake_reference())
    before.work(batch(range(4)), progress(State.COMPLETE, 2), SlideClosed(SLIDE), PatientClosed("P"))
    after = EngineRoom(restored=before.rows(), finals=before.finals(), reference=fake_reference())
    after.work(batch(range(4)), SlideClosed(SLIDE), PatientClosed("P"))
    assert not after.finals()
    after.work(batch([4]), SlideClosed(SLIDE), PatientClosed("P"))
    for kind in ("slide.final", "patient.final"):
        assert after.said(kind)[0]["domain"] == domain_of_patches(range(5))


def test_pruned_and_frozen_slides_keep_their_marks() -> None:
    """Of a slide whose patches were pruned, and of one that was frozen, the marks still belong to the patient."""
    before = EngineRoom(reference=fake_reference())
    before.work(batch(range(4)), progress(State.COMPLETE, 2), SlideClosed(SLIDE), PatientClosed("P"))
    pruned = EngineRoom(finals=before.finals(), reference=fake_reference())
    before.reducer.freeze("P")
    later = SlideKey("P", "S2")
    for room in (pruned, before):
        room.work(SlideClosed(SLIDE))
        assert not room.said("slide.final")[1:]
        room.work(batch([4, 5], slide=later), PatientClosed("P"))
        final = room.said("patient.final")[-1]
        assert (final["revision"], final["domain"]) == (2, domain_of_patches(range(6)))


def test_a_final_from_before_patches_were_judged_is_restored() -> None:
    """A row whose tally knows no marks restores its sums and counts, and nothing of it counts as judged."""
    before = EngineRoom()
    before.work(batch(range(4)), progress(State.COMPLETE, 2), SlideClosed(SLIDE))
    (row,) = before.finals()
    tally = {key: value for key, value in json.loads(row.tally).items() if key in ("sums", "used", "rejected")}
    after = EngineRoom(finals=[replace(row, tally=json.dumps(tally))], reference=fake_reference())
    assert after.reducer.of_slide(SLIDE) == before.reducer.of_slide(SLIDE)


def test_another_decision_makes_a_revision() -> None:
    """The same posterior and counts with other marks, and so another decision, are a new answer."""
    values = to_fixed(np.array([0.97, 0.01, 0.01, 0.01]))
    keys = [PatchKey(SLIDE.patient, SLIDE.slide, 0, x, 0) for x in range(300)]

    def rows(borne: Marks) -> list[CountedPatch]:
        return [CountedPatch(key, values, None, borne) for key in keys]

    before = EngineRoom(restored=rows(()))
    before.work(progress(State.COMPLETE, 2), SlideClosed(SLIDE))
    after = EngineRoom(restored=rows(("embedding_far",)), finals=before.finals())
    after.work(SlideClosed(SLIDE))
    assert before.said("slide.final")[0]["decision"] == "high_confidence"
    (final,) = after.said("slide.final")
    assert (final["decision"], final["decision_reason"]) == ("out_of_domain", "embedding_far")
    assert (final["revision"], final["supersedes"]) == (2, before.finals()[0].event_id)
    assert final["probabilities"] == before.said("slide.final")[0]["probabilities"]


# Current, alerts, memory, failure


def test_current_follows_the_imager() -> None:
    """The pointer names the slide that receives, once, stays when it is complete, and names nobody after the end."""
    room = EngineRoom()
    other = SlideKey("P", "S2")
    room.work(
        progress(State.RECEIVING),
        progress(State.RECEIVING, 1),
        progress(State.RECEIVING, slide=other),
        batch([0]),
        progress(State.COMPLETE, 2, slide=other),
    )
    pointed = [(said["patient"], said["slide"]) for said in room.said("current")]
    assert pointed == [("P", "S"), ("P", "S2"), (None, None)]


def test_current_is_renewed_while_bytes_arrive() -> None:
    """Long before it expires the pointer is said again, but only when something arrived."""
    room = EngineRoom()
    at = (0, 60, RENEW_S - 1, RENEW_S, RENEW_S + 60, 2 * RENEW_S)
    room.work(*(progress(State.RECEIVING) for _ in at), seconds=at)
    assert [said["slide"] for said in room.said("current")] == ["S", "S", "S", None]
    assert 2 * RENEW_S < CURRENT_EXPIRY_S


def test_current_lapses_when_nothing_arrives() -> None:
    """When it would have expired the pointer is taken back in words, and comes back with the next bytes."""
    room = EngineRoom()
    other = progress(State.STALLED, slide=SlideKey("Q", "T"))
    work = (progress(State.RECEIVING), other, other, other, progress(State.RECEIVING, 1))
    room.work(*work, seconds=(0, CURRENT_EXPIRY_S - 1, CURRENT_EXPIRY_S, 2000, 3000))
    assert [said["slide"] for said in room.said("current")] == ["S", None, "S", None]


def test_what_lay_in_the_folder_is_not_on_the_table() -> None:
    """After a restart a slide that is only read again is told, but never pointed to before new bytes of it come."""
    room = EngineRoom()
    old = Progress(SLIDE, State.RECEIVING, 1, 2, 99.0, live=False)
    room.work(old, batch([0]), progress(State.STALLED, 1))
    assert room.said("slide.posterior") and not room.said("current")
    room.work(old, progress(State.RECEIVING, 1))
    assert [said["slide"] for said in room.said("current")] == ["S", None]


def test_a_message_goes_on_behind_what_was_said_before_it() -> None:
    """The answer to a command is in the same record as the final that it speaks of, or in a later one."""
    room = EngineRoom()
    answer = Message("t/reply", b"{}", "e", "reply", 1, False, False, False)
    room.work(batch([0]), SlideClosed(SLIDE), PatientClosed("P"), answer)
    kinds = [message.kind for record in room.records for message in record.messages]
    assert kinds.index("patient.final") < kinds.index("reply")


def test_current_is_cleared_when_its_patient_ends() -> None:
    """The end of another patient leaves the pointer; the end of this one clears it."""
    room = EngineRoom()
    room.work(progress(State.RECEIVING), PatientClosed("Q"), PatientClosed("P"))
    assert [said["slide"] for said in room.said("current")] == ["S", None]


@pytest.mark.parametrize("reason", ["stalled", "missing_channel", "vanished", *FormatError.REASONS])
def test_a_problem_becomes_an_alert(reason: str) -> None:
    """Reason, detail and pseudonyms travel; what time or a person may mend is a warning, the rest an error."""
    room = EngineRoom()
    room.work(Problem(reason, "what happened", SLIDE, "file-id"))
    (alert,) = room.said("alert")
    assert (alert["reason"], alert["detail"], alert["file"]) == (reason, "what happened", "file-id")
    assert (alert["patient"], alert["slide"]) == SLIDE
    assert alert["severity"] == ("warning" if reason in LOOK_AT else "error")


def test_an_alert_without_a_slide_and_with_a_long_detail() -> None:
    """A problem that belongs to no slide has nulls, and a very long detail is cut to what the schema allows."""
    room = EngineRoom()
    room.work(Problem("not_an_image", "x" * 5000))
    (alert,) = room.said("alert")
    assert alert["patient"] is alert["slide"] is alert["file"] is None
    assert alert["detail"] == "x" * 1000


def test_of_patients_who_ended_long_ago_the_sums_stay() -> None:
    """Their patches are freed, yet a slide that comes later is added to what their complete slides amounted to."""
    room = EngineRoom()
    names = [f"P{number:03d}" for number in range(KEPT_PATIENTS + 5)]
    works: list[Work] = []
    for name in names:
        slide = SlideKey(name, "S")
        works += [batch([0, 1], [(2, "empty")], slide), progress(State.COMPLETE, 2, 2, slide)]
        works += [SlideClosed(slide), PatientClosed(name)]
    room.work(*works)
    later = SlideKey(names[0], "T")
    room.work(batch([3], (), later), batch([0], (), SlideKey(names[0], "S")), PatientClosed(names[0]))
    first, second = (final for final in room.said("patient.final") if final["patient"] == names[0])
    assert (first["slides"], first["counts"]["used"]) == (1, 2)
    assert second["slides"] == 2
    assert second["counts"] == {"seen": 4, "used": 3, "rejected": {"empty": 1}}
    assert second["supersedes"] == first["event_id"]


def test_pruned_patients_keep_their_answer() -> None:
    """After a restart without their patches, slides stand as their finals said, and nothing is said anew."""
    before = EngineRoom()
    whole, bad = SlideKey("P", "1"), SlideKey("P", "2")
    works: list[Work] = [batch([0, 1], (), whole), progress(State.COMPLETE, 2, 2, whole), SlideClosed(whole)]
    before.work(
        *works, progress(State.STALLED, 0, 2, bad), SlideClosed(bad, {"missing_channel": 42}), PatientClosed("P")
    )
    after = EngineRoom(finals=before.finals())
    after.work(SlideClosed(whole), PatientClosed("P"))
    assert not after.finals()
    after.work(batch([5], (), SlideKey("P", "3")), PatientClosed("P"))
    (final,) = after.said("patient.final")
    assert final["revision"] == 2 and final["slides"] == 3 and final["state"] == "receiving"
    assert final["counts"] == {"seen": 45, "used": 3, "rejected": {"missing_channel": 42}}


class WrongEngine(FakeEngine):
    """An engine that lost its mind."""

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """Values that are not finite."""
        return {"logits": np.full((len(x_BCHW), 4), np.nan, np.float32)}


def test_an_engine_that_returns_nonsense_ends_the_room() -> None:
    """Outputs that cannot be what the network emits raise EngineError: nothing is counted and nothing is said."""
    room = EngineRoom(engine=WrongEngine())
    with pytest.raises(EngineError, match=r"fake: .*not finite"):
        room.work(batch([0]))
    assert not room.records
    assert room.reducer.total.seen == 0


def test_of_incomplete_slides_of_long_ago_the_sums_stay_too() -> None:
    """Where the number of parts cannot be known, or parts are missing, patches are kept longer, and not for ever."""
    room = EngineRoom()
    names = [f"P{number:03d}" for number in range(KEPT_PATIENTS + KEPT_INCOMPLETE + 2)]
    values = to_fixed(np.array([0.25, 0.25, 0.25, 0.25]))
    ended = EndedPatients(room.reducer, before=lambda: None)
    for name in names:
        key = PatchKey(name, "S", 0, 0, 0)
        room.reducer._count(CountedPatch(key, values, None))
        room.reducer.slide(key.of_slide).state = State.STALLED
        ended.add(name)
    kept = [name for name in names if PatchKey(name, "S", 0, 0, 0) in room.reducer.slide(SlideKey(name, "S")).tally]
    assert kept == names[2:]
    assert room.reducer.of_patient(names[0]).counts.used == 1
    ended.goes_on(names[2])
    for number in range(3):
        ended.add(f"Q{number}")
    assert PatchKey(names[2], "S", 0, 0, 0) in room.reducer.slide(SlideKey(names[2], "S")).tally
