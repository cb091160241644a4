"""How soon an answer is there: one slide written at an even pace, watched by a real agent through a real broker."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console

from agent.imager import Pixels, PlannedFile, plan, write_growing
from agent.profile_folder import load_profile_folder
from models.srh.config import SrhInput, srh_input
from models.srh.patches import grid
from models.srh.phantom import PhantomSlide, strip
from tests.bench.figures import Outcome, Promise, Spread, figure_table
from tests.bench.live import Heard, Stage, stage

STRIP_S = 10.0
REPETITIONS = 3
AT_ONCE = 6
"""Slides that are written as fast as the disk takes them."""
HEIGHT_PX = 2000
SLIDE = PhantomSlide(41_001, 1, HEIGHT_PX)
FIRST_LIMIT = 0.5
"""The first posterior of a strip comes before this share of it is written."""
FINAL_LIMIT_S = 1.0
"""The final comes within this after the last byte, beside the time of the last batch."""
ADDED_LIMIT_MS = 50.0
WAIT_S = 60.0


@dataclass
class WriteLog:
    """When which byte of a strip's files was on disk. The files grow in turns, as `write_growing` writes them."""

    files: int
    sizes: list[int] = field(default_factory=list)
    rounds: list[tuple[float, int]] = field(default_factory=list)
    """Monotonic seconds → bytes of the shortest file, ascending."""

    def wrote(self, count: int) -> None:
        """Take note of `count` bytes just written to the next file."""
        self.sizes.append(count)
        if len(self.sizes) == self.files:
            before = self.rounds[-1][1] if self.rounds else 0
            self.rounds.append((time.monotonic(), before + min(self.sizes)))
            self.sizes.clear()

    def when(self, size: int) -> float:
        """Monotonic seconds at which every file had this many bytes."""
        return next(at for at, there in self.rounds if there >= size)

    def share(self, at: float) -> float:
        """Which share of the files was on disk at a moment, 0..1."""
        there = [size for moment, size in self.rounds if moment <= at]
        return (there[-1] if there else 0) / self.rounds[-1][1]


@dataclass(frozen=True)
class Told:
    """One row of patches: its last byte on disk → a posterior that counts it at the subscriber."""

    total_ms: float
    inference_ms: float
    delivery_ms: float
    """From the making of the message (its own `time`) to its arrival: ledger, MQTT client, broker."""

    @property
    def added_ms(self) -> float:
        """What the agent, the broker and the file system add to the network's own time."""
        return max(0.0, self.total_ms - self.inference_ms)


@dataclass(frozen=True)
class Repetition:
    """What one slide showed."""

    first_share: list[float]
    """Per scan strip: the share of it that was written when its first posterior arrived."""
    first_s: list[float]
    """Per scan strip: seconds since its first byte then."""
    final_s: float
    last_batch_ms: float
    rows: list[Told]

    @property
    def final_inference_share(self) -> float:
        """Share of the wait for the final that the last batch took."""
        return self.last_batch_ms / 1e3 / self.final_s


@dataclass(frozen=True)
class Saturation:
    """Slides that came as fast as the disk took them."""

    row_ms: list[float]
    """Per row of patches: from its last byte on disk to a posterior that counts it, most of it waiting."""
    patches_per_s: float
    """From the first byte to the last final."""


