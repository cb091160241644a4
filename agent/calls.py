"""File system calls that may never return: a mount that has lost its server keeps the thread that asked.

Who makes such calls marks them here, so that others can tell a thread that waits for a file system from one that
hangs in our own code. Knows no folder and no room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
SLOW_S = 1.0
"""A call that takes longer has kept its thread from looking."""
_began: dict[int, float] = {}
"""Thread → monotonic seconds at which the call that it is in began. Each thread writes its own entries only."""
_kept: dict[int, float] = {}
"""Thread → seconds that slow calls have kept it so far."""


@contextmanager
def asking() -> Iterator[Callable[[], None]]:
    """While this lasts, the calling thread waits for a file system; blocks of one thread do not contain each other.

    Of many calls in a row, the given function tells that one has come back and the next begins.
    """
    me = threading.get_ident()

    def again() -> None:
        now = time.monotonic()
        if now - _began[me] > SLOW_S:
            _kept[me] = _kept.get(me, 0.0) + now - _began[me]
        _began[me] = now

    _began[me] = time.monotonic()
    try:
        yield again
    finally:
        again()
        del _began[me]


def asked_s(thread: int | None) -> float | None:
    """How long this thread has been in one call, seconds; None when it is in none."""
    began = None if thread is None else _began.get(thread)
    return None if began is None else time.monotonic() - began


def kept_s() -> float:
    """Seconds that slow calls have kept the calling thread so far, all in all."""
    return _kept.get(threading.get_ident(), 0.0)


def longest_s() -> float | None:
    """How long the longest call that is under way in any thread has lasted, seconds; None when there is none."""
    began = _began.copy().values()
    return time.monotonic() - min(began) if began else None


def answer_within(limit_s: float, ask: Callable[[], T]) -> T | None:
    """What `ask` returns, or None when that takes longer: its thread is then left behind, and ends with the process.

    Raises the OSError or RuntimeError that `ask` raises; one that says "timed out" is no answer, either.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except (OSError, RuntimeError) as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="asking").start()
    try:
        return future.result(limit_s)
    except TimeoutError:
        return None
