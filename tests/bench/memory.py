"""Whether memory stays flat: many slides through one run of the real agent, one after another as fast as it can.

The pixels are those of one slide, hard-linked under ever new names, so that the disk holds them once.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.imager import plan
from models.srh.phantom import PhantomSlide, strip
from tests.bench.figures import Outcome, Promise, Spread, figure_table
from tests.bench.live import Heard, Stage, stage
from tests.bench.machine import rss_bytes

SLIDES = 50
SETTLED_AFTER = 4
"""Slides until every buffer has been needed once."""
TOLERANCE = 0.1
SLIDE = PhantomSlide(41_002, 2, 6000)
WAIT_S = 120.0
MIB = 2**20


@dataclass
class Sample:
    """Resident memory around one slide, bytes."""

    after: int
    """When its final had arrived."""
    peak: int
    """The largest size seen from outside while it was worked on."""
    health: int
    """The largest size that the agent told of itself meanwhile; 0 when it told nothing in that time."""
    seen: int
    """Patches counted."""


def measure(profile: Path, console: Console, slides: int = SLIDES, source: PhantomSlide = SLIDE) -> Outcome:
    """Send `slides` slides through one agent; the next one comes when the final of the one before has arrived."""
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
        originals = _write_once(Path(folder) / "once", source, console)
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with stage(Path(folder), profile) as live, Progress(*columns, console=console) as bar:
            task = bar.add_task("memory: slides", total=slides)
            samples = []
            for number in range(slides):
                sample, final = _send(live, originals, Path(folder) / "once", f"MEMORY_{number}")
                samples.append(sample)
                bar.advance(task)
    return outcome(samples, final.engine)


def _write_once(folder: Path, source: PhantomSlide, console: Console) -> list[Path]:
    """Render the slide into files below `folder`; their paths below the patient's folder."""
    console.print(f"memory: rendering {source.strips} strips of {source.height_px} rows", style="dim")
    below: list[Path] = []
    for file in plan((strip(source, index) for index in range(source.strips)), "strips-b", "once", "1"):
        path = Path(*file.relative.parts[1:])
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(file.content)
        below.append(path)
    return below


def _send(live: Stage, originals: Sequence[Path], folder: Path, patient: str) -> tuple[Sample, Heard]:
    process = live.agent.process
    assert process is not None
    pid = process.pid
    live.forget_messages()
    for path in originals:
        target = live.agent.folder / patient / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(folder / path)
    sizes: list[int] = []
    final = live.wait_for_final(patient, "1", WAIT_S, lambda: sizes.append(rss_bytes(pid)))
    told = [body["rss_bytes"] for body in live.bodies("/health")]
    return Sample(rss_bytes(pid), max(sizes), max(told, default=0), final.seen), final


def outcome(samples: Sequence[Sample], engine: str) -> Outcome:
    """Judge the samples of one run, in the order of the slides; needs more than SETTLED_AFTER + 1 of them."""
    settled = samples[SETTLED_AFTER:]
    after, peak = Spread.of([s.after / MIB for s in settled]), Spread.of([s.peak / MIB for s in settled])
    told = Spread.of([s.health / MIB for s in settled if s.health] or [0.0])
    early = samples[min(9, len(samples) // 2)]
    drift_mib = (samples[-1].after - early.after) / MIB
    numbers = f"{samples.index(early) + 1} and {len(samples)}"
    table = figure_table(
        f"Memory, {engine}: {len(samples)} slides of {samples[-1].seen} patches in one run",
        [
            ("resident after each slide, MiB", after.text(1)),
            ("largest during each slide (/proc), MiB", peak.text(1)),
            ("largest during each slide (health messages), MiB", told.text(1)),
            (f"drift between slides {numbers}, MiB", f"{drift_mib:+.1f}"),
        ],
        caption=f"median (range) from slide {SETTLED_AFTER + 1} on",
    )
    farthest = max(_deviation([s.after for s in settled]), _deviation([s.peak for s in settled]))
    promise = Promise(
        f"memory within ±{TOLERANCE:.0%} of its median from slide {SETTLED_AFTER + 1} on",
        f"{farthest:.1%} at most, after and during slides",
        farthest <= TOLERANCE,
    )
    figures: dict[str, Any] = {
        "engine": engine,
        "samples": [asdict(sample) for sample in samples],
        "after_mib": asdict(after),
        "peak_mib": asdict(peak),
        "health_mib": asdict(told),
        "drift_mib": drift_mib,
    }
    return Outcome("memory", [table], figures, [promise])


def _deviation(sizes: Sequence[int]) -> float:
    """The largest distance from the median, as a share of it."""
    middle = statistics.median(sizes)
    return max(abs(size - middle) for size in sizes) / middle
