"""Built engines as tables for people. Decides wording and rounding only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from agent.engine.device import Device
from agent.engine.figures import GateFigure
from agent.engine.manifest import Manifest


@dataclass(frozen=True)
class Listed:
    """One engine folder as it stands."""

    folder: Path
    manifest: Manifest | None
    """None: it cannot be read."""
    state: str
    """`usable`, or why it is refused."""
    signature: str

    @property
    def usable(self) -> bool:
        """Whether the agent may load it here."""
        return self.state == "usable"


def engine_report(engines: Sequence[Listed]) -> Iterator[RenderableType]:
    """Every engine in a line, then the newest one's gates, limits and notes."""
    yield _overview(engines)
    newest = next((engine for engine in engines if engine.manifest and engine.manifest.figures), None)
    if newest is None or newest.manifest is None:
        return
    yield _gates(newest.folder.name, newest.manifest)
    yield _facts(newest.manifest, newest.signature)


def _overview(engines: Sequence[Listed]) -> Table:
    table = Table(title="Built engines, newest first")
    table.add_column("engine", no_wrap=True)
    table.add_column("built (UTC)")
    for name in ("patches/s", "× eager"):
        table.add_column(name, justify="right")
    for name in ("signature", "state here"):
        table.add_column(name, overflow="fold")
    for engine in engines:
        figures = engine.manifest.figures if engine.manifest else None
        built = engine.manifest.built_at[:16].replace("T", " ") if engine.manifest else "–"
        speed = f"{figures.patches_per_s:.3g}" if figures else "–"
        ratio = f"{figures.patches_per_s / figures.eager_patches_per_s:.1f}" if figures else "–"
        state = f"[{'green' if engine.usable else 'red'}]{escape(engine.state)}[/]"
        table.add_row(engine.folder.name, built, speed, ratio, escape(engine.signature), state)
    return table


def _gates(name: str, manifest: Manifest) -> Table:
    table = Table(title=f"Gates that {name} passed", caption="Δp: probability minus that of eager fp32")
    for column in ("gate", "measured", "limit", "figure", "passed"):
        table.add_column(column, overflow="fold")
    before = ""
    for figure in manifest.figures.gates if manifest.figures else ():
        gate = "" if figure.gate == before else figure.gate
        before = figure.gate
        table.add_row(gate, escape(figure.measure), _limit(figure), figure.shown(), _passed(figure))
    return table


def _limit(figure: GateFigure) -> str:
    sign = "≤" if figure.bound == "at most" else "≥"
    return f"{sign} {figure.limit:.6g}"


def _passed(figure: GateFigure) -> str:
    if figure.figure is None:
        return "not counted"
    return "[green]yes[/]" if figure.passed else "[red]no[/]"


def _facts(manifest: Manifest, signature: str) -> Table:
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    figures = manifest.figures
    profile = manifest.profile
    rows = {
        "profile": f"{profile.name} {profile.version} ({profile.sha256[:12]}…, weights {profile.weights[:12]}…)",
        "device": words_of(manifest.device),
        "libraries": ", ".join(f"{n} {v}" for n, v in (manifest.requires | manifest.built_with).items()),
        "compared on": f"{figures.patches} patches, half of them blends; phantom slides, whole: {figures.slides} with"
        f" {figures.slide_patches} patches"
        if figures
        else "–",
        "threads": str(figures.threads) if figures else "–",
        "signature": signature,
        **manifest.notes,
    }
    for name, text in rows.items():
        table.add_row(escape(name), escape(text))
    return table


def words_of(device: Device) -> str:
    """A device in words: every fact that an engine is bound to."""
    facts = device.model_dump()
    said = [str(facts.pop("model") or facts["kind"])]
    for name, value in facts.items():
        if value and name != "kind":
            said.append(f"{name} {' '.join(value) if isinstance(value, (tuple, list)) else value}")
    return ", ".join(said)
