"""Every payload that leaves the agent. Pure: knows no topic, broker, clock or ledger (see agent.topics)."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from models.profile import Frozen

INTENDED_USE: Literal["research use only"] = "research use only"

UtcTime = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]
"""ISO 8601 with time zone; always written as UTC."""
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ProfileRef(Frozen):
    """Which weights answered."""

    name: str
    version: int
    sha256: str


class EngineRef(Frozen):
    """What ran them."""

    name: str
    precision: str


class Counts(Frozen):
    """Patches so far. Nothing is counted twice and nothing is invented: seen = used + rejected."""

    seen: Count
    used: Count
    rejected: dict[str, Count] = {}
    """Reason → patches."""

    @model_validator(mode="after")
    def _balance(self) -> Counts:
        rejected = sum(self.rejected.values())
        if self.seen != self.used + rejected:
            raise ValueError(f"seen {self.seen} is not used {self.used} + rejected {rejected}")
        return self


class Parts(Frozen):
    """Scan strips (or the one mosaic) of what the result speaks of."""

    done: Count
    expected: Count | None = None
    """None while only silence can tell."""


class Latency(Frozen):
    """Where the time went."""

    last_byte_to_result_ms: float | None = Field(None, ge=0)
    inference_ms: float | None = Field(None, ge=0)


class QueueState(Frozen):
    """One hand-over between two rooms."""

    depth: Count
    high_water: Count
    capacity: Count


class Payload(Frozen):
    """What every message says of itself."""

    kind: str
    event_id: str = Field(min_length=1, max_length=64)
    """Consumers drop a message whose event_id they have seen."""
    session_id: str
    """One start of the agent."""
    time: UtcTime


class Status(Payload):
    """Birth (`online`), clean end (`stopped`) and last will (`offline`)."""

    kind: Literal["status"] = "status"
    state: Literal["online", "stopped", "offline"]
    boot_seq: Count
    """Grows by one with every start on this ledger: tells an old will from a new birth."""
    version: str
    profile: ProfileRef
    engine: EngineRef
    passed_over: dict[str, str] = {}
    """Engine → why it was not used, for engines preferred to the one that runs."""
    since: UtcTime
    intended_use: Literal["research use only"] = INTENDED_USE


class Health(Payload):
    """Figures about the process; expires, so that a dead agent's figures do not linger."""

    kind: Literal["health"] = "health"
    patches: Counts
    handovers: dict[str, QueueState]
    outbox: Count
    """Messages not yet acknowledged by the broker."""
    reconnects: Count
    scan_only_finds: Count
    """Files that no event announced and only the scan found."""
    engine: EngineRef
    uptime_s: float = Field(ge=0)
    last_byte_age_s: float | None = Field(None, ge=0)
    rss_bytes: Count


class Current(Payload):
    """What is being imaged now; nulls when nothing is."""

    kind: Literal["current"] = "current"
    patient: str | None = None
    slide: str | None = None


class Result(Payload):
    """A distribution over classes with everything needed to judge it."""

    intended_use: Literal["research use only"] = INTENDED_USE
    profile: ProfileRef
    engine: EngineRef
    calibration: str
    """Kind of the calibration map."""
    patient: str
    classes: tuple[str, ...] = Field(min_length=2)
    probabilities: tuple[Probability, ...] | None = None
    """[K] posterior mean per class; null until a patch was used."""
    interval: tuple[tuple[Probability, Probability], ...] | None = None
    """[K] credible interval (low, high) per class; null until a patch was used."""
    interval_mass: float = Field(gt=0, lt=1)
    predicted: str | None = None
    confidence: Probability | None = None
    """The largest probability."""
    high_confidence: bool = False
    """The published rule: confidence ≥ the operating point, however few the patches; read `low_tissue` with it."""
    counts: Counts
    low_tissue: bool
    """Fewer used patches than the profile's minimum."""
    state: Literal["receiving", "complete", "stalled", "abandoned"]
    strips: Parts
    latency: Latency = Latency()

    @model_validator(mode="after")
    def _consistent(self) -> Result:
        answer = (self.probabilities, self.interval, self.predicted, self.confidence)
        if any((value is None) != (self.counts.used == 0) for value in answer):
            raise ValueError("probabilities, interval, predicted and confidence are null exactly when used is 0")
        rows = (self.probabilities, self.interval)
        if any(row is not None and len(row) != len(self.classes) for row in rows):
            raise ValueError(f"probabilities and interval need one entry for each of {len(self.classes)} classes")
        if self.predicted is not None and self.predicted not in self.classes:
            raise ValueError(f"predicted {self.predicted!r} is not one of the classes")
        return self


class SlidePosterior(Result):
    """The running answer for a slide; the latest one counts."""

    kind: Literal["slide.posterior"] = "slide.posterior"
    slide: str


class PatientPosterior(Result):
    """The running answer for a patient over all slides; the latest one counts."""

    kind: Literal["patient.posterior"] = "patient.posterior"
    slides: Count
    """Slides with at least one patch so far."""


class _Final(Result):
    revision: int = Field(ge=1)
    """1, then one more each time that later data changed a final answer."""
    supersedes: str | None = None
    """event_id of the final that this one replaces."""

    @model_validator(mode="after")
    def _revised(self) -> _Final:
        if (self.revision > 1) != (self.supersedes is not None):
            raise ValueError("supersedes is null exactly for revision 1")
        return self


class SlideFinal(_Final):
    """The answer for a slide that has ended. Never coalesced."""

    kind: Literal["slide.final"] = "slide.final"
    slide: str


class PatientFinal(_Final):
    """The answer for a patient who has ended. Never coalesced."""

    kind: Literal["patient.final"] = "patient.final"
    slides: Count


class SlidePatches(Payload):
    """One batch of patches for heat maps, as parallel arrays. QoS 0: a lost one leaves a hole in a picture."""

    kind: Literal["slide.patches"] = "slide.patches"
    intended_use: Literal["research use only"] = INTENDED_USE
    patient: str
    slide: str
    classes: tuple[str, ...] = Field(min_length=2)
    strip: tuple[Count, ...]
    x: tuple[Count, ...]
    y: tuple[Count, ...]
    predicted: tuple[Annotated[int, Field(ge=-1)], ...]
    """Index into `classes`; -1 for a rejected patch."""
    confidence: tuple[Annotated[int, Field(ge=0, le=255)], ...]
    """Largest probability × 255, rounded; 0 for a rejected patch."""

    @model_validator(mode="after")
    def _parallel(self) -> SlidePatches:
        lengths = {len(row) for row in (self.strip, self.x, self.y, self.predicted, self.confidence)}
        if len(lengths) != 1:
            raise ValueError(f"arrays must be of one length, got {sorted(lengths)}")
        if any(index >= len(self.classes) for index in self.predicted):
            raise ValueError(f"predicted must stay below {len(self.classes)}")
        return self


class Alert(Payload):
    """Something a person should look at. Never coalesced; holds no identity, only pseudonyms."""

    kind: Literal["alert"] = "alert"
    severity: Literal["warning", "error"]
    reason: str
    """A stable word (FormatError.REASONS among others)."""
    detail: str = Field(max_length=1000)
    patient: str | None = None
    slide: str | None = None
    file: str | None = None


class ClosePatient(Frozen):
    """Body of the command `cmd/close-patient`: this patient (null: everybody who is open) has ended."""

    patient: str | None = None
