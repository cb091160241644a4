"""Days of scanning in minutes: slide after slide through one run of the real agent, as fast as it can.

What is kept must not grow. Old slides are removed from the folder meanwhile, as imagers do.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.figures import Outcome, Promise, Spread
from tests.bench.live import Stage, stage
from tests.bench.picture import Panel, draw
from tests.bench.slides import Original
from tests.bench.vitals import MIB, Vitals, Watcher, settled, slope

SLIDES = 400
A_DAY = 40
"""Slides that a busy instrument images in a day."""
AHEAD = 4
"""So many slides wait in the folder at any time: the agent never rests."""
KEPT = 20
"""Slides that stay in the folder."""
WAIT_S = 120.0
POLL_S = 0.02
GROWTH_BYTES = 32 << 10
"""Most that memory may grow with each slide: in a year of A_DAY slides, half of what a small computer has."""
SLACK_BYTES = 16 * MIB
"""And this over the whole run, by which an allocator breathes."""
LOG_BYTES = 16 * MIB
"""agent.ledger_file cuts the write-ahead log back to this."""


def measure(
    profile: Path,
    console: Console,
    slides: int = SLIDES,
    original: Callable[[Path], Original] = Original.phantom,
    picture: Path | None = None,
    **settings: Any,
) -> Outcome:
    """Send `slides` slides of as many patients; `settings` are sections of the agent's settings."""
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as home:
        once = original(Path(home) / "once")
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with (
            stage(Path(home), profile, **settings) as live,
            Progress(*columns, console=console) as bar,
        ):
            task = bar.add_task("soak: slides", total=slides)
            watcher = Watcher(live)
            finals = _run(
                live, watcher, once, Path(home) / "staging", slides, lambda n: bar.update(task, completed=n)
            )
            capacity = (live.last_health() or {})["handovers"]["reader-engine"]["capacity"]
    if picture is not None:
        _draw(picture, watcher.taken)
    return outcome(watcher, finals, once.patches, capacity)


@dataclass(frozen=True)
class Told:
    """One slide of the run."""

    seen: int
    """Patches that its final speaks of."""
    waited_s: float
    """From the moment when it lay in the folder."""


def _run(
    live: Stage, watcher: Watcher, once: Original, staging: Path, slides: int, told: Callable[[int], None]
) -> list[Told]:
    """Returns what was told of each slide, in that order."""
    waiting: dict[str, tuple[str, float]] = {}
    finals: list[Told] = []
    done: list[str] = []
    watcher.look(0)
    heard_at = time.monotonic()
    while len(finals) < slides:
        while len(finals) + len(waiting) < slides and len(waiting) < AHEAD:
            patient = f"SOAK_{len(finals) + len(waiting):05d}"
            once.send(staging, live.agent.folder, patient)
            waiting[live.agent.pseudonym(patient, "1").slide] = patient, time.monotonic()
        for message in live.take_messages():
            slide = message.topic.split("/")[-2] if message.topic.endswith("/final") else ""
            if slide in waiting:
                patient, since_s = waiting.pop(slide)
                finals.append(Told(_seen(message.payload), message.timestamp - since_s))
                done.append(patient)
                heard_at = time.monotonic()
        if watcher.taken[-1].slides < len(finals):
            watcher.look(len(finals))
            told(len(finals))
            for patient in done[:-KEPT]:
                shutil.rmtree(live.agent.folder / patient)
            del done[:-KEPT]
        elif time.monotonic() - heard_at > WAIT_S:
            names = ", ".join(patient for patient, _ in waiting.values())
            raise TimeoutError(f"no final within {WAIT_S:.0f} s after {len(finals)} slides; still waiting: {names}")
        else:
            time.sleep(POLL_S)
    return finals


def _seen(payload: bytes) -> int:
    return int(json.loads(payload)["counts"]["seen"])


