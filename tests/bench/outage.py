"""No broker while slide after slide is scanned: what waits in the ledger, and how it is told afterwards."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.figures import Outcome, Promise, figure_table
from tests.bench.live import Stage, stage
from tests.bench.slides import Original
from tests.bench.vitals import MIB, Watcher

SLIDES = 40
"""A busy day's."""
AHEAD = 4
KEPT = 20
WAIT_S = 120.0
POLL_S = 0.05
GROWTH_BYTES = 64 << 10
"""Most that the ledger may grow with each slide meanwhile: its patches, its files, what waits to be said of it."""
LOG_BYTES = 8 << 20
"""And its write-ahead log, until it is written back."""


class LogReader:
    """The agent's log, a piece at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.slides: list[str] = []
        """In the order in which their finals were made."""

    def read(self) -> int:
        """Take in what is new; returns how many slides have ended."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            if b'"slide"' in line and (event := json.loads(line)).get("event") == "slide":
                self.slides.append(event["slide"])
        return len(self.slides)


def measure(
    profile: Path,
    console: Console,
    slides: int = SLIDES,
    original: Callable[[Path], Original] = Original.phantom,
    **settings: Any,
) -> Outcome:
    """Cut the agent off, send `slides` slides, let it back, and compare what is heard with what it said."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-outage-") as home,
        stage(Path(home), profile, relayed=True, **settings) as live,
    ):
        once = original(Path(home) / "once")
        watcher = Watcher(live)
        before = watcher.look(0)
        live.relay.refusing = True
        live.relay.drop_all()
        console.print(f"outage: {slides} slides without a broker", style="dim")
        log = LogReader(live.agent.home / "log")
        _send(live, watcher, log, once, Path(home) / "staging", slides)
        away = watcher.look(slides)
        live.take_messages()
        live.relay.refusing = False
        back_at = time.monotonic()
        heard = _drain(live, log)
        drained_s = time.monotonic() - back_at
        unsent = int(live.agent.events("mqtt_connected")[-1]["unsent"])
    return outcome(slides, log.slides, heard, unsent, away.ledger - before.ledger, away.wal, drained_s)


def _send(live: Stage, watcher: Watcher, log: LogReader, once: Original, staging: Path, slides: int) -> None:
    sent = done = 0
    changed_at = time.monotonic()
    while done < slides:
        while sent < min(slides, done + AHEAD):
            once.send(staging, live.agent.folder, f"OUTAGE_{sent:05d}")
            if sent >= KEPT + AHEAD:
                shutil.rmtree(live.agent.folder / f"OUTAGE_{sent - KEPT - AHEAD:05d}")
            sent += 1
        if log.read() > done:
            done, changed_at = len(log.slides), time.monotonic()
            watcher.look(done)
        elif time.monotonic() - changed_at > WAIT_S:
            raise TimeoutError(f"no slide ended within {WAIT_S:.0f} s, {done} so far")
        else:
            time.sleep(POLL_S)


def _drain(live: Stage, log: LogReader) -> list[dict[str, Any]]:
    """Every slide's final as it is heard, until health says that nothing waits any more."""
    finals: list[dict[str, Any]] = []
    deadline = time.monotonic() + WAIT_S
    while len({final["slide"] for final in finals}) < len(log.slides) or _waits(live):
        finals += [
            json.loads(message.payload)
            for message in live.take_messages()
            if message.topic.endswith("/final") and "/slide/" in message.topic
        ]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(finals)} finals of {len(log.slides)} within {WAIT_S:.0f} s")
        time.sleep(POLL_S)
    return finals


def _waits(live: Stage) -> bool:
    health = live.last_health()
    return health is None or health["outbox"] > 0


def outcome(
    slides: int,
    ended: list[str],
    heard: list[dict[str, Any]],
    unsent: int,
    growth: int,
    wal: int,
    drained_s: float,
) -> Outcome:
    """Compare the finals heard, in their order, with the slides that ended, in theirs."""
    order = list(dict.fromkeys(final["slide"] for final in heard))
    copies = Counter(final["event_id"] for final in heard)
    repeated = sum(count - 1 for count in copies.values())
    table = figure_table(
        f"Outage: {slides} slides without a broker",
        [
            ("messages that waited", f"{unsent} ({unsent / slides:.1f} a slide)"),
            ("the ledger grew by, MiB", f"{growth / MIB:.2f} ({growth / slides / 1024:.1f} KiB a slide)"),
            ("... and its write-ahead log has, MiB", f"{wal / MIB:.2f}"),
            ("until all was told, s", f"{drained_s:.1f}"),
        ],
    )
    promises = [
        Promise("every slide's final is told", f"{len(order)} of {slides}", sorted(order) == sorted(ended)),
        Promise("once", f"{repeated} more than once, {len(copies)} event ids", not repeated),
        Promise("in their order", "yes" if order == ended else "no", order == ended),
        Promise(
            f"the ledger grows by less than {GROWTH_BYTES >> 10} KiB a slide, its log to {LOG_BYTES >> 20} MiB",
            f"{growth / slides / 1024:.1f} KiB, {wal / MIB:.1f} MiB",
            growth < GROWTH_BYTES * slides and wal < LOG_BYTES,
        ),
    ]
    figures = {
        "slides": slides,
        "unsent": unsent,
        "ledger_growth_bytes": growth,
        "wal_bytes": wal,
        "drained_s": drained_s,
        "repeated": repeated,
    }
    return Outcome("outage", [table], figures, promises)
