"""The payloads that carry an answer: running posteriors, finals, heat map arrays. Pure, like agent.messages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agent.messages import INTENDED_USE, Count, Counts, EngineRef, Payload, Probability, ProfileRef, UtcTime
from models.decision import Decision
from models.profile import Frozen


class Parts(Frozen):
    """Scan strips (or the one mosaic) of what the result speaks of."""

    done: Count
    """Those that have been read to their end."""
    expected: Count | None = None
    """None while only silence can tell."""


class Latency(Frozen):
    """Where the time went, for the latest patch in the result."""

    last_byte_to_result_ms: float | None = Field(None, ge=0)
    """From the last bytes of the latest patch to its result."""
    inference_ms: float | None = Field(None, ge=0)
    """The engine's run on the latest batch."""
    last_byte_at: UtcTime | None = None
    """When the last bytes of the latest patch were seen."""


class Domain(Frozen):
    """Used patches that do not look like the profile's reference. High shares: the answer should not be trusted."""

    judged: Count
    """Used patches that were compared with the reference."""
    embedding_far: Count
    """Those whose embedding lies farther from the reference's centre than nearly all of its own patches."""
    intensity_outside: Count
    """Those whose intensity statistics lie outside the reference's range."""
    limit: Probability
    """From this share of either on, the decision is `out_of_domain`."""

    @model_validator(mode="after")
    def _parts_of_the_whole(self) -> Domain:
        if max(self.embedding_far, self.intensity_outside) > self.judged:
            raise ValueError(f"more patches marked than the {self.judged} that were judged")
        return self


class Result(Payload):
    """A distribution over classes with everything needed to judge it."""

    intended_use: Literal["research use only"] = INTENDED_USE
    """Not for diagnosis or treatment."""
    profile: ProfileRef
    """Which weights answered."""
    engine: EngineRef
    """What ran them."""
    calibration: str
    """Kind of the calibration map."""
    patient: str
    """Pseudonym."""
    classes: tuple[str, ...] = Field(min_length=2)
    """[K] what can be answered; every array of K entries has this order."""
    probabilities: tuple[Probability, ...] | None = None
    """[K] posterior mean per class; null until a patch was used."""
    interval: tuple[tuple[Probability, Probability], ...] | None = None
    """[K] credible interval (low, high) per class; null until a patch was used."""
    interval_mass: float = Field(gt=0, lt=1)
    """Share of belief that each credible interval holds, e.g. 0.95."""
    predicted: str | None = None
    """The class of the largest probability; null until a patch was used."""
    confidence: Probability | None = None
    """The largest probability."""
    decision: Decision
    """The one word to act on (models.decision); the published rule alone is `high_confidence`."""
    decision_reason: str
    """Why it is this word and not a stronger one (models.decision.REASONS)."""
    operating_point: Probability
    """The profile's threshold of high confidence: the line to draw across the bars."""
    high_confidence: bool = False
    """The published rule: confidence ≥ the operating point, however few the patches and whatever they show."""
    counts: Counts
    """Patches that it rests on, and those that it does not rest on."""
    low_tissue: bool
    """Fewer used patches than the profile's minimum."""
    minimum_patches: Count
    """That minimum."""
    domain: Domain | None = None
    """How the patches compare with what the profile was made for; null when the profile has no reference."""
    state: Literal["receiving", "complete", "stalled", "abandoned"]
    """`receiving`: more comes; `complete`: all there; `stalled`: silence; `abandoned`: files removed."""
    strips: Parts
    """How much has been scanned."""
    latency: Latency = Latency()
    """How old the newest of it is."""

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
    """Pseudonym."""


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
    """Pseudonym."""


class PatientFinal(_Final):
    """The answer for a patient who has ended. Never coalesced."""

    kind: Literal["patient.final"] = "patient.final"
    slides: Count
    """Slides with at least one patch."""


class SlidePatches(Payload):
    """Some patches of a slide for its heat map, as parallel arrays. QoS 0: a lost one leaves a hole in the picture.

    What is said of the slide as a whole, `intended_use` too, is in its posterior: this stays small.
    """

    kind: Literal["slide.patches"] = "slide.patches"
    patient: str
    """Pseudonym."""
    slide: str
    """Pseudonym."""
    classes: tuple[str, ...] = Field(min_length=2)
    """As in the slide's posterior."""
    size_px: int = Field(gt=0)
    """Side of a patch."""
    stride_px: int = Field(ge=0)
    """From a scan strip's left edge to the next one's. Strips lie side by side in the order of their numbers, which
    may have gaps: a patch is drawn at (place of its strip × stride + x, y)."""
    before: Count
    """Patches of this slide in earlier messages: a receiver that has fewer knows that its picture has holes."""
    strip: tuple[Count, ...]
    """[N] number of the scan strip that each patch was cut from."""
    x: tuple[Count, ...]
    """[N] left edge of each patch in its strip, px."""
    y: tuple[Count, ...]
    """[N] upper edge of each patch, px."""
    reasons: tuple[str, ...] = ()
    """Why patches of this message were rejected."""
    predicted: tuple[int, ...]
    """Index into `classes`; -1 - i for a patch that was rejected for `reasons[i]`."""
    confidence: tuple[Annotated[int, Field(ge=0, le=255)], ...]
    """Largest probability × 255, rounded; 0 for a rejected patch."""

    @model_validator(mode="after")
    def _parallel(self) -> SlidePatches:
        lengths = {len(row) for row in (self.strip, self.x, self.y, self.predicted, self.confidence)}
        if len(lengths) != 1:
            raise ValueError(f"arrays must be of one length, got {sorted(lengths)}")
        if any(not -len(self.reasons) <= index < len(self.classes) for index in self.predicted):
            raise ValueError(f"predicted must be in {-len(self.reasons)}..{len(self.classes) - 1}")
        return self
