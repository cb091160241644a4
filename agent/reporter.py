"""What the reducer knows → messages for the wire: running posteriors, finals with their revisions, alerts.

It decides when a final says something new; where messages go is agent.topics' matter.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from agent.acquisition import State
from agent.heat_map import Gathering, HeatMap
from agent.intake import Problem
from agent.ledger import CountedPatch, FinalRow
from agent.messages import Alert, Counts, Current, EngineRef, ProfileRef
from agent.reducer import Reducer, SlideRecord, state_of
from agent.results import Domain, Latency, Parts, PatientFinal, PatientPosterior, SlideFinal, SlidePosterior
from agent.topics import Message, Topics, final_event_id
from models.contract import SlideKey
from models.decision import decide
from models.posterior import Posterior, Tally
from models.profile import LoadedProfile, Profile

OfSlide = TypeVar("OfSlide", SlidePosterior, SlideFinal)
OfPatient = TypeVar("OfPatient", PatientPosterior, PatientFinal)
LOOK_AT = {
    "stalled",
    "truncated",
    "missing_channel",
    "vanished",
    "rewritten",
    "unknown_name",
    "mixed_kinds",
    "not_readable",
    "waiting",
    "duplicate",
    "changed_late",
    "engine_replaced",
}
"""Problems that time or a person may mend: severity `warning`; everything else is an `error`."""
FLEETING = {"folder_unavailable", "folder_hangs", "not_readable", "waiting", "engine_replaced"}
"""Problems of the machine rather than of a file's bytes."""


@dataclass
class Speaker:
    """Who speaks: the same in every message of one start of the agent, but for an engine that is replaced."""

    session_id: str
    topics: Topics
    profile: LoadedProfile
    engine: EngineRef
    """The one in service; replaced whole."""
    wall: Callable[[], datetime]
    """Current time, with time zone."""

    @property
    def profile_ref(self) -> ProfileRef:
        """The profile as messages name it."""
        spec = self.profile.spec
        return ProfileRef(name=spec.name, version=spec.version, sha256=self.profile.sha256)

    def stamp(self, event_id: str | None = None) -> dict[str, Any]:
        """The fields that every payload has."""
        return {"event_id": event_id or uuid.uuid4().hex, "session_id": self.session_id, "time": self.wall()}


