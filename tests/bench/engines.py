"""The network alone, from raw counts in memory to its outputs: every engine beside the published call, in one run.

The ways take turns, so that a busy moment of a shared machine hits all of them; ratios are what to look at. Engines
are compiled here for every batch size and pass no gate: their answers are the build's matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.engine.backend import thread_count
from tests.bench.chart import Level, Line, draw_lines
from tests.bench.figures import Outcome, Promise, Spread
from tests.bench.peak import Peak
from tests.bench.turns import in_a_process, undisturbed
from tests.bench.ways import PUBLISHED, WAYS, Way

BATCHES = (1, 4, 8, 16, 32)
PUBLISHED_BATCH = 32
ROUNDS = 3
SECONDS = 1.0
"""At each batch size; a batch that takes longer runs once."""
TRIES = 2
"""A round is long: a disturbed process runs once more, not for ever."""
BF16_TIMES = {32: 7.0, 1: 3.5}
"""Batch → how many times the published call's rate at that batch."""
SHARES = {"bf16": 0.88, "int8": 0.80}
"""Of the peak of that precision, at the best batch size."""
CAPTION = (
    "Patches/s, median (range); below it the ratio to the published call at the same batch, the ratio to it at batch "
    "32, and the share of the peak of that precision. Layers: those with arithmetic, by the precision they run in."
)

Rates = dict[int, list[float]]
"""Batch → patches/s, by round."""


def measure(
    profile: Path,
    console: Console,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    batches: Sequence[int] = BATCHES,
    names: Sequence[str] = tuple(WAYS),
    kept: Path | None = None,
    picture: Path | None = None,
) -> Outcome:
    """Time each way at each batch size, on one thread and on every core. `kept`: where built engines stay for the
    next run; the published call is always among `names`.
    """
    threads = sorted({1, thread_count(0)})
    names = [PUBLISHED, *(name for name in names if name != PUBLISHED)]
    with ExitStack() as stack:
        root = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-engines-")))
        console.print("engines: compiling without gates (int8 searches its layers first)", style="dim")
        built = in_a_process("tests.bench.ways", "build", profile, root, "--way", *names, "--batches", *batches)
        for name, reason in built["missing"].items():
            console.print(f"engines: no {name}: {reason}", highlight=False, markup=False)
        ways = [name for name in names if name not in built["missing"]]
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        peaks: list[dict[str, Any]] = []
        found: dict[int, dict[str, Rates]] = {count: {name: {} for name in ways} for count in threads}
        census: dict[str, dict[str, int]] = {}
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("engines: runs", total=rounds * (1 + len(ways) * len(threads)))
            for _ in range(rounds):
                peaks.append(
                    undisturbed(partial(in_a_process, "tests.bench.peak", profile, "--threads", *threads), TRIES)
                )
                bar.advance(task)
                for count in threads:
                    for name in ways:
                        run = partial(_rates, name, profile, root, count, batches, seconds)
                        for one in undisturbed(run, TRIES):
                            found[count][name].setdefault(one["batch"], []).append(one["patches_per_s"])
                            census[name] = one["census"]
                        bar.advance(task)
    judged = outcome(found, {count: Peak.of(peaks, count) for count in threads}, census)
    judged.figures |= {"missing": built["missing"], "notes": built["notes"], "rounds": rounds}
    if picture is not None:
        draw(picture, judged.figures)
    return judged


