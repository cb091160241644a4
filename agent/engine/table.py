"""Built engines as a table for people. Decides wording and rounding only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from agent.engine.manifest import Manifest


def engine_table(rows: Sequence[tuple[Path, Manifest | None, str]]) -> Table:
    """One column per engine (folder, manifest, state), at least one: its state and what its gates measured."""
    table = Table(title="Built engines, newest first", caption="Δp: probability minus that of eager fp32")
    table.add_column("")
    for folder, _, _ in rows:
        table.add_column(folder.name, overflow="fold")
    cells = [_cells(manifest, state) for _, manifest, state in rows]
    for label in cells[0]:
        table.add_row(label, *(column[label] for column in cells))
    return table


def _cells(manifest: Manifest | None, state: str) -> dict[str, str]:
    built = manifest.built_at[:16].replace("T", " ") + " UTC" if manifest else "–"
    labels = ["golden pair, max |Δp|", "patches, max |Δp|", "patches, mean |Δp|", "same class"]
    labels += ["embedding, max difference", "as far or near as eager", "patches/s", "eager"]
    figures = manifest.figures if manifest else None
    values = ["–"] * len(labels)
    if figures:
        ties = f", {figures.ties} ties" if figures.ties else ""
        values = [f"{value:.2g}" for value in (figures.golden_max_dp, figures.max_dp, figures.mean_dp)]
        values.append(f"{figures.argmax_agreement:.1%} of {figures.patches}{ties}")
        agreement = "no reference" if figures.far_agreement is None else f"{figures.far_agreement:.1%}"
        values += [f"{figures.embedding_difference:.2%}", agreement]
        values += [f"{figures.patches_per_s:.0f} ({figures.threads} threads)", f"{figures.eager_patches_per_s:.0f}"]
    return {"state": state, "built": built, **dict(zip(labels, values, strict=True))}