def measure(
    profile: Path,
    console: Console,
    repetitions: int = REPETITIONS,
    strip_s: float = STRIP_S,
    engines: Sequence[str] = (),
    at_once: int = AT_ONCE,
) -> Outcome:
    """Write the slide `repetitions` times under new names, `strip_s` seconds for each scan strip, then `at_once`
    slides as fast as possible; for each entry of `engine.order` in `engines`, or once in the usual order.
    """
    strips = [strip(SLIDE, index) for index in range(SLIDE.strips)]
    spec = srh_input(load_profile_folder(profile).spec)
    outcomes = {}
    for entry in engines or ("",):
        settings: dict[str, Any] = {"engine": {"order": [entry]}} if entry else {}
        with (
            tempfile.TemporaryDirectory(prefix="bench-latency-") as folder,
            stage(Path(folder), profile, **settings) as live,
        ):
            found: list[Repetition] = []
            for number in range(repetitions):
                said = f"latency {entry}: slide {number + 1} of {repetitions}, {strip_s:g} s a strip"
                console.print(said, style="dim")
                patient = f"LATENCY_{number}"
                logs = _write(live, list(plan(strips, "strips-b", patient, "1")), strip_s)
                final = live.wait_for_final(patient, "1", WAIT_S, lambda: None)
                found.append(evaluate(live.results(patient, "1"), logs, spec, live.batch()))
            console.print(f"latency {entry}: {at_once} slides as fast as the disk takes them", style="dim")
            saturated = _saturate(live, strips, at_once, spec)
        outcomes[entry or final.engine] = outcome(found, saturated, final.engine, strip_s)
    return Outcome(
        "latency",
        [table for one in outcomes.values() for table in one.tables],
        {"engines": {entry: one.figures for entry, one in outcomes.items()}},
        [promise for one in outcomes.values() for promise in one.promises],
    )


def _saturate(live: Stage, strips: Sequence[Pixels], slides: int, spec: SrhInput) -> Saturation:
    numbers = [str(number) for number in range(1, slides + 1)]
    planned = {number: list(plan(strips, "strips-b", "SATURATION", number)) for number in numbers}
    logs = {number: _write(live, files, 0.0) for number, files in planned.items()}
    finals = [live.wait_for_final("SATURATION", number, WAIT_S, lambda: None) for number in numbers]
    batch = live.batch()
    rows = [
        row.total_ms
        for number in numbers
        for row in evaluate(live.results("SATURATION", number), logs[number], spec, batch).rows
    ]
    took_s = max(final.at for final in finals) - logs[numbers[0]][0].rounds[0][0]
    return Saturation(rows, sum(final.seen for final in finals) / took_s)


def _write(live: Stage, files: list[PlannedFile], strip_s: float) -> list[WriteLog]:
    logs = []
    for group in range(SLIDE.strips):
        pair: list[tuple[PurePosixPath, bytes]] = [(f.relative, f.content) for f in files if f.group == group]
        logs.append(WriteLog(len(pair)))
        write_growing(live.agent.folder, pair, strip_s, progress=logs[-1].wrote)
    return logs


def evaluate(heard: list[Heard], logs: list[WriteLog], spec: SrhInput, batch: int) -> Repetition:
    """Match what was heard of a slide with what was written of it; raises ValueError without a final."""
    final = next((message for message in heard if message.body["kind"] == "slide.final"), None)
    if final is None:
        raise ValueError("the slide has no final")
    ys, xs = grid(HEIGHT_PX, spec.strip_width_px, "strip", spec)
    first_share, first_s, rows = [], [], []
    used = 0
    for index, log in enumerate(logs):
        before = index * len(ys) * len(xs)
        first = _counting(heard, before + 1)
        first_share.append(log.share(first.at))
        first_s.append(first.at - log.rounds[0][0])
        for row, y in enumerate(ys):
            told = _counting(heard, before + (row + 1) * len(xs))
            missing_rows = HEIGHT_PX - (y + spec.size_px)
            written = log.when(log.rounds[-1][1] - missing_rows * spec.strip_width_px * 2)
            new, used = told.body["counts"]["used"] - used, told.body["counts"]["used"]
            one_ms = told.body["latency"]["inference_ms"] or 0.0
            total_ms = 1e3 * (told.at - written)
            rows.append(Told(total_ms, math.ceil(new / batch) * one_ms, told.delivery_ms))
    last_byte = logs[-1].rounds[-1][0]
    last_batch_ms = final.body["latency"]["inference_ms"] or 0.0
    return Repetition(first_share, first_s, final.at - last_byte, last_batch_ms, rows)


