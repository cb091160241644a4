"""A thousand slides that arrive at once, and one more that is being scanned: who is on the table does not wait.

The same slides are scanned once without the others, and once while they are being worked off.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table

from agent.imager import write_growing
from tests.bench.figures import Outcome, Promise, Spread
from tests.bench.live import Heard, Stage, stage
from tests.bench.slides import Original
from tests.bench.vitals import MIB, Watcher

SLIDES = 1000
LIVE = 8
"""Slides that are scanned, before and meanwhile."""
PART_S = 4.0
"""Seconds that the imager takes for a scan strip: four times as fast as a real one."""
LIMIT_S = 5.0
"""What a slide on the table may wait longer because of the others."""
GROWTH_MIB = 128
"""A thousand slides that are known and not finished take memory: so much at most."""
WAIT_S = 300.0
POLL_S = 0.02


@dataclass(frozen=True)
class Scanned:
    """One slide that was written while the agent watched."""

    first_s: float
    """From its first byte to its first posterior."""
    final_s: float
    """From its last byte to its final."""
    waiting: int
    """Slides of the burst without a final when its last byte was written."""


class Audience:
    """Takes in what is said: which slides have a final, and when each was first spoken of."""

    def __init__(self, live: Stage, watcher: Watcher) -> None:
        self._live = live
        self._watcher = watcher
        self._looked_at = 0.0
        self.first: dict[str, float] = {}
        """Slide → when its first posterior with a used or rejected patch was heard."""
        self.finals: dict[str, list[Heard]] = {}

    def listen(self) -> None:
        """Take in what was said since the last time; look at the agent once a second."""
        for message in self._live.take_messages():
            head, _, what = message.topic.rpartition("/")
            kind, slide = head.split("/")[-2:] if head.count("/") > 1 else ("", "")
            if kind == "slide" and what in ("posterior", "final"):
                heard = Heard(message.timestamp, json.loads(message.payload))
                if heard.seen:
                    self.first.setdefault(slide, heard.at)
                if what == "final":
                    self.finals.setdefault(slide, []).append(heard)
        if time.monotonic() - self._looked_at >= 1.0:
            self._looked_at = time.monotonic()
            self._watcher.look(len(self.finals))

    def wait_s(self, seconds: float) -> None:
        """Listen for so long."""
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            self.listen()
            time.sleep(POLL_S)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Listen until it holds; raises TimeoutError when no final comes for too long."""
        count, since = len(self.finals), time.monotonic()
        while not condition():
            self.listen()
            if len(self.finals) > count:
                count, since = len(self.finals), time.monotonic()
            if time.monotonic() - since > WAIT_S:
                raise TimeoutError(f"{what}: no final within {WAIT_S:.0f} s, {count} so far")
            time.sleep(POLL_S)


def measure(
    profile: Path,
    console: Console,
    slides: int = SLIDES,
    original: Callable[[Path], Original] = Original.phantom,
    live_slides: int = LIVE,
    part_s: float = PART_S,
    **settings: Any,
) -> Outcome:
    """Scan `live_slides` alone, then the same with `slides` others in the folder at once."""
    with tempfile.TemporaryDirectory(prefix="bench-burst-") as home, stage(Path(home), profile, **settings) as live:
        once = original(Path(home) / "once")
        watcher = Watcher(live)
        audience = Audience(live, watcher)
        names = [f"ALONE_{number}" for number in range(live_slides)]
        console.print(f"burst: {live_slides} slides alone", style="dim")
        alone = [scan(live, audience, once, name, part_s) for name in names]
        before = watcher.look(0)
        console.print(f"burst: {slides} slides at once, and {live_slides} more", style="dim")
        staging = Path(home) / "staging"
        for number in range(slides):
            once.lay(staging / f"BURST_{number:05d}", linked=True)
        began = time.monotonic()
        staging.rename(live.agent.folder / "burst")

        def left() -> int:
            return slides - sum(name not in known for name in audience.finals)

        known = set(audience.finals)
        names = [f"AMONG_{number}" for number in range(live_slides)]
        for name in names:
            known.add(live.agent.pseudonym(name, "1").slide)
        among = [scan(live, audience, once, name, part_s, left) for name in names]
        done_meanwhile = slides - left()
        audience.wait(lambda: left() <= 0, "burst")
        took_s = time.monotonic() - began
        seen = {final.seen for finals in audience.finals.values() for final in finals}
        twice = sum(len(finals) > 1 for finals in audience.finals.values())
        stages = (live.last_health() or {})["latency"]
    growth_mib = (watcher.most("rss") - before.rss) / MIB
    console.print(
        "burst: in the agent, ms: "
        + ", ".join(f"{name} {took['p50_ms']:g} (p99 {took['p99_ms']:g})" for name, took in stages.items()),
        highlight=False,
    )
    return outcome(alone, among, slides, took_s, done_meanwhile, twice, seen == {once.patches}, growth_mib, watcher)


