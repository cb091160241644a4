"""Throughput from finished files on disk to a posterior: the agent beside the published way, in one run.

The variants take turns, so that a busy moment of a shared machine hits all of them; ratios are what to look at.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.engine import choose
from agent.engine.backend import thread_count
from agent.errors import EngineError
from agent.imager import Pixels, PlannedFile, plan
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile
from models.srh.config import srh_input
from models.srh.gate import judge
from models.srh.phantom import PhantomSlide, strip
from tests.bench.figures import Outcome, Promise, Spread
from tests.bench.peak import Peak
from tests.bench.turns import in_a_process, undisturbed
from tests.bench.variants import PATCHES, STRIPS, VARIANTS, Run, Variant

SLIDE = PhantomSlide(41_002, 2, 6000)
FULL_SIZE_SLIDE = PhantomSlide(41_002, 2, 4000)
"""168 patches: the published way takes a second for eight of the full-size network."""
REPETITIONS = 3
SLOW = ("naive-tuned", "eager-patches", "eager-strips")
"""Left out for the full-size network, which they would run for a quarter of an hour."""
PUBLISHED = "naive"
TIMES = {"bf16": 8.0, "int8": 15.0}
"""Precision → how many times the published way's rate, for the full-size network."""
SHARE_OF_ENGINE = 0.95
HOST_MS = 0.4
"""Of one core, per patch cut from uncompressed strips."""
COLUMNS = (
    "(precision, batch)",
    "patches/s",
    "× published",
    "CPU ms",
    "network alone",
    "share of it",
    "of peak",
    "host ms: used, cut",
    "max |Δp|",
)
WIDE = 1.5
"""Largest over smallest rate of one variant from which on the machine must have been busy."""
DISTURBED = " [bold]Wide ranges: something else ran meanwhile, and the ratios of this run say little.[/]"
CAPTION = (
    "Median (range). Files lie in the page cache; loading the network is not part of it. CPU ms: processor time per "
    "patch, all threads. Network alone: the same batches from memory. Of peak: arithmetic of the network alone over "
    "a plain matrix product of that precision. Host ms: work outside the engine, one core, per patch used and per "
    "patch cut. "
    "|Δp|: calibrated probability against the published way."
)


def measure(
    profile: Path, console: Console, repetitions: int = REPETITIONS, source: PhantomSlide | None = None
) -> Outcome:
    """Write one slide in both layouts and let every variant read it `repetitions` times."""
    threads = thread_count(0)
    names = [name for name, variant in VARIANTS.items() if _is_there(profile, variant, console)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    peaks: list[dict[str, Any]] = []

    def take_peak() -> None:
        peaks.append(undisturbed(partial(in_a_process, "tests.bench.peak", profile, "--threads", threads)))

    take_peak()
    slide = source or SLIDE
    if Peak.of(peaks, threads).is_full_size:
        slide = source or FULL_SIZE_SLIDE
        names = [name for name in names if name not in SLOW]
        found = {name: found[name] for name in names}
    with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as folder:
        console.print(f"pipeline: writing {slide.strips} strips of {slide.height_px} rows", style="dim")
        strips = [strip(slide, index) for index in range(slide.strips)]
        write_strips(Path(folder) / STRIPS, strips)
        write_patches(Path(folder) / PATCHES, strips, load_profile_folder(profile))
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("pipeline: runs", total=repetitions * len(names))
            for number in range(repetitions):
                if number:
                    take_peak()
                for name in names:
                    words = ("tests.bench.variants", name, folder, profile)
                    run = partial(in_a_process, *words, environment=VARIANTS[name].environment)
                    found[name].append(undisturbed(run))
                    bar.advance(task)
    runs = {name: [Run(**run) for run in these] for name, these in found.items()}
    return outcome(runs, Peak.of(peaks, threads))


def _is_there(profile: Path, variant: Variant, console: Console) -> bool:
    """Whether the profile has a usable engine for a variant; says why it has none."""
    if variant.backend == "naive":
        return True
    try:
        choose(profile, load_profile_folder(profile), (variant.backend,), 0).engine.close()
    except EngineError as reason:
        console.print(f"pipeline: no {variant.title}: {reason}", highlight=False, markup=False)
        return False
    return True


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
        "peak_gflops": peak.document(),
        "variants": rows,
    }
    return Outcome("pipeline", [table, limits], figures, promises(rows) if peak.is_full_size else [])


def promises(rows: Mapping[str, dict[str, Any]]) -> list[Promise]:
    """What is owed of the full-size network, with the files as the imager writes them."""
    kept = []
    for precision, times in TIMES.items():
        text = f"{precision} at least {times:g} × the published way, files to posterior"
        row = rows.get(f"{precision}-strips")
        if row is None:
            kept.append(Promise(text, "not measured", False))
            continue
        found, share = row["times_published"]["median"], row["share_of_engine"]["median"]
        from_patches = rows[f"{precision}-patches"]["times_published"]["median"]
        measured = f"{found:.1f} × from strips, {from_patches:.1f} × from the published way's own files"
        kept.append(Promise(text, measured, found >= times))
        text = f"{precision}: the whole at least {SHARE_OF_ENGINE:.0%} of the engine alone"
        kept.append(Promise(text, f"{share:.1%}", share >= SHARE_OF_ENGINE))
        cut_ms, used_ms = row["host_ms_per_cut"]["median"], row["host_ms"]["median"]
        text = f"{precision}: host work at most {HOST_MS:g} ms of one core per patch cut from strips"
        kept.append(Promise(text, f"{cut_ms:.2f} ms ({used_ms:.2f} per patch used)", cut_ms <= HOST_MS))
    return kept


def _row(name: str, runs: Sequence[Run], published: Sequence[Run], peak: Peak) -> dict[str, Any]:
    first = runs[0]
    engine = Spread.of([run.engine_rate for run in runs])
    hosts = [run.host_ms for run in runs if run.host_ms is not None]
    per_cut = [run.host_ms * run.patches / run.cut for run in runs if run.host_ms is not None and run.cut]
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
        "share_of_peak": peak.share(first.precision, engine.median),
        "host_ms": asdict(Spread.of(hosts)) if hosts else None,
        "host_ms_per_cut": asdict(Spread.of(per_cut)) if per_cut else None,
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
        "–" if row["host_ms_per_cut"] is None else f"{text('host_ms')}, {row['host_ms_per_cut']['median']:.2f}",
        "–" if name == PUBLISHED else f"{row['max_dp']:.1g}",
    ]
