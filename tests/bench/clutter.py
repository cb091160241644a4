"""Files that are no slides: many that are no images, and many broken ones. The slide on the table does not wait for
them, and memory does not grow with them for ever.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.burst import Audience, Scanned, scan
from tests.bench.figures import Outcome, Promise, figure_table
from tests.bench.live import Stage, stage
from tests.bench.slides import Original
from tests.bench.vitals import MIB, Vitals, Watcher

TEXTS = 100_000
BROKEN = 10_000
PER_FOLDER = 1000
PART_S = 4.0
LIMIT_S = 5.0
IDLE_S = 30.0
GROWTH_KIB = 8
"""Most that memory may grow with each broken file in the folder, and a sixteenth of it with each other one."""
WAIT_S = 600.0
POLL_S = 0.5


def measure(
    profile: Path,
    console: Console,
    texts: int = TEXTS,
    broken: int = BROKEN,
    original: Callable[[Path], Original] = Original.phantom,
    part_s: float = PART_S,
    idle_s: float = IDLE_S,
    **settings: Any,
) -> Outcome:
    """Put the clutter into the folder at once, scan a slide meanwhile, and take the clutter away and back again."""
    with tempfile.TemporaryDirectory(prefix="bench-clutter-") as home, stage(Path(home), profile, **settings) as live:
        once = original(Path(home) / "once")
        watcher = Watcher(live)
        audience = Audience(live, watcher)
        alone = scan(live, audience, once, "ALONE", part_s)
        before = watcher.look(1)
        console.print(f"clutter: {texts} texts, {broken} broken files, and a slide among them", style="dim")
        staging, place = Path(home) / "staging", live.agent.folder / "clutter"
        write_clutter(staging, texts, broken, once)
        began = time.monotonic()
        staging.rename(place)
        among = scan(live, audience, once, "AMONG", part_s)
        _wait(live, audience, broken)
        took_s = time.monotonic() - began
        after = watcher.look(2)
        idle_share = _idle(watcher, audience, idle_s)
        place.rename(staging)
        audience.wait_s(2 * idle_s / 3 + 3)
        staging.rename(place)
        audience.wait_s(2 * idle_s / 3 + 3)
        again = watcher.look(2)
        told = len(live.agent.events("problem"))
    return outcome((texts, broken), (alone, among), (before, after, again), took_s, idle_share, told)


def write_clutter(folder: Path, texts: int, broken: int, once: Original) -> None:
    """Notes that nobody should read, and files that promise an image and break in many places."""
    content = (once.folder / once.files[0]).read_bytes()
    for number in range(texts):
        path = folder / "notes" / str(number // PER_FOLDER) / f"note {number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"note {number}\n")
    for number in range(broken):
        # Half of them by names that a rule knows, as files of so many slides; half by names like UIDs.
        group = folder / "broken" / str(number // PER_FOLDER)
        path = group / (f"BROKEN_{number}_0.dcm" if number % 2 else f"1.2.840.{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        cut = 132 + number % 600
        path.write_bytes(content[:132] + bytes([1 + number % 250]) * 40 + content[132:cut])


def _wait(live: Stage, audience: Audience, broken: int) -> None:
    """Until every broken file has been looked at: those that promise an image are told of, the others logged."""
    deadline = time.monotonic() + WAIT_S
    while (done := _looked_at(live.agent.log())) < broken:
        audience.listen()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{done} of {broken} were looked at within {WAIT_S:.0f} s")
        time.sleep(POLL_S)


def _looked_at(log: str) -> int:
    return log.count('"event": "problem"') + log.count('"event": "ignored"')


def _idle(watcher: Watcher, audience: Audience, idle_s: float) -> float:
    """Share of one processor that the agent takes while nothing happens."""
    first = watcher.look(2)
    audience.wait_s(idle_s)
    last = watcher.look(2)
    return (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s)


def outcome(
    clutter: tuple[int, int],
    scanned: tuple[Scanned, Scanned],
    looks: tuple[Vitals, Vitals, Vitals],
    took_s: float,
    idle_share: float,
    told: int,
) -> Outcome:
    """Judge one run."""
    (texts, broken), (alone, among), (before, after, again) = clutter, scanned, looks
    growth, return_growth = (after.rss - before.rss) / MIB, (again.rss - after.rss) / MIB
    allowed = 16 + (broken + texts / 16) * GROWTH_KIB / 1024
    later = max(among.first_s - alone.first_s, among.final_s - alone.final_s)
    table = figure_table(
        f"Clutter: {texts} texts and {broken} broken files at once",
        [
            ("until every broken file was looked at, s", f"{took_s:.0f} ({broken / took_s:.0f} a second)"),
            ("slide on the table meanwhile: first posterior, s", f"{among.first_s:.2f} (alone {alone.first_s:.2f})"),
            ("... final after the last byte, s", f"{among.final_s:.2f} (alone {alone.final_s:.2f})"),
            ("memory, MiB", f"{before.rss / MIB:.0f}, {growth:+.0f} with the clutter, {return_growth:+.0f} again"),
            ("ledger, MiB", f"{after.ledger / MIB:.1f}"),
            ("one processor while nothing happens", f"{idle_share:.1%}"),
        ],
    )
    promises = [
        Promise(f"a slide on the table waits at most {LIMIT_S:g} s longer", f"{later:+.2f} s", later <= LIMIT_S),
        Promise(f"memory grows by less than {allowed:.0f} MiB", f"{growth:.0f} MiB", growth < allowed),
        Promise("the same files again take no more", f"{return_growth:+.0f} MiB", return_growth < 16 + allowed / 8),
    ]
    figures = {
        "texts": texts,
        "broken": broken,
        "seconds": took_s,
        "alone": asdict(alone),
        "among": asdict(among),
        "problems_told": told,
        "idle_share": idle_share,
        "growth_mib": growth,
        "growth_again_mib": return_growth,
        "ledger_bytes": after.ledger,
    }
    return Outcome("clutter", [table], figures, promises)
