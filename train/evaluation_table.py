"""What `evaluate-phantom` found, for people and for scripts. Decides wording and rounding only."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from models.domain import MARKS
from models.profile import Profile
from models.srh.phantom import CLASSES
from train.evaluate import SlideResult


def record_of(result: SlideResult) -> dict[str, object]:
    """One slide, for JSON."""
    posterior = result.posterior
    predicted, counts = posterior.predicted, posterior.counts
    return {
        "seed": result.seed,
        "truth": CLASSES[result.truth],
        "predicted": None if predicted is None else CLASSES[predicted],
        "confidence": posterior.confidence,
        "lower_bound": None if predicted is None else posterior.interval[predicted][0],
        "decision": result.decision,
        "decision_reason": result.reason,
        "correct": result.correct,
        "used": counts.used,
        "rejected": counts.rejected,
        "judged": posterior.judged,
        "marks": posterior.marks,
        "patch_accuracy": float((result.used_probabilities.argmax(axis=1) == result.truth).mean())
        if counts.used
        else None,
    }


def summary_of(results: Sequence[SlideResult]) -> dict[str, object]:
    """Several slides together: used patches, the share that bears each mark, how often each decision was taken."""
    used = sum(result.posterior.counts.used for result in results)
    judged = max(1, sum(result.posterior.judged for result in results))
    decisions = Counter(result.decision for result in results)
    summary: dict[str, object] = {"slides": len(results), "used": used, "decisions": dict(decisions.most_common())}
    for mark in MARKS:
        summary[mark] = sum(result.posterior.marks.get(mark, 0) for result in results) / judged
    return summary


def show(spec: Profile, results: Sequence[SlideResult], foreign: Mapping[str, Sequence[SlideResult]]) -> None:
    """The slides one by one, then all of them beside each kind of foreign picture."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_slides(spec, results))
    console.print(_domain(spec, {"the slides above": results, **foreign}))


def _slides(spec: Profile, results: Sequence[SlideResult]) -> Table:
    columns = ("seed", "truth", "predicted", "confidence", "patches right", "used", "rejected", "decision", "")
    table = Table(*columns, title=f"{spec.name} {spec.version}: synthetic slides, not tissue")
    for result in results:
        record = record_of(result)
        rejected = ", ".join(f"{n} {reason}" for reason, n in result.posterior.counts.rejected.items())
        accuracy = record["patch_accuracy"]
        table.add_row(
            str(record["seed"]),
            str(record["truth"]),
            str(record["predicted"] or "–"),
            f"{result.posterior.confidence:.3f}",
            f"{accuracy:.0%}" if isinstance(accuracy, float) else "–",
            str(record["used"]),
            rejected or "–",
            result.decision,
            "✓" if result.correct else "✗",
        )
    return table


def _domain(spec: Profile, kinds: Mapping[str, Sequence[SlideResult]]) -> Table:
    caption = f"from {spec.decision.most_marked:.0%} of a slide's patches with one mark on, it is out of domain"
    table = Table("picture", "slides", "used", *MARKS, "decisions", title="Like the reference?", caption=caption)
    for name, results in kinds.items():
        summary = summary_of(results)
        decisions = Counter(result.decision for result in results).most_common()
        table.add_row(
            name,
            str(summary["slides"]),
            str(summary["used"]),
            *(f"{summary[mark]:.1%}" for mark in MARKS),
            ", ".join(f"{count} {decision}" for decision, count in decisions),
        )
    return table
