"""Throughput from finished files on disk to a posterior: the agent beside the published way, in one run.

The variants take turns, so that a busy moment of a shared machine hits all of them; ratios are what to look at.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.imager import Pixels, PlannedFile, plan
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile
from models.srh.config import srh_input
from models.srh.gate import judge
from models.srh.phantom import PhantomSlide, strip
from tests.bench.figures import Outcome, Spread
from tests.bench.machine import Spent, company
from tests.bench.variants import PATCHES, PEAK, STRIPS, VARIANTS, Run
from tests.system.processes import ROOT

SLIDE = PhantomSlide(41_002, 2, 6000)
REPETITIONS = 3
LIMIT_S = 600.0
TRIES = 6
COMPANY_LIMIT = 0.05
"""A run is repeated when others took more of the processor than this share. Waiting threads make the published way
several times slower on a busy machine, which would flatter us."""
PUBLISHED = "naive"
COLUMNS = (
    "(precision, batch)",
    "patches/s",
    "× published",
    "CPU ms",
    "network alone",
    "share of it",
    "of peak",
    "host ms",
    "max |Δp|",
)
WIDE = 1.5
"""Largest over smallest rate of one variant from which on the machine must have been busy."""
DISTURBED = " [bold]Wide ranges: something else ran meanwhile, and the ratios of this run say little.[/]"
CAPTION = (
    "Median (range). Files lie in the page cache; loading the network is not part of it. CPU ms: processor time per "
    "patch, all threads. Network alone: the same batches from memory. Of peak: arithmetic of the network alone over "
    "a plain matrix product of that precision. Host ms: work per patch outside the engine, one core. "
    "|Δp|: calibrated probability against the published way."
)


@dataclass(frozen=True)
class Peak:
    """The machine's arithmetic and what a patch asks of it."""

    gflop_per_patch: float
    gflops: dict[str, Spread]
    """By precision."""

    def ideal_rate(self, precision: str) -> float | None:
        """Patches/s if nothing but arithmetic took time; None where the peak was not measured."""
        spread = self.gflops.get(precision)
        return None if spread is None else spread.median / self.gflop_per_patch


def measure(profile: Path, console: Console, repetitions: int = REPETITIONS, source: PhantomSlide = SLIDE) -> Outcome:
    """Write one slide in both layouts and let every variant read it `repetitions` times."""
    names = [PEAK, *VARIANTS]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as folder:
        console.print(f"pipeline: writing {source.strips} strips of {source.height_px} rows", style="dim")
        strips = [strip(source, index) for index in range(source.strips)]
        write_strips(Path(folder) / STRIPS, strips)
        write_patches(Path(folder) / PATCHES, strips, load_profile_folder(profile))
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("pipeline: runs", total=repetitions * len(names))
            for _ in range(repetitions):
                for name in names:
                    found[name].append(_undisturbed(name, Path(folder), profile))
                    bar.advance(task)
    peak_runs = found.pop(PEAK)
    peaks = {
        precision: Spread.of([run[precision] for run in peak_runs])
        for precision in peak_runs[0]
        if precision != "gflop_per_patch"
    }
    runs = {name: [Run(**run) for run in these] for name, these in found.items()}
    return outcome(runs, Peak(peak_runs[0]["gflop_per_patch"], peaks))


def write_strips(folder: Path, strips: Sequence[Pixels]) -> None:
    """A slide as DICOM scan strips; `strips` are uint16 [2, H, 1000]."""
    for file in plan(strips, "strips-b", "BENCH", "1"):
        _write(folder, file)


def write_patches(folder: Path, strips: Sequence[Pixels], profile: LoadedProfile) -> None:
    """A slide as one TIFF for each patch that passes the tissue gate.

    A published data set lists such patches only, so that both ways have the same patches to run.
    """
    gate = srh_input(profile.spec).gate
    for file in plan(strips, "opensrh", "BENCH", "1"):
        if judge(tifffile.imread(io.BytesIO(file.content)), gate) is None:
            _write(folder, file)


def _write(folder: Path, file: PlannedFile) -> None:
    path = folder / file.relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content)


