"""The ENGINE room: batches and events in, records for the ledger and the broker out.

Posteriors of one slide are told at most every `interval_s` seconds while work waits, and at once when none does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from agent.acquisition import State
from agent.batching import Batch
from agent.ended import EndedPatients
from agent.engine.isolation import FAILED, FAILED_DETAIL
from agent.errors import EngineError
from agent.handover import Handover
from agent.intake import PatientClosed, Problem, Progress, SlideClosed, SlideReopened
from agent.ledger import CountedPatch, FileStanding, FinalRow, Record
from agent.ledger_records import PartRead
from agent.measures import EngineMeasures
from agent.reducer import Reducer
from agent.reporter import Reporter
from agent.results import Latency
from agent.topics import CURRENT_EXPIRY_S, Message
from models.contract import SlideKey, by_slide

Work = Batch | Progress | PartRead | SlideClosed | SlideReopened | PatientClosed | Problem | FileStanding | Message
"""A message goes on behind what was said of the work before it."""
RENEW_S = CURRENT_EXPIRY_S / 3
"""While bytes arrive, `current` is said again after this, so that it expires only when nothing arrives."""
REPLACED = "engine_replaced"
"""Why people are told that another engine answers."""
LAST_WORD_S = 5.0
"""Longest wait, when the engine is broken, for the SENDER room to take what was found before."""


class Worker:
    """One thread's loop; owns the engine, the reducer and the reporter."""

    def __init__(
        self,
        inbox: Handover[Work],
        outbox: Handover[Record],
        reducer: Reducer,
        reporter: Reporter,
        profile_sha256: str,
        *,
        interval_s: float = 0.2,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        measures: EngineMeasures | None = None,
    ) -> None:
        self.measures = measures or EngineMeasures()
        self._inbox = inbox
        self._outbox = outbox
        self._reducer = reducer
        self._reporter = reporter
        self._sha256 = profile_sha256
        self.interval_s = interval_s
        self._beat = beat
        self._clock = clock
        self._wall = wall
        self._rows: list[CountedPatch] = []
        self._messages: list[Message] = []
        self._finals: list[FinalRow] = []
        self._files: list[FileStanding] = []
        self._reopened: list[SlideKey] = []
        self._closed: list[SlideKey] = []
        self._settled: list[PartRead] = []
        self._changed: set[SlideKey] = set()
        self._told_at = float("-inf")
        self._current: SlideKey | None = None
        self._pointed_at = float("-inf")
        """When `current` was said last."""
        self._ended = EndedPatients(reducer, before=self._tell)
        self._latency = Latency()
        self._log = structlog.get_logger("engine")

    def run(self) -> None:
        """Work until the inbox has ended, then close the outbox. Raises EngineError when the engine is broken."""
        while not self._inbox.ended:
            self._beat()
            work = self._inbox.get(timeout_s=1.0)
            if work is not None:
                self._handle(work)
            # Brokers of MQTT 3.1.1 know no expiry: an old patient must not stay on a screen there either.
            if self._current is not None and self._clock() - self._pointed_at >= CURRENT_EXPIRY_S:
                self._point_to(None)
            if not len(self._inbox) or self._clock() - self._told_at >= self.interval_s:
                self._tell()
        if self._current is not None:
            self._point_to(None)
        self._tell()
        self._outbox.close()

    def _handle(self, work: Work) -> None:
        match work:
            case Batch():
                self._infer(work)
            case Progress():
                self._follow(work)
            case PartRead():
                self._note(self._reducer.settle(work))
                self._settled.append(work)
                self._tell()  # what is counted of this part from now on is not part of this reading
            case SlideClosed():
                self._close_slide(work)
            case PatientClosed():
                self._close_patient(work.patient)
            case Problem():
                self._alert(work)
            case FileStanding():
                self._files.append(replace(work, at=self._wall().timestamp()))
            case SlideReopened():
                self._tell()  # what was closed before must not undo it
                self._reducer.reopen(work.slide)
                self._reopened.append(work.slide)
            case Message():
                self._messages.append(work)

    def _infer(self, batch: Batch) -> None:
        started = self._clock()
        try:
            rows = self._reducer.run(batch)
        except EngineError:
            # What was found before must not be lost with it: the other rooms leave as soon as this one has.
            self._tell()
            self._outbox.wait_until_taken(LAST_WORD_S)
            raise
        ended = self._clock()
        if batch.inputs:
            seen_s = [timed.seen_s for timed in batch.inputs]
            age_s = ended - max(seen_s)
            self._latency = Latency(
                last_byte_to_result_ms=1e3 * age_s,
                inference_ms=1e3 * (ended - started),
                last_byte_at=self._wall() - timedelta(seconds=age_s),
            )
            if rows:
                self.measures.ran(seen_s, started, ended)
        for row in rows:
            if row.values is not None:
                self.measures.recent.add(row.values, row.marks)
        self._note(rows)
        for slide, keys in by_slide(row.key for row in rows if row.rejected == FAILED).items():
            if self._reducer.of_slide(slide).counts.rejected.get(FAILED) == len(keys):  # the slide's first ones
                self._alert(Problem(FAILED, FAILED_DETAIL, slide))

    def replaced(self, detail: str, status: Message) -> None:
        """Another engine has taken over: told, and the status said anew, before any answer of its own."""
        self.measures.replacements += 1
        self._alert(Problem(REPLACED, detail))
        self._messages.append(status)
        self._tell()

    def _note(self, rows: list[CountedPatch]) -> None:
        self._rows += rows
        self._changed |= {row.key.of_slide for row in rows}

    def _alert(self, problem: Problem) -> None:
        slide = problem.slide.slide if problem.slide else None
        self._log.warning("problem", reason=problem.reason, detail=problem.detail, slide=slide, file=problem.file_id)
        self._messages.append(self._reporter.alert(problem))
        self.measures.alert(problem.reason)

    def _follow(self, progress: Progress) -> None:
        self._reducer.slide(progress.slide).follow(progress)
        self._changed.add(progress.slide)
        if progress.state is not State.RECEIVING:
            return
        self._ended.goes_on(progress.slide.patient)
        # What lay in the folder before this start may be long over: only what arrives is on the table.
        overdue = self._clock() - self._pointed_at >= RENEW_S
        if progress.live and (progress.slide != self._current or overdue):
            self._point_to(progress.slide)

    def _close_slide(self, closed: SlideClosed) -> None:
        record = self._reducer.slide(closed.slide)
        self._reducer.close(closed.slide, closed.unformed)
        counts = self._reducer.of_slide(closed.slide).counts
        self._changed.add(closed.slide)
        self._say_posteriors()
        said = self._reporter.slide_final(closed.slide, self._latency)
        self._log.info(
            "slide",
            slide=closed.slide.slide,
            patient=closed.slide.patient,
            state=record.state.value,
            parts=record.done,
            expected=record.expected,
            seen=counts.seen,
            used=counts.used,
            rejected=counts.rejected,
            new=said is not None,
        )
        self._closed.append(closed.slide)
        self._finish(said)

    def _close_patient(self, patient: str) -> None:
        self._say_posteriors()
        said = self._reporter.patient_final(patient, self._latency)
        self._log.info("patient", patient=patient, slides=len(self._reducer.slides_of(patient)), new=said is not None)
        self._finish(said)
        if self._current is not None and self._current.patient == patient:
            self._point_to(None)
        self._ended.add(patient)

    def _point_to(self, slide: SlideKey | None) -> None:
        self._current, self._pointed_at = slide, self._clock()
        self._messages.append(self._reporter.current(slide))

    def _say_posteriors(self) -> None:
        """Before a final, too: whoever sorts by time must find the final last."""
        self._messages += self._reporter.posteriors(self._changed, self._latency)
        self._changed = set()

    def _finish(self, said: tuple[Message, FinalRow] | None) -> None:
        if said is not None:
            self._messages.append(said[0])
            self._finals.append(said[1])

    def _tell(self) -> None:
        """Hand over everything since the last time as one record: one transaction of the ledger."""
        heat_maps = self._reporter.patches(self._rows, self._clock(), everything=self._inbox.ended)
        slides = self._changed or self._reopened or self._closed or self._settled
        if not (self._rows or self._messages or slides or heat_maps or self._files):
            return
        self._say_posteriors()
        messages = (*heat_maps, *self._messages)
        record = Record(
            self._sha256,
            tuple(self._rows),
            messages,
            tuple(self._finals),
            tuple(self._files),
            tuple(self._reopened),
            tuple(self._closed),
            tuple(self._settled),
        )
        self._rows, self._messages, self._finals = [], [], []
        self._files, self._reopened, self._closed, self._settled = [], [], [], []
        self._told_at = self._clock()
        self._outbox.put(record)
        self.measures.told(self._clock())
