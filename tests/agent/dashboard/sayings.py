"""Payloads as an agent says them, made with our own models: one small agent that can be told what happens."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from agent.messages import Alert, Counts, Current, EngineRef, Health, Payload, ProfileRef, QueueState, Status
from agent.results import Latency, Parts, PatientFinal, PatientPosterior, SlideFinal, SlidePatches, SlidePosterior
from agent.topics import Message, Topics

CLASSES = ("meningioma", "schwannoma", "ependymoma", "metastasis")
ENGINE = EngineRef(name="openvino", precision="bf16")
PROFILE = ProfileRef(name="phantom", version=1, sha256="0" * 64)
TOPICS = Topics("srh/v1", "site", "instrument")


def answer_of(used: int, best: int = 1, share: float = 0.9) -> dict[str, Any]:
    """The fields of an answer after so many used patches."""
    if used == 0:
        return {"predicted": None, "confidence": None, "probabilities": None, "interval": None}
    rest = (1 - share) / (len(CLASSES) - 1)
    probabilities = tuple(share if index == best else rest for index in range(len(CLASSES)))
    interval = tuple((max(0.0, p - 0.05), min(1.0, p + 0.05)) for p in probabilities)
    return {
        "predicted": CLASSES[best],
        "confidence": share,
        "probabilities": probabilities,
        "interval": interval,
    }


class Saying:
    """Makes messages; every one gets a later time than the one before."""

    def __init__(self, start: datetime | None = None, session_id: str = "session-1", boot_seq: int = 1) -> None:
        self.time = start or datetime.now(UTC)
        self.since = self.time
        self.session_id = session_id
        self.boot_seq = boot_seq
        self.profile = PROFILE

    def stamp(self, event_id: str | None = None) -> dict[str, Any]:
        """The fields of every payload."""
        self.time += timedelta(milliseconds=1)
        return {"event_id": event_id or uuid.uuid4().hex, "session_id": self.session_id, "time": self.time}

    def status(self, state: Literal["online", "stopped", "offline"] = "online") -> Message:
        """Birth, clean end, will."""
        return self._message(
            Status(
                **self.stamp(),
                state=state,
                boot_seq=self.boot_seq,
                version="0.1.0",
                profile=self.profile,
                engine=ENGINE,
                since=self.since,
            )
        )

    def health(self, last_byte_age_s: float | None = 0.2) -> Message:
        """The figures."""
        return self._message(
            Health(
                **self.stamp(),
                engine=ENGINE,
                uptime_s=12.0,
                patches=Counts(seen=0, used=0),
                handovers={"work": QueueState(depth=0, high_water=1, capacity=16)},
                outbox=0,
                reconnects=0,
                scan_only_finds=0,
                last_byte_age_s=last_byte_age_s,
                rss_bytes=100_000_000,
            )
        )

    def current(self, patient: str | None, slide: str | None) -> Message:
        """The pointer."""
        return self._message(Current(**self.stamp(), patient=patient, slide=slide))

    def alert(self, reason: str = "malformed", event_id: str | None = None) -> Message:
        """Something to look at."""
        return self._message(
            Alert(**self.stamp(event_id), severity="error", reason=reason, detail="structure contradicts itself")
        )

    def slide(self, patient: str, slide: str, used: int = 40, rejected: int = 8, **more: Any) -> Message:
        """The running posterior of a slide."""
        return self._message(SlidePosterior(**self._result(patient, used, rejected, more), slide=slide))

    def patient(self, patient: str, used: int = 40, rejected: int = 8, **more: Any) -> Message:
        """The running posterior of a patient."""
        return self._message(PatientPosterior(**{"slides": 1, **self._result(patient, used, rejected, more)}))

    def slide_final(self, patient: str, slide: str, revision: int = 1, **more: Any) -> Message:
        """The final of a slide; a later revision supersedes the one before."""
        more = {"event_id": _final_id("slide", slide, revision), "state": "complete", "decision": "final", **more}
        fields = self._result(patient, more.pop("used", 40), more.pop("rejected", 8), more)
        before = _final_id("slide", slide, revision - 1) if revision > 1 else None
        return self._message(SlideFinal(**fields, slide=slide, revision=revision, supersedes=before))

    def patient_final(self, patient: str, revision: int = 1, **more: Any) -> Message:
        """The final of a patient."""
        more = {"event_id": _final_id("patient", patient, revision), "state": "complete", "decision": "final", **more}
        fields = self._result(patient, more.pop("used", 40), more.pop("rejected", 8), more)
        before = _final_id("patient", patient, revision - 1) if revision > 1 else None
        return self._message(PatientFinal(**fields, slides=1, revision=revision, supersedes=before))

    def patches(self, patient: str, slide: str, strip: int, rows: int, before: int = 0, **more: Any) -> Message:
        """One strip's heat map: three patches a row, the last of each rejected."""
        cells = [(x, y) for y in range(rows) for x in range(3)]
        fields: dict[str, Any] = {
            "classes": CLASSES,
            "reasons": ("empty",),
            "size_px": 300,
            "stride_px": 900,
            "before": before,
            "strip": tuple(strip for _ in cells),
            "x": tuple(300 * x for x, _ in cells),
            "y": tuple(300 * y for _, y in cells),
            "predicted": tuple(-1 if x == 2 else x for x, _ in cells),
            "confidence": tuple(0 if x == 2 else 200 for x, _ in cells),
            **more,
        }
        return self._message(SlidePatches(**self.stamp(), patient=patient, slide=slide, **fields))

    def _result(self, patient: str, used: int, rejected: int, more: dict[str, Any]) -> dict[str, Any]:
        stamp = self.stamp(more.pop("event_id", None))
        return {
            **stamp,
            "profile": self.profile,
            "engine": ENGINE,
            "calibration": "temperature",
            "patient": patient,
            "classes": CLASSES,
            **answer_of(used),
            "interval_mass": 0.95,
            "decision": "provisional",
            "decision_reason": "below_operating_point",
            "operating_point": 0.77,
            "counts": Counts(seen=used + rejected, used=used, rejected={"empty": rejected} if rejected else {}),
            "low_tissue": used < 20,
            "minimum_patches": 20,
            "state": "receiving",
            "strips": Parts(done=2, expected=10),
            "latency": Latency(last_byte_to_result_ms=120.0, inference_ms=60.0, last_byte_at=self.time),
            **more,
        }

    def _message(self, payload: Payload) -> Message:
        return TOPICS.message(payload)


def _final_id(scope: str, name: str, revision: int) -> str:
    return f"{scope}-{name}-{revision}"
