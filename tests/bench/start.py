"""How soon the daemon is ready, and what it takes of the memory then: the real command, from its start to READY=1."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Outcome, Promise, Spread
from tests.bench.live import BROKER_SETTING
from tests.bench.machine import rss_bytes
from tests.brokers import Mosquitto
from tests.system.processes import AgentProcess

STARTS = 5
LIMITS_S = {"openvino": 1.5}
"""Backend → seconds until READY."""
OTHERS_LIMIT_S = 3.0
WAIT_S = 60.0
POLL_S = 0.001
MIB = 1 << 20


@dataclass(frozen=True)
class Started:
    """One start."""

    ready_s: float
    """From the start of the process to READY=1 at the service manager's socket."""
    rss: int
    """Resident memory then, bytes."""


def measure(profile: Path, console: Console, engines: Sequence[str] = ("eager",), starts: int = STARTS) -> Outcome:
    """Start the daemon `starts` times with each entry of `engine.order`, and once before."""
    found: dict[str, list[Started]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        home = Path(folder)
        broker = Mosquitto(home, BROKER_SETTING).start()
        try:
            for entry in engines:
                console.print(f"start: {entry}, {starts} times", style="dim")
                agent = AgentProcess(
                    home / entry, broker.port, profile=str(profile), engine={"order": [entry]}, patient={}, watch={}
                )
                found[entry] = [_start(agent) for _ in range(1 + starts)][1:]
        finally:
            broker.kill()
    return outcome(found)


def _start(agent: AgentProcess) -> Started:
    began = time.monotonic()
    agent.start(ready=False)
    try:
        while not agent.said("READY=1"):
            if agent.ended:
                raise RuntimeError("the agent ended: " + "\n".join(agent.log().splitlines()[-3:]))
            if time.monotonic() - began > WAIT_S:
                raise TimeoutError(f"not ready within {WAIT_S:.0f} s")
            time.sleep(POLL_S)
        ready_s = time.monotonic() - began
        assert agent.process is not None
        return Started(ready_s, rss_bytes(agent.process.pid))
    finally:
        agent.stop()


def outcome(found: Mapping[str, Sequence[Started]]) -> Outcome:
    """Judge the starts by engine."""
    table = Table("engine", "READY after, s", "resident then, MiB", title="Start", title_justify="left")
    figures: dict[str, Any] = {"engines": {}}
    promises = []
    for entry, starts in found.items():
        ready, resident = Spread.of([one.ready_s for one in starts]), Spread.of([one.rss / MIB for one in starts])
        table.add_row(entry, ready.text(), resident.text(0))
        figures["engines"][entry] = {"ready_s": asdict(ready), "rss_mib": asdict(resident)}
        limit_s = LIMITS_S.get(entry.partition("-")[0], OTHERS_LIMIT_S)
        promises.append(
            Promise(f"{entry}: READY within {limit_s:g} s (median)", f"{ready.text()} s", ready.median <= limit_s)
        )
    count = min(len(starts) for starts in found.values())
    table.caption = f"median (range) of {count} starts, files in the page cache"
    return Outcome("start", [table], figures, promises)
