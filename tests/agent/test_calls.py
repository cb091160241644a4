"""Promises of the marks on file system calls: whoever waits for one is known, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest

from agent.calls import answer_within, asked_s, asking, longest_s
from tests.brokers import wait_until


def test_a_thread_is_in_a_call_only_inside_the_block() -> None:
    """Before and after it there is nothing to wait for, whatever the block raises."""
    me = threading.get_ident()
    assert asked_s(me) is None and longest_s() is None
    with asking():
        began = time.monotonic()
        assert asked_s(me) is not None
        wait_until(lambda: (asked_s(me) or 0.0) > 0.05, "time passes")
        assert (asked_s(me) or 0.0) <= time.monotonic() - began + 0.05
    assert asked_s(me) is None and longest_s() is None
    with pytest.raises(OSError, match="gone"), asking():
        raise OSError("gone")
    assert longest_s() is None


def test_each_call_of_many_begins_anew() -> None:
    """A look at a large folder takes long without any call that does: the clock starts again with each of them."""
    with asking() as again:
        wait_until(lambda: (longest_s() or 0.0) > 0.05, "time passes")
        again()
        assert (longest_s() or 0.0) < 0.05


def test_another_threads_call_is_seen() -> None:
    """The longest call of any thread is told, and each thread's own by its number."""
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with asking():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait()
    wait_until(lambda: (longest_s() or 0.0) > 0.05, "the call takes its time")
    with asking():
        assert (asked_s(thread.ident) or 0.0) > (asked_s(threading.get_ident()) or 0.0)
    leave.set()
    thread.join()
    assert asked_s(thread.ident) is None and asked_s(None) is None


def test_an_answer_is_waited_for_only_so_long() -> None:
    """An answer in time is given, its error raised; without one the asker goes on and leaves the thread behind."""
    assert answer_within(10.0, lambda: 42) == 42
    leave = threading.Event()
    assert answer_within(0.02, leave.wait) is None
    leave.set()

    def refuse() -> int:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        answer_within(10.0, refuse)