def outcome(watcher: Watcher, finals: Sequence[Told], patches: int, capacity: int) -> Outcome:
    """Judge one run: what it took from a third of it on, when every buffer had been needed once."""
    taken = watcher.taken
    slides = taken[-1].slides
    late = settled(taken, slides // 3)
    growth = {name: slope(late, name) for name in ("rss", "anon", "ledger", "audit")}
    run = late[-1].slides - late[0].slides
    drift = late[-1].rss - late[0].rss
    allowed = SLACK_BYTES + GROWTH_BYTES * run
    descriptors = Spread.of([float(vitals.descriptors) for vitals in late])
    threads = Spread.of([float(vitals.threads) for vitals in late])
    promises = [
        Promise(
            "every slide's final speaks of all its patches",
            f"{len(finals)} finals",
            all(final.seen == patches for final in finals),
        ),
        Promise(
            f"memory grows by less than {SLACK_BYTES // MIB} MiB + {GROWTH_BYTES >> 10} KiB a slide",
            f"{drift / MIB:+.1f} MiB over {run} slides ({growth['rss'] / 1024:+.1f} KiB a slide)",
            drift <= allowed and growth["rss"] * run <= allowed,
        ),
        Promise("open descriptors stay as many", descriptors.text(0), descriptors.high - descriptors.median <= 4),
        Promise("threads stay as many", threads.text(0), threads.high - threads.median <= 1),
        Promise(
            f"the write-ahead log stays below {LOG_BYTES // MIB} MiB",
            f"{watcher.most('wal') / MIB:.1f} MiB",
            watcher.most("wal") <= LOG_BYTES,
        ),
        Promise(
            "hand-overs stay within their capacity",
            f"{watcher.most('depth')} of {capacity} at most",
            watcher.most("depth") <= capacity,
        ),
    ]
    waited = Spread.of([final.waited_s for final in finals])
    per_s = (taken[-1].slides - taken[0].slides) / max(taken[-1].at_s, 1e-9)
    figures = {
        "slides": slides,
        "seconds": taken[-1].at_s,
        "slides_per_s": per_s,
        "growth_bytes_per_slide": growth,
        "drift_bytes": drift,
        "waited_s": asdict(waited),
        "descriptors": asdict(descriptors),
        "threads": asdict(threads),
        "vitals": watcher.document(),
    }
    return Outcome("soak", [_table(taken, per_s, waited), _growth_table(growth)], figures, promises)


def _table(taken: list[Vitals], per_s: float, waited: Spread) -> Table:
    slides = taken[-1].slides
    table = Table(
        *(
            "slides",
            "s",
            "memory, MiB",
            "own, MiB",
            "descriptors",
            "threads",
            "ledger, MiB",
            "log, MiB",
            "audit, MiB",
        ),
        "outbox",
        title=f"Soak: {slides} slides ({slides / A_DAY:.0f} days of {A_DAY}), {per_s:.2f} slides/s",
        caption=f"from the folder to the final: {waited.text(1)} s, p99 {waited.p99:.1f}, {AHEAD} always waiting",
        title_justify="left",
        caption_justify="left",
    )
    for share in (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        one = min(taken, key=lambda vitals: abs(vitals.slides - share * slides))
        sizes = [f"{size / MIB:.1f}" for size in (one.rss, one.anon, one.ledger, one.wal, one.audit)]
        counts = (str(one.descriptors), str(one.threads))
        table.add_row(str(one.slides), f"{one.at_s:.0f}", *sizes[:2], *counts, *sizes[2:], str(one.outbox))
    return table


def _growth_table(growth: dict[str, float]) -> Table:
    table = Table("grows with each slide", "bytes", f"MiB in a year of {A_DAY} a day", title_justify="left")
    names = {"rss": "memory", "anon": "memory of its own", "ledger": "ledger", "audit": "audit log"}
    for name, label in names.items():
        table.add_row(label, f"{growth[name]:+.0f}", f"{growth[name] * A_DAY * 365 / MIB:+.0f}")
    return table


def _draw(path: Path, taken: list[Vitals]) -> None:
    slides = [float(vitals.slides) for vitals in taken]
    panels = [
        Panel("resident memory, MiB", slides, [vitals.rss / MIB for vitals in taken]),
        Panel("open descriptors", slides, [float(vitals.descriptors) for vitals in taken]),
        Panel("threads", slides, [float(vitals.threads) for vitals in taken]),
        Panel("ledger with its log, MiB", slides, [(vitals.ledger + vitals.wal) / MIB for vitals in taken]),
        Panel("messages not yet acknowledged", slides, [float(max(0, vitals.outbox)) for vitals in taken]),
    ]
    draw(path, panels, "slides")
