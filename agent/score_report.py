"""What `agent score` says: the document for programs and the table for people. Reads no file and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from agent.acquisition import State
from agent.engine.service import Replacement
from agent.intake import Problem
from agent.ledger import CountedPatch
from agent.reducer import Reducer, SlideRecord, state_of
from agent.reporter import domain_of
from models.contract import SlideKey
from models.decision import REASONS, WORDS, decide
from models.posterior import FRACTION_BITS
from models.profile import LoadedProfile


def document_of(
    profile: LoadedProfile,
    reducer: Reducer,
    patches: Iterable[CountedPatch],
    problems: Iterable[Problem],
    replacements: Iterable[Replacement] = (),
) -> dict[str, Any]:
    """The document that `--out` writes: `engine` is the one in service at the end, `replaced` those before it."""
    spec = profile.spec
    used = sorted((row for row in patches if row.values is not None), key=lambda row: row.key)
    patients = sorted({key.patient for key in reducer.slides})

    def of_slide(key: SlideKey) -> dict[str, Any]:
        record = reducer.slides[key]
        state = {"state": record.state.value, "strips": {"done": record.done, "expected": record.expected}}
        return {"patient": key.patient, "slide": key.slide, **_result(reducer, [record]), **state}

    def of_patient(name: str) -> dict[str, Any]:
        return {"patient": name, **_result(reducer, [record for _, record in reducer.slides_of(name)])}

    return {
        "profile": {"name": spec.name, "version": spec.version, "sha256": profile.sha256},
        "engine": {"name": reducer.engine.name, "precision": reducer.engine.precision},
        "replaced": [
            {"engine": change.before, "by": change.after, "reason": change.reason} for change in replacements
        ],
        "intended_use": spec.intended_use,
        "classes": list(spec.classes),
        "patches": [
            {**row.key._asdict(), "probabilities": [v / (1 << FRACTION_BITS) for v in row.values or ()]}
            for row in used
        ],
        "slides": [of_slide(key) for key in sorted(reducer.slides)],
        "patients": [of_patient(name) for name in patients],
        "problems": [
            {"reason": p.reason, "detail": p.detail, "file": p.file_id, "slide": p.slide.slide if p.slide else None}
            for p in problems
        ],
    }


def _result(reducer: Reducer, records: list[SlideRecord]) -> dict[str, Any]:
    """What slides together amount to, as on the wire (agent.results)."""
    spec, posterior = reducer.profile, reducer.combine(records)
    predicted, counts = posterior.predicted, posterior.counts
    decision, reason = decide(posterior, spec, complete=state_of(records) is State.COMPLETE)
    domain = domain_of(posterior, spec)
    return {
        "n_patches": counts.used,
        "probabilities": list(posterior.probabilities),
        "interval": [list(pair) for pair in posterior.interval],
        "predicted": None if predicted is None else spec.classes[predicted],
        "confidence": posterior.confidence,
        "decision": decision,
        "decision_reason": reason,
        "domain": None if domain is None else domain.model_dump(mode="json"),
        "high_confidence": posterior.confidence >= spec.operating_points["high_confidence"],
        "low_tissue": counts.used < spec.minimum_patches,
        "counts": {"seen": counts.seen, "used": counts.used, "rejected": counts.rejected},
    }


def show(document: dict[str, Any], seconds: float) -> None:
    """The table: a line a slide and a patient, and below it why each decision is not a stronger one."""
    console = Console()
    table = Table(title="research use only")
    for name in ("patient", "slide", "predicted", "confidence", "decision", "patches used"):
        table.add_column(name, no_wrap=name in ("patient", "slide"))
    rows = [*document["slides"], *document["patients"]]
    for row in rows:
        table.add_row(
            row["patient"],
            row.get("slide", "all slides"),
            row["predicted"] or "no usable patch",
            f"{row['confidence']:.3f}",
            WORDS[row["decision"]],
            f"{row['n_patches']} of {row['counts']['seen']}",
        )
    console.print(table)
    for decision, reason in sorted({(row["decision"], row["decision_reason"]) for row in rows}):
        console.print(f"{WORDS[decision]}: {REASONS[reason]}", highlight=False)
    console.print(f"{len(document['patches'])} patches in {seconds:.1f} s", highlight=False)
