"""Runs many cases of one target in worker processes, and tells what came of them.

A worker that hangs or dies is replaced, and the case that it was at is a find like any other: a case is known by its
seed and number alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz import cage
from tests.fuzz.target import Target, find_target

_SPAWN = multiprocessing.get_context("spawn")
_REPORT_S = 1.0
_WARM_UP_CASES = 100
_KEPT_PER_KIND = 3
"""Inputs that are kept of finds of one kind."""
_PATIENCE = 15
"""Times longer by the clock than by CPU time."""
_TOO_LARGE = 3
"""Exit code of a worker that has told of its memory, and makes room for a fresh one."""
_AT, _SINCE, _CPU, _UNTOLD = range(4)
"""Places in the array that worker and campaign share: the number of the case that runs, when it began and at how many
CPU seconds of the worker, and cases since the last report."""


@dataclass(frozen=True)
class Find:
    """A broken promise."""

    index: int
    kind: str
    """What and where, equal for finds of one cause."""
    detail: str


@dataclass
class Tally:
    """What came of some cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    """CPU seconds and the case's number."""
    peak_bytes: int = 0
    """Growth of the resident peak since the warm-up."""
    finds: list[Find] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many."""
        return self.outcomes.total()

    def add(self, other: Tally) -> None:
        """Take another one's figures in."""
        self.outcomes += other.outcomes
        self.slowest = max(self.slowest, other.slowest)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.finds += other.finds


@dataclass(frozen=True)
class Plan:
    """Which cases."""

    target: str
    seed: int
    processes: int = 1
    seconds: float | None = None
    cases: int | None = None
    hang_s: float = cage.HANG_S


def try_case(target: Target, case: bytes) -> str:
    """Its outcome; AssertionError when it opened what it should not or took too long."""
    took_s = 0.0
    for _ in range(2):  # a second chance for what a busy machine delayed
        began = time.process_time()
        with cage.watched():
            outcome = target.check(case)
        took_s = time.process_time() - began
        assert not cage.escapes, "; ".join(cage.escapes)
        if took_s <= cage.CASE_CPU_S:
            return outcome
    raise AssertionError(f"slow: {took_s:.1f} s of CPU for one case of {len(case)} bytes")


def kind_of(error: BaseException) -> str:
    """What an exception is and the innermost line of the project that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    own = [f for f in frames if f"{os.sep}lib{os.sep}python" not in f.filename]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "nowhere"
    return f"{type(error).__name__} at {place}"


class _Worker:
    """The side of a campaign that runs in a process of its own."""

    def __init__(self, plan: Plan, reports: Connection, shared: SynchronizedArray[float], step: int) -> None:
        self._plan, self._target = plan, find_target(plan.target)
        self._reports, self._shared, self._step = reports, shared, step
        self._tally = Tally()
        self._warm_peak = 0

    def run(self, first: int) -> None:
        """Cases first, first + step … until the plan's end."""
        for index in range(_WARM_UP_CASES):
            self._one(first + index * self._step)  # they come again below, and are counted then
        cage.lock()
        self._tally, self._warm_peak = Tally(), cage.peak_bytes()
        self._shared[_UNTOLD] = 0
        index, began = first, time.monotonic()
        reported = began
        while not self._at_end(index, began):
            self._one(index)
            index += self._step
            if self._tally.peak_bytes > cage.PEAK_BYTES:
                self._report()
                sys.exit(_TOO_LARGE)
            if time.monotonic() - reported > _REPORT_S:
                reported = time.monotonic()
                self._report()
        self._report()

    def _at_end(self, index: int, began: float) -> bool:
        plan = self._plan
        if plan.cases is not None and index >= plan.cases:
            return True
        return plan.seconds is not None and time.monotonic() - began >= plan.seconds

    def _report(self) -> None:
        self._reports.send(self._tally)
        self._tally, self._shared[_UNTOLD] = Tally(), 0

    def _one(self, index: int) -> None:
        case = self._target.case(self._plan.seed, index)
        tally, began = self._tally, time.process_time()
        self._shared[_AT], self._shared[_SINCE], self._shared[_CPU] = index, time.monotonic(), began
        self._shared[_UNTOLD] = tally.cases
        try:
            tally.outcomes[try_case(self._target, case)] += 1
        except Exception as error:  # noqa: BLE001 - whatever comes out is the find
            tally.outcomes["FIND"] += 1
            if len(tally.finds) < 100:
                tally.finds.append(Find(index, kind_of(error), f"{type(error).__name__}: {str(error)[:300]}"))
        tally.slowest = max(tally.slowest, (time.process_time() - began, index))
        if self._warm_peak:
            tally.peak_bytes = max(tally.peak_bytes, cage.peak_bytes() - self._warm_peak)
            if tally.peak_bytes > cage.PEAK_BYTES:
                tally.finds.append(Find(index, "memory", f"the resident peak grew by {tally.peak_bytes >> 20} MiB"))