def scan(
    live: Stage,
    audience: Audience,
    once: Original,
    patient: str,
    part_s: float,
    left: Callable[[], int] = lambda: 0,
) -> Scanned:
    """Write a slide strip by strip at the imager's pace, and wait for its final."""
    slide = live.agent.pseudonym(patient, "1").slide
    began = time.monotonic()
    for group in once.groups:
        files = [(PurePosixPath(patient, path), (once.folder / path).read_bytes()) for path in group]
        write_growing(live.agent.folder, files, part_s, wait=_sleeping(audience))
    ended, waiting = time.monotonic(), left()
    audience.wait(lambda: slide in audience.finals, f"the slide {patient} on the table")
    return Scanned(audience.first[slide] - began, audience.finals[slide][0].at - ended, waiting)


def _sleeping(audience: Audience) -> Callable[[float], bool]:
    def wait(seconds: float) -> bool:
        audience.listen()
        time.sleep(seconds)
        return False

    return wait


def outcome(
    alone: Sequence[Scanned],
    among: Sequence[Scanned],
    slides: int,
    took_s: float,
    done_meanwhile: int,
    twice: int,
    whole: bool,
    growth_mib: float,
    watcher: Watcher,
) -> Outcome:
    """Judge one run."""
    rows: list[tuple[str, Spread, Spread]] = [
        (
            "first posterior after the first byte, s",
            Spread.of([one.first_s for one in alone]),
            Spread.of([one.first_s for one in among]),
        ),
        (
            "final after the last byte, s",
            Spread.of([one.final_s for one in alone]),
            Spread.of([one.final_s for one in among]),
        ),
    ]
    table = Table("slide on the table", "alone: p50", "p99", f"among {slides}: p50", "p99", title_justify="left")
    for name, quiet, busy in rows:
        table.add_row(name, *(f"{value:.2f}" for value in (quiet.median, quiet.p99, busy.median, busy.p99)))
    table.caption = f"{slides} slides at once took {took_s:.0f} s; p99 of few values is the largest"
    later = max(busy.p99 - quiet.p99 for _, quiet, busy in rows)
    waiting = among[0].waiting
    promises = [
        Promise(
            "the slide on the table is told while others wait", f"{waiting} were waiting at the first", waiting > 0
        ),
        Promise(f"it waits at most {LIMIT_S:g} s longer for them", f"{later:+.2f} s at most", later <= LIMIT_S),
        Promise("nobody starves meanwhile", f"{done_meanwhile} of the others were finished", done_meanwhile > 0),
        Promise("every slide has one final, of all its patches", f"{twice} had more than one", whole and not twice),
        Promise(f"memory grows by less than {GROWTH_MIB} MiB", f"{growth_mib:.1f} MiB", growth_mib < GROWTH_MIB),
    ]
    figures = {
        "slides": slides,
        "seconds": took_s,
        "alone": [asdict(one) for one in alone],
        "among": [asdict(one) for one in among],
        "finished_meanwhile": done_meanwhile,
        "growth_mib": growth_mib,
        "vitals": watcher.document(),
    }
    return Outcome("burst", [table], figures, promises)
