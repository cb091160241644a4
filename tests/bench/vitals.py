"""What a running agent takes of the machine: memory, descriptors, threads, bytes on the disk, and how they grow.

Read from outside (/proc, the state folder) and from the agent's own health messages. Judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.live import Stage

MIB = 1 << 20


@dataclass(frozen=True)
class Vitals:
    """One look."""

    slides: int
    """Finals so far."""
    at_s: float
    """Since the first look."""
    rss: int
    """Resident memory, bytes."""
    anon: int
    """Of it what is no file's page, bytes: what the agent holds itself."""
    descriptors: int
    threads: int
    ledger: int
    """The ledger's file, bytes."""
    wal: int
    """Its write-ahead log, bytes."""
    audit: int
    """The audit log, bytes."""
    outbox: int
    """Messages not yet acknowledged, by the last health message; -1 before the first."""
    depth: int
    """Items between READER and ENGINE, by the same."""
    cpu_s: float
    """Processor time of the agent so far."""


class Watcher:
    """Takes vitals of one agent."""

    def __init__(self, live: Stage) -> None:
        self._live = live
        self._began = time.monotonic()
        self.taken: list[Vitals] = []

    def look(self, slides: int) -> Vitals:
        """Take them now. Raises RuntimeError when the agent has ended."""
        agent = self._live.agent
        if agent.ended or agent.process is None:
            raise RuntimeError("the agent ended: " + "\n".join(agent.log().splitlines()[-3:]))
        process = Path(f"/proc/{agent.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        health = self._live.last_health()
        ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        vitals = Vitals(
            slides=slides,
            at_s=time.monotonic() - self._began,
            rss=_kib(status["VmRSS"]),
            anon=_kib(status["RssAnon"]),
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            ledger=_size(agent.state / "ledger.sqlite"),
            wal=_size(agent.state / "ledger.sqlite-wal"),
            audit=sum(_size(path) for path in agent.state.glob("audit-*.jsonl")),
            outbox=-1 if health is None else int(health["outbox"]),
            depth=0 if health is None else int(health["handovers"]["reader-engine"]["depth"]),
            cpu_s=sum(map(int, ticks)) / 100,
        )
        self.taken.append(vitals)
        return vitals

    def most(self, name: str) -> int:
        """The largest value ever seen."""
        return max(int(getattr(vitals, name)) for vitals in self.taken)

    def document(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [asdict(vitals) for vitals in self.taken]


def slope(taken: Sequence[Vitals], name: str) -> float:
    """How much a figure grows with each slide: the median of the slopes of all pairs (Theil 1950, Sen 1968), which a
    few high samples do not move.
    """
    x_N = np.array([vitals.slides for vitals in taken], float)
    y_N = np.array([getattr(vitals, name) for vitals in taken], float)
    rows, columns = np.triu_indices(len(taken), 1)
    apart = x_N[columns] != x_N[rows]
    if not apart.any():
        raise ValueError("all looks were at the same slide")
    return float(np.median((y_N[columns] - y_N[rows])[apart] / (x_N[columns] - x_N[rows])[apart]))


def settled(taken: Sequence[Vitals], after: int) -> list[Vitals]:
    """The looks after so many slides, when every buffer has been needed once."""
    return [vitals for vitals in taken if vitals.slides >= after]


def _kib(text: str) -> int:
    return 1024 * int(text.split()[0])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
