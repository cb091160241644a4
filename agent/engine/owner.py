"""The one thread that an engine lives on: it loads, runs and closes it, and others wait for it with a limit.

A native call that never returns cannot be stopped: its thread is left behind, and whoever waited goes on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from agent.errors import AgentError

T = TypeVar("T")
BEAT_S = 1.0
"""Whoever waits beats as often."""
CLOSE_LIMIT_S = 5.0
"""Longest wait for an engine to free what it holds."""


class EngineHung(AgentError):
    """An engine that does not come back. Unlike EngineError: nothing can be tried on it any more."""


class Owner:
    """See the module's docstring. One caller at a time."""

    def __init__(self) -> None:
        self.is_stuck = False
        """It has not come back from a call within its limit, and takes nothing any more."""
        self._is_ended = False
        self._turns: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon thread: the interpreter would wait at its end for one that is left behind.
        self._thread = threading.Thread(target=self._run, name="engine-owner", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T], limit_s: float = math.inf, beat: Callable[[], None] = lambda: None) -> T:
        """What `work` returns or raises, run on the owner's thread; `beat` is called each second meanwhile.

        Raises EngineHung when that takes longer than `limit_s`, and for every call after that; RuntimeError after
        `end`.
        """
        if self._is_ended:
            raise RuntimeError("the engine is closed")
        if self.is_stuck:
            raise EngineHung("the engine has not come back from an earlier call")
        turn = _Turn(work)
        self._turns.put(turn.run)
        until = time.monotonic() + limit_s
        while not turn.wait(min(BEAT_S, max(0.0, until - time.monotonic()))):
            beat()
            if time.monotonic() >= until:
                self.is_stuck = True
                raise EngineHung(f"the engine has not come back within {limit_s:g} s: its thread is left behind")
        return turn.result()

    def end(self, last: Callable[[], object], limit_s: float) -> None:
        """Let the thread run `last` and end. Does not wait for a stuck one, which does both if it ever comes back."""
        self._is_ended = True
        self._turns.put(_Turn(last).run)
        self._turns.put(None)
        if not self.is_stuck:
            self._thread.join(limit_s)

    def _run(self) -> None:
        while (run := self._turns.get()) is not None:
            run()
            del run  # a batch must not be kept until the next one comes


class _Turn(Generic[T]):
    """One call, and what came of it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._ended: SimpleQueue[None] = SimpleQueue()

    def run(self) -> None:
        """On the owner's thread; what is raised is for whoever waits."""
        with self:
            self._results.append(self._work())

    def wait(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        try:
            return self._ended.get(timeout=seconds) is None
        except Empty:
            return False

    def result(self) -> T:
        """What it returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._error = error
        self._ended.put(None)
        return True
