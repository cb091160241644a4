"""Spooled results for tests: a slide of two strips and its patient, as the agent would spool them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agent.messages import Counts, EngineRef, ProfileRef
from agent.results import Domain, Parts, PatientFinal, SlideFinal
from agent.spool import Origin, SpooledPatch, SpooledResult, SpooledSlide

CLASSES = ("ependymoma", "meningioma", "metastasis", "schwannoma")
PATIENT, SLIDE = "pqrstuvwxyz23456", "abcdefghijklmnop"
EVENT = "0123456789abcdef0123456789abcdef"
MOMENT = datetime(2026, 5, 4, 13, 37, 11, 250_000, tzinfo=UTC)
ORIGIN = Origin(
    version="0.1.0",
    site="theatre",
    instrument="nio-2",
    intended_use="research use only; a synthetic phantom model for demonstrations and tests, meaningless on tissue",
    size_px=300,
    stride_px=900,
)
PROBABILITIES = (0.0123456789012345, 0.9312345678901234, 0.05, 0.0064197532086421)
INTERVAL = ((0.001, 0.04), (0.87654321098765, 0.9712345678901234), (0.01, 0.1), (0.0, 0.02))


def final_fields(**changes: Any) -> dict[str, Any]:
    """What slide and patient finals have in common."""
    return {
        "event_id": EVENT,
        "session_id": "session",
        "time": MOMENT,
        "profile": ProfileRef(name="phantom", version=1, sha256="ab" * 32),
        "engine": EngineRef(name="openvino", precision="bf16"),
        "calibration": "one_vs_rest_sigmoid",
        "patient": PATIENT,
        "classes": CLASSES,
        "probabilities": PROBABILITIES,
        "interval": INTERVAL,
        "interval_mass": 0.95,
        "predicted": "meningioma",
        "confidence": PROBABILITIES[1],
        "decision": "high_confidence",
        "decision_reason": "meets_every_rule",
        "operating_point": 0.77,
        "high_confidence": True,
        "counts": Counts(seen=42, used=35, rejected={"dim": 5, "saturated": 2}),
        "low_tissue": False,
        "minimum_patches": 20,
        "domain": Domain(judged=35, embedding_far=1, intensity_outside=2, limit=0.5),
        "state": "complete",
        "strips": Parts(done=2, expected=2),
        "revision": 1,
        **changes,
    }


def patches(rows: int = 7) -> tuple[SpooledPatch, ...]:
    """Two strips of three columns; the first row of each strip was rejected, one place was never counted."""
    found = []
    for strip in (0, 1):
        for row in range(rows):
            for column in range(3):
                share = ((strip * 3 + column + row) % 7) / 10
                outcome = (0.1, 0.9 - share, share, 0.0) if row else "dim"
                if (strip, row, column) != (1, rows - 1, 2):
                    found.append(SpooledPatch(strip, 50 + 300 * column, 300 * row, outcome))
    return tuple(found)


def slide_result(**changes: Any) -> SpooledResult:
    """A slide's final with its patches; `changes` are fields of the final."""
    final = SlideFinal(**final_fields(**changes), slide=SLIDE)
    return SpooledResult(origin=ORIGIN, study_at=MOMENT, final=final, patches=patches())


def patient_result(**changes: Any) -> SpooledResult:
    """The final of the slide's patient."""
    final = PatientFinal(**final_fields(**{"event_id": "f" * 32, **changes}), slides=1)
    return SpooledResult(origin=ORIGIN, study_at=MOMENT, final=final, slides=(SpooledSlide(SLIDE, EVENT),))


def nothing_used(**changes: Any) -> dict[str, Any]:
    """Fields of a final for which no patch could be used."""
    nothing = dict.fromkeys(("probabilities", "interval", "predicted", "confidence"))
    counts = Counts(seen=3, used=0, rejected={"dim": 3})
    return {
        **nothing,
        "counts": counts,
        "low_tissue": True,
        "high_confidence": False,
        "decision": "insufficient",
        "decision_reason": "too_few_patches",
        "domain": None,
        **changes,
    }
