"""Promises of the thread that an engine lives on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from agent.engine.owner import EngineHung, Owner
from agent.errors import EngineError

SHORT_S = 0.05
END_S = 30.0


@pytest.fixture
def owner() -> Iterator[Owner]:
    """A thread that ends with the test."""
    made = Owner()
    yield made
    made.end(lambda: None, END_S)


def test_everything_runs_on_one_thread_and_not_on_the_callers(owner: Owner) -> None:
    """What is loaded there is run there."""
    threads = {owner.call(threading.current_thread) for _ in range(3)}
    assert len(threads) == 1 and threads != {threading.current_thread()}


@pytest.mark.parametrize("error", [EngineError("no"), RuntimeError("no"), KeyError("no"), SystemExit(3)])
def test_what_is_raised_there_is_raised_here(owner: Owner, error: BaseException) -> None:
    """Any error reaches whoever waits, and the thread goes on."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        owner.call(fail)
    assert caught.value is error
    assert owner.call(lambda: 5) == 5


def test_a_call_that_does_not_come_back_is_left_behind() -> None:
    """The caller goes on after the limit, later calls are refused at once, and the thread closes what it held."""
    owner, comes_back, closed = Owner(), threading.Event(), threading.Event()
    beats: list[int] = []
    with pytest.raises(EngineHung, match=r"not come back within 0.05 s: its thread is left behind"):
        owner.call(comes_back.wait, SHORT_S, lambda: beats.append(1))
    assert beats
    with pytest.raises(EngineHung, match="earlier call"):
        owner.call(lambda: 1)
    owner.end(closed.set, END_S)
    assert not closed.is_set(), "nobody closes under a call that runs"
    comes_back.set()
    assert closed.wait(END_S)


def test_a_late_answer_is_no_answer_to_the_next_call(owner: Owner) -> None:
    """Each call waits for its own."""
    assert [owner.call(partial(int, value)) for value in range(20)] == list(range(20))


def test_end_waits_for_a_thread_that_answers() -> None:
    """What was to be freed is free when it returns."""
    owner, closed = Owner(), threading.Event()
    owner.end(closed.set, END_S)
    assert closed.is_set()