def _undisturbed(name: str, folder: Path, profile: Path) -> dict[str, Any]:
    """One run in a quiet moment; on a machine that has none, the last of some."""
    for _ in range(TRIES):
        before = Spent.now()
        document = _in_a_process(name, folder, profile)
        if company(before, Spent.now(), os.cpu_count() or 1) <= COMPANY_LIMIT:
            break
    return document


def _in_a_process(name: str, folder: Path, profile: Path) -> dict[str, Any]:
    environment = VARIANTS[name].environment if name in VARIANTS else {}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.variants", name, str(folder), str(profile)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def outcome(runs: dict[str, list[Run]], peak: Peak) -> Outcome:
    """The table and figures of all runs, by variant."""
    patches = runs[PUBLISHED][0].patches
    title = f"Files → posterior: one slide, {patches} patches, {peak.gflop_per_patch:.2f} GFLOP each"
    rows = {name: _row(name, these, runs[PUBLISHED], peak) for name, these in runs.items()}
    rates = [Spread(**row["patches_per_s"]) for row in rows.values()]
    disturbed = any(rate.high > WIDE * rate.low for rate in rates)
    caption = CAPTION + (DISTURBED if disturbed else "")
    table = Table(*COLUMNS, title=title, caption=caption, title_justify="left", caption_justify="left")
    for name, row in rows.items():
        table.add_row(*_cells(name, runs[name][0], row))
    limits = Table("precision", "peak, GFLOP/s", "ideal patches/s", title="Physical limit", title_justify="left")
    for precision, gflops in peak.gflops.items():
        limits.add_row(precision, gflops.text(0), f"{peak.ideal_rate(precision):.0f}")
    figures = {
        "patches": patches,
        "disturbed": disturbed,
        "gflop_per_patch": peak.gflop_per_patch,
        "peak_gflops": {name: asdict(spread) for name, spread in peak.gflops.items()},
        "variants": rows,
    }
    return Outcome("pipeline", [table, limits], figures)


def _row(name: str, runs: Sequence[Run], published: Sequence[Run], peak: Peak) -> dict[str, Any]:
    first = runs[0]
    engine = Spread.of([run.engine_rate for run in runs])
    ideal = peak.ideal_rate(first.precision)
    hosts = [run.host_ms for run in runs if run.host_ms is not None]
    scalings = [run.scaling_ms for run in runs if run.scaling_ms is not None]
    return {
        "title": VARIANTS[name].title,
        "precision": first.precision,
        "batch": first.batch,
        "patches_per_s": asdict(Spread.of([run.rate for run in runs])),
        "times_published": asdict(Spread.of([a.rate / b.rate for a, b in zip(runs, published, strict=True)])),
        "cpu_ms": asdict(Spread.of([run.cpu_ms for run in runs])),
        "engine_patches_per_s": asdict(engine),
        "share_of_engine": asdict(Spread.of([run.rate / run.engine_rate for run in runs])),
        "share_of_peak": None if ideal is None else engine.median / ideal,
        "host_ms": asdict(Spread.of(hosts)) if hosts else None,
        "scaling_ms": asdict(Spread.of(scalings)) if scalings else None,
        "max_dp": max_difference(first.answers, published[0].answers),
    }


def max_difference(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest difference of a probability; raises ValueError when the patches are not the same ones."""
    if one.keys() != other.keys():
        raise ValueError(f"{len(one.keys() ^ other.keys())} patches are in one of the two only")
    return max(float(np.abs(np.subtract(one[place], other[place])).max()) for place in one)


def _cells(name: str, first: Run, row: dict[str, Any]) -> list[str]:
    def text(key: str, digits: int = 2) -> str:
        return "–" if row[key] is None else Spread(**row[key]).text(digits)

    title = f"{row['title']} ({first.precision}, {first.batch})"
    share, peak = Spread(**row["share_of_engine"]).median, row["share_of_peak"]
    return [
        title,
        text("patches_per_s", 0),
        "1" if name == PUBLISHED else text("times_published", 1),
        text("cpu_ms", 1),
        text("engine_patches_per_s", 0),
        f"{share:.0%}",
        "–" if peak is None else f"{peak:.0%}",
        text("host_ms"),
        "–" if name == PUBLISHED else f"{row['max_dp']:.1g}",
    ]