def _counting(heard: list[Heard], patches: int) -> Heard:
    """The first message that counts this many patches."""
    return next(message for message in heard if message.seen >= patches)


def outcome(found: list[Repetition], saturated: Saturation, engine: str, strip_s: float) -> Outcome:
    """Judge what one engine showed."""
    shares = Spread.of([share for one in found for share in one.first_share])
    seconds = Spread.of([second for one in found for second in one.first_s])
    final = Spread.of([one.final_s for one in found])
    final_share = Spread.of([one.final_inference_share for one in found])
    batch_ms = Spread.of([one.last_batch_ms for one in found])
    rows = [row for one in found for row in one.rows]
    total, added = Spread.of([row.total_ms for row in rows]), Spread.of([row.added_ms for row in rows])
    inference = Spread.of([row.inference_ms for row in rows])
    delivery = Spread.of([row.delivery_ms for row in rows])
    waited = Spread.of(saturated.row_ms)
    table = figure_table(
        f"Latency, {engine}: slides of {SLIDE.strips} strips of {HEIGHT_PX} rows, {strip_s:g} s a strip",
        [
            ("first posterior of a strip: share written", shares.text()),
            ("first posterior of a strip: after its first byte, s", seconds.text()),
            ("final: after the slide's last byte, s", f"{final.text(3)}"),
            ("... of which the last batch, ms", f"{batch_ms.text(1)}, {final_share.median:.0%} of it"),
            ("row of patches on disk → posterior at subscriber, ms", f"{total.text(1)}, p99 {total.p99:.1f}"),
            ("... of which inference, ms", inference.text(1)),
            ("... from the message's making to its arrival, ms", f"{delivery.text(1)}, p99 {delivery.p99:.1f}"),
            ("... added latency (all but inference), ms", f"{added.text(1)}, p99 {added.p99:.1f}"),
            ("at saturation: row on disk → posterior, ms", f"{waited.text(0)}, p99 {waited.p99:.0f}"),
            ("at saturation: patches/s, first byte → last final", f"{saturated.patches_per_s:.1f}"),
        ],
        caption=f"median (range) over {len(found)} slides and {len(rows)} rows of patches; at saturation"
        f" {len(saturated.row_ms)} rows, which wait for those before them",
    )
    worst = max(found, key=lambda one: one.final_s - one.last_batch_ms / 1e3)
    promises = [
        Promise(
            f"{engine}: first posterior before the strip is half written",
            f"at {shares.high:.0%} of the strip at the latest",
            shares.high < FIRST_LIMIT,
        ),
        Promise(
            f"{engine}: final within {FINAL_LIMIT_S:g} s + the last batch after the last byte",
            f"{worst.final_s:.3f} s with a last batch of {worst.last_batch_ms:.1f} ms at most",
            all(one.final_s <= FINAL_LIMIT_S + one.last_batch_ms / 1e3 for one in found),
        ),
        Promise(
            f"{engine}: added latency at most {ADDED_LIMIT_MS:g} ms (p99) at the imager's pace",
            f"p99 {added.p99:.1f} ms",
            added.p99 <= ADDED_LIMIT_MS,
        ),
    ]
    figures: dict[str, Any] = {
        "engine": engine,
        "strip_s": strip_s,
        "slides": [asdict(one) for one in found],
        "first_share": asdict(shares),
        "first_s": asdict(seconds),
        "final_s": asdict(final),
        "final_inference_share": asdict(final_share),
        "row_total_ms": asdict(total),
        "row_inference_ms": asdict(inference),
        "row_delivery_ms": asdict(delivery),
        "row_added_ms": asdict(added),
        "saturation": {"row_ms": asdict(waited), "patches_per_s": saturated.patches_per_s},
    }
    return Outcome("latency", [table], figures, promises)