class Reporter:
    """Builds messages from the reducer's state; remembers which finals have been said."""

    def __init__(self, reducer: Reducer, speaker: Speaker, finals: Iterable[FinalRow] = ()) -> None:
        self._reducer = reducer
        self._speaker = speaker
        self._finals = {(row.scope, row.patient, row.slide): row for row in finals}
        self._gathering = Gathering()
        self._heat_map = HeatMap(reducer.profile, {slide: self._seen(slide) for slide in reducer.slides})

    def patches(self, rows: list[CountedPatch], now: float, *, everything: bool = False) -> list[Message]:
        """Heat map arrays, one message a slide: of these newly counted patches and of those before, when enough are
        there or enough time has passed (monotonic second `now`).
        """
        self._gathering.add(rows, now)
        due = self._gathering.take(now, everything=everything)
        payloads = self._heat_map.tell(due, self._speaker.stamp, self._seen)
        return [self._speaker.topics.message(payload) for payload in payloads]

    def _seen(self, slide: SlideKey) -> int:
        return self._reducer.slide(slide).tally.counts.seen

    def posteriors(self, slides: Iterable[SlideKey], latency: Latency) -> list[Message]:
        """The running posterior of these slides and of their patients."""
        keys = sorted(set(slides))
        messages = [self._speaker.topics.message(self._slide(SlidePosterior, key, latency)) for key in keys]
        patients = sorted({key.patient for key in keys})
        messages += [self._speaker.topics.message(self._patient(PatientPosterior, p, latency)) for p in patients]
        return messages

    def slide_final(self, key: SlideKey, latency: Latency) -> tuple[Message, FinalRow] | None:
        """The slide's final; None when it would say what the last one said."""
        self._gathering.close(key)
        revision = self._revision("slide", key.patient, key.slide, [self._reducer.slide(key)])
        if revision is None:
            return None
        row, extra = revision
        return self._speaker.topics.message(self._slide(SlideFinal, key, latency, **extra)), row

    def patient_final(self, patient: str, latency: Latency) -> tuple[Message, FinalRow] | None:
        """The patient's final; None when there is nothing to say or nothing new."""
        records = [record for _, record in self._reducer.slides_of(patient)]
        revision = self._revision("patient", patient, "", records) if records else None
        if revision is None:
            return None
        row, extra = revision
        return self._speaker.topics.message(self._patient(PatientFinal, patient, latency, **extra)), row

    def alert(self, problem: Problem) -> Message:
        """A problem for people."""
        payload = Alert(
            **self._speaker.stamp(_alert_id(problem)),
            severity="warning" if problem.reason in LOOK_AT else "error",
            reason=problem.reason,
            detail=problem.detail[:1000],
            patient=problem.slide.patient if problem.slide else None,
            slide=problem.slide.slide if problem.slide else None,
            file=problem.file_id,
        )
        return self._speaker.topics.message(payload)

    def current(self, slide: SlideKey | None) -> Message:
        """The pointer to what is being imaged now."""
        patient, name = slide or (None, None)
        return self._speaker.topics.message(Current(**self._speaker.stamp(), patient=patient, slide=name))

    def _revision(
        self, scope: Literal["slide", "patient"], patient: str, slide: str, records: list[SlideRecord]
    ) -> tuple[FinalRow, dict[str, Any]] | None:
        """The next final of a slide or patient and its own fields; None when it would repeat the last one."""
        posterior, parts, state = self._reducer.combine(records), _parts(records), state_of(records)
        counts = posterior.counts
        said = [posterior.probabilities, counts.used, counts.rejected, state.value, posterior.judged, posterior.marks]
        said += decide(posterior, self._reducer.profile, complete=state is State.COMPLETE)
        said += [parts.done, parts.expected]
        fingerprint = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        last = self._finals.get((scope, patient, slide))
        if last is not None and last.fingerprint == fingerprint:
            return None
        number = 1 if last is None else last.revision + 1
        event_id = final_event_id(self._speaker.profile.sha256, scope, patient, slide, number, fingerprint)
        unformed, tally = "{}", ""
        if scope == "slide":
            (record,) = records
            unformed, tally = json.dumps(record.unformed), _tally(record.tally)
        at = self._speaker.wall().timestamp()
        row = FinalRow(
            scope,
            patient,
            slide,
            number,
            event_id,
            fingerprint,
            state.value,
            parts.done,
            parts.expected,
            unformed,
            tally,
            at,
        )
        self._finals[scope, patient, slide] = row
        supersedes = None if last is None else last.event_id
        return row, {"event_id": event_id, "revision": number, "supersedes": supersedes}

    def _slide(self, kind: type[OfSlide], key: SlideKey, latency: Latency, **extra: Any) -> OfSlide:
        fields = self._result([self._reducer.slide(key)], latency, extra)
        return kind(**fields, patient=key.patient, slide=key.slide)

    def _patient(self, kind: type[OfPatient], patient: str, latency: Latency, **extra: Any) -> OfPatient:
        slides = self._reducer.slides_of(patient)
        fields = self._result([record for _, record in slides], latency, extra)
        return kind(**fields, patient=patient, slides=len(slides))

    def _result(self, records: list[SlideRecord], latency: Latency, extra: dict[str, Any]) -> dict[str, Any]:
        posterior, state = self._reducer.combine(records), state_of(records)
        spec = self._speaker.profile.spec
        predicted = posterior.predicted
        decision, reason = decide(posterior, spec, complete=state is State.COMPLETE)
        return {
            **self._speaker.stamp(),
            "profile": self._speaker.profile_ref,
            "engine": self._speaker.engine,
            "calibration": spec.calibration.kind,
            "classes": spec.classes,
            "probabilities": posterior.probabilities or None,
            "interval": posterior.interval or None,
            "interval_mass": spec.aggregation.interval,
            "predicted": None if predicted is None else spec.classes[predicted],
            "confidence": None if predicted is None else posterior.confidence,
            "decision": decision,
            "decision_reason": reason,
            "operating_point": spec.operating_points["high_confidence"],
            "high_confidence": posterior.confidence >= spec.operating_points["high_confidence"],
            "counts": Counts(
                seen=posterior.counts.seen, used=posterior.counts.used, rejected=posterior.counts.rejected
            ),
            "low_tissue": posterior.counts.used < spec.minimum_patches,
            "minimum_patches": spec.minimum_patches,
            "domain": domain_of(posterior, spec),
            "state": state.value,
            "strips": _parts(records),
            "latency": latency,
            **extra,
        }


def _alert_id(problem: Problem) -> str | None:
    """The same problem of the same bytes has the same id, also after a restart: the ledger lets it out once.

    None for what may come and go: it is told each time.
    """
    if problem.reason in FLEETING:
        return None
    about = problem.content or (problem.detail if problem.file_id is None else None)
    said = [problem.reason, problem.slide, problem.file_id, about]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def domain_of(posterior: Posterior, spec: Profile) -> Domain | None:
    """How many patches are unlike the profile's reference; None while none was compared with it."""
    if not posterior.judged:
        return None
    far, outside = (posterior.marks.get(mark, 0) for mark in ("embedding_far", "intensity_outside"))
    limit = spec.decision.most_marked
    return Domain(judged=posterior.judged, embedding_far=far, intensity_outside=outside, limit=limit)


def _tally(tally: Tally) -> str:
    """What a slide amounts to, exactly: the reducer reads it when the patches are pruned."""
    counts, marks = tally.counts, {"judged": tally.judged, "marks": tally.marks}
    return json.dumps({"sums": tally.sums, "used": counts.used, "rejected": counts.rejected, **marks})


def _parts(records: list[SlideRecord]) -> Parts:
    """Parts of several slides together; the expected number is unknown when one slide's is."""
    expected = [record.expected for record in records]
    total = None if None in expected else sum(count or 0 for count in expected)
    return Parts(done=sum(record.done for record in records), expected=total)