def _work(
    plan: Plan, first: int, step: int, scratch: str, reports: Connection, shared: SynchronizedArray[float]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[cage.SCRATCH] = scratch
    _Worker(plan, reports, shared, step).run(first)


class Campaign:
    """Workers at one target, and their figures."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.tally = plan, Tally()
        self._folder = folder
        self._began = time.monotonic()
        self._kept: Counter[str] = Counter()

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def run(self, progress_s: float = 60.0) -> Tally:
        """Until the plan's end. Prints a line now and then."""
        told = time.monotonic()
        with TemporaryDirectory(prefix="fuzz-") as scratch:
            lanes = [_Lane(self.plan, first, scratch) for first in range(self.plan.processes)]
            while any(not lane.ended for lane in lanes):
                for lane in lanes:
                    for tally in lane.look(self.elapsed_s):
                        self._take(tally)
                if time.monotonic() - told > progress_s:
                    told = time.monotonic()
                    print(self.line(), flush=True)
        return self.tally

    def line(self) -> str:
        """The figures so far."""
        tally, took = self.tally, self.elapsed_s
        slow, index = tally.slowest
        return (
            f"{self.plan.target:9} {tally.cases:9,} cases {tally.cases / max(took, 1e-9):8,.0f}/s  slowest"
            f" {slow * 1000:.0f} ms (case {index})  peak +{tally.peak_bytes / (1 << 20):.1f} MiB  finds"
            f" {len(tally.finds)}"
        )

    def _take(self, tally: Tally) -> None:
        self.tally.add(tally)
        for find in tally.finds:
            self._kept[find.kind] += 1
            if self._kept[find.kind] <= _KEPT_PER_KIND:
                self._keep(find)

    def _keep(self, find: Find) -> None:
        plan = self.plan
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{plan.target}-{plan.seed}-{find.index}.case"
        path.write_bytes(find_target(plan.target).case(plan.seed, find.index))
        print(f"FIND {find.kind}: {find.detail}", flush=True)
        print(f"     again: python -m tests.fuzz --target {plan.target} --input {path}", flush=True)


class _Lane:
    """One worker after another: every processes-th case, from `first` on."""

    def __init__(self, plan: Plan, first: int, scratch: str) -> None:
        self._plan, self._first, self._scratch = plan, first, scratch
        self.ended = False
        self._process: BaseProcess | None = None
        self._reports: Connection | None = None
        self._shared: SynchronizedArray[float] = _SPAWN.Array("d", [0.0] * 4)

    def look(self, elapsed_s: float) -> list[Tally]:
        """Wait a little for the worker's report; replace it when it hangs or is dead."""
        if self.ended:
            return []
        if self._process is None:
            self._start(elapsed_s)
        assert self._process is not None and self._reports is not None
        try:
            if self._reports.poll(0.5):
                return [self._reports.recv()]
        except EOFError:
            return self._over()
        if self._hangs():
            self._process.kill()
            self._process.join()
            return [self._lost("hang", f"no end after {self._plan.hang_s:.0f} s")]
        return []

    def _hangs(self) -> bool:
        """By the worker's own CPU time, of which a busy machine gives it little; by the clock where it only waits."""
        assert self._process is not None
        since, cpu_s = self._shared[_SINCE], self._shared[_CPU]
        if not since:
            return False
        used_s = cage.cpu_seconds(self._process.pid) - cpu_s
        return used_s > self._plan.hang_s or time.monotonic() - since > _PATIENCE * self._plan.hang_s

    def _start(self, elapsed_s: float) -> None:
        plan = self._plan
        left = None if plan.seconds is None else max(plan.seconds - elapsed_s, 0.0)
        self._shared[:] = [0.0] * 4
        self._reports, theirs = _SPAWN.Pipe(duplex=False)
        rest = replace(plan, seconds=left)
        arguments = (rest, self._first, plan.processes, self._scratch, theirs, self._shared)
        self._process = _SPAWN.Process(target=_work, args=arguments, name=f"fuzz-{plan.target}-{self._first}")
        self._process.start()
        theirs.close()

    def _over(self) -> list[Tally]:
        """The worker closed its end: it is done, makes room, or is dead."""
        assert self._process is not None
        self._process.join()
        at, code = int(self._shared[_AT]), self._process.exitcode
        if code not in (0, _TOO_LARGE):
            return [self._lost(f"exit code {code}", "the process died")]
        self.ended = code == 0
        self._first, self._process = at + self._plan.processes, None
        return []

    def _lost(self, kind: str, detail: str) -> Tally:
        at, untold = int(self._shared[_AT]), int(self._shared[_UNTOLD])
        self._first, self._process = at + self._plan.processes, None
        return Tally(Counter({"FIND": 1, "passed, and not told": untold}), finds=[Find(at, kind, detail)])