def _rates(
    name: str, profile: Path, root: Path, threads: int, batches: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    words: list[str | Path | float] = ["rate", profile, root, "--way", name, "--threads", threads]
    words += ["--seconds", seconds, "--batches", *batches]
    found: list[dict[str, Any]] = in_a_process("tests.bench.ways", *words, environment=WAYS[name].environment)
    return found


def outcome(
    found: Mapping[int, Mapping[str, Rates]], peaks: Mapping[int, Peak], census: Mapping[str, dict[str, int]]
) -> Outcome:
    """Tables, figures and promises of all rounds, by number of threads and way."""
    figures: dict[str, Any] = {"threads": {}, "census": dict(census)}
    tables = []
    for threads, rates in found.items():
        peak = peaks[threads]
        rows = {name: row(WAYS[name], rates[name], rates[PUBLISHED], peak) for name in rates}
        figures["threads"][str(threads)] = {"peak_gflops": peak.document(), "ways": rows}
        tables.append(_table(threads, rows, peak, census))
    every = max(found)
    figures["gflop_per_patch"] = peaks[every].gflop_per_patch
    rows = figures["threads"][str(every)]["ways"]
    return Outcome("engines", tables, figures, promises(rows) if peaks[every].is_full_size else [])


def row(way: Way, rates: Rates, published: Rates, peak: Peak) -> dict[str, Any]:
    """One way's figures by batch size."""
    base = published[max(published)]
    cells = {}
    for batch, values in rates.items():
        spread = Spread.of(values)
        cells[str(batch)] = {
            "patches_per_s": asdict(spread),
            "times_published": asdict(_ratio(values, published[batch])),
            "times_published_largest": asdict(_ratio(values, base)),
            "share_of_peak": peak.share(way.precision, spread.median),
        }
    return {"title": way.title, "precision": way.precision, "batches": cells}


def _ratio(values: Sequence[float], others: Sequence[float]) -> Spread:
    """Round by round: what was slow in one was so for both."""
    return Spread.of([value / other for value, other in zip(values, others, strict=True)])


def promises(rows: Mapping[str, dict[str, Any]]) -> list[Promise]:
    """What is owed of the full-size network on every core."""
    kept = []
    for batch, times in BF16_TIMES.items():
        name, cell = _best(rows, "bf16", str(batch))
        found = cell["times_published"]["median"] if cell else 0.0
        text = f"bf16 at batch {batch} at least {times:g} × the published call"
        kept.append(Promise(text, f"{found:.1f} × ({name})", found >= times))
    for precision, share in SHARES.items():
        name, cell = _best(rows, precision)
        found = (cell["share_of_peak"] or 0.0) if cell else 0.0
        text = f"{precision} at least {share:.0%} of the peak at its best batch"
        kept.append(Promise(text, f"{found:.1%} ({name})", found >= share))
    return kept


def _best(rows: Mapping[str, dict[str, Any]], precision: str, batch: str = "") -> tuple[str, dict[str, Any] | None]:
    """The fastest cell of a precision, at one batch size or at any; how it is called, and itself."""
    cells = [
        (f"{name}, batch {size}", cell)
        for name, one in rows.items()
        for size, cell in one["batches"].items()
        if one["precision"] == precision and batch in ("", size)
    ]
    if not cells:
        return "not measured", None
    return max(cells, key=lambda item: float(item[1]["patches_per_s"]["median"]))


def _table(
    threads: int, rows: Mapping[str, dict[str, Any]], peak: Peak, census: Mapping[str, dict[str, int]]
) -> Table:
    batches = next(iter(rows.values()))["batches"]
    ideals = ", ".join(f"{name} {gflops.median:.0f}" for name, gflops in peak.gflops.items())
    table = Table(
        "",
        *(f"batch {batch}" for batch in batches),
        "layers",
        title=f"Engine only, {threads} thread{'s' if threads > 1 else ''}, {peak.gflop_per_patch:.2f} GFLOP a patch",
        caption=f"{CAPTION} Peaks, GFLOP/s: {ideals}.",
        title_justify="left",
        caption_justify="left",
    )
    for name, one in rows.items():
        layers = " ".join(f"{count} {precision}" for precision, count in census.get(name, {}).items())
        table.add_row(one["title"], *(_cell(cell) for cell in one["batches"].values()), layers or "–")
    return table


def _cell(cell: dict[str, Any]) -> str:
    rate = Spread(**cell["patches_per_s"])
    share = cell["share_of_peak"]
    times = f"{cell['times_published']['median']:.1f} × · {cell['times_published_largest']['median']:.1f} ×"
    digits = 1 if rate.median < 100 else 0
    return f"{rate.text(digits)}\n{times} · {'–' if share is None else f'{share:.0%}'}"


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Patches/s by batch size on every core, with what the arithmetic alone would allow."""
    every = max(figures["threads"], key=int)
    found = figures["threads"][every]
    lines = [
        Line(one["title"], [cell["patches_per_s"]["median"] for cell in one["batches"].values()])
        for one in found["ways"].values()
    ]
    levels = [
        Level(f"{name} peak", spread["median"] / figures["gflop_per_patch"])
        for name, spread in found["peak_gflops"].items()
    ]
    batches = [batch for one in found["ways"].values() for batch in one["batches"]][: len(lines[0].y)]
    draw_lines(path, f"patches/s by batch size, {every} threads", batches, lines, levels)
