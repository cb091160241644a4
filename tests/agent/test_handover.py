"""Promises of the hand-over and the cancel token, with real threads that wait on each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.handover import Cancelled, CancelToken, Handover, Wakeup

LONG_S = 30.0
"""A wait that a test would notice: nothing here may take so long."""


class Room:
    """A thread that runs one function and keeps what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._work = work
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def join(self) -> object:
        """Its result, once it has ended; raises what ended it."""
        self.thread.join(10)
        assert not self.thread.is_alive(), "the room still waits"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def token() -> Iterator[CancelToken]:
    """A token that frees every waiting thread at the end, whatever the test did."""
    token = CancelToken()
    yield token
    token.cancel()


@pytest.fixture
def queue(token: CancelToken) -> Handover[int]:
    """A hand-over for two items."""
    return Handover("test", 2, token)


def has_ended(queue: Handover[int]) -> bool:
    """Whether the hand-over is closed and drained, asked anew each time."""
    return queue.ended


def waits(room: Room) -> bool:
    """Whether the room has not ended after a moment in which it could have."""
    room.thread.join(0.05)
    return room.thread.is_alive()


def test_items_come_out_in_order(queue: Handover[int]) -> None:
    """First in, first out, over many more items than fit, between two threads; nothing is lost or doubled."""

    def produce() -> None:
        for number in range(1000):
            queue.put(number)
        queue.close()

    room = Room(produce)
    found = []
    while not queue.ended:
        item = queue.get(LONG_S)
        if item is not None:
            found.append(item)
    room.join()
    assert found == list(range(1000))
    assert queue.high_water <= queue.capacity


def test_a_full_handover_stops_the_producer(queue: Handover[int]) -> None:
    """put waits while the hand-over is full and goes on as soon as one item is taken."""
    queue.put(1)
    queue.put(2)
    room = Room(lambda: queue.put(3))
    assert waits(room)
    assert queue.get() == 1
    room.join()
    assert [queue.get(), queue.get()] == [2, 3]


def test_the_high_water_mark_stays(queue: Handover[int]) -> None:
    """high_water is the most items that ever waited; len is how many wait now."""
    assert (len(queue), queue.high_water) == (0, 0)
    queue.put(1)
    queue.put(2)
    queue.get()
    queue.get()
    queue.put(3)
    assert (len(queue), queue.high_water) == (1, 2)


def test_get_gives_up_after_its_timeout(queue: Handover[int]) -> None:
    """An empty hand-over gives None after the timeout, not before."""
    start = time.monotonic()
    assert queue.get(timeout_s=0.05) is None
    assert time.monotonic() - start >= 0.05
    assert queue.get(timeout_s=0.0) is None
    assert not has_ended(queue)


def test_an_item_ends_a_wait_without_limit(queue: Handover[int]) -> None:
    """A consumer that waits for ever wakes for the first item."""
    room = Room(queue.get)
    assert waits(room)
    queue.put(7)
    assert room.join() == 7


def test_a_nudge_wakes_the_consumer_once(queue: Handover[int]) -> None:
    """A nudge ends one wait without an item, also when it came before the wait; items come first."""
    room = Room(lambda: queue.get(LONG_S))
    assert waits(room)
    queue.nudge()
    assert room.join() is None
    assert not has_ended(queue)
    queue.nudge()
    queue.nudge()
    queue.put(1)
    assert queue.get(LONG_S) == 1
    assert queue.get(LONG_S) is None
    assert waits(Room(lambda: queue.get(LONG_S)))


def test_a_closed_handover_is_drained_before_it_ends(queue: Handover[int]) -> None:
    """After close the items that wait still come; only then it has ended, and get gives None at once."""
    queue.put(1)
    queue.close()
    assert not has_ended(queue)
    assert queue.get(LONG_S) == 1
    assert has_ended(queue)
    assert queue.get(LONG_S) is None


def test_close_wakes_a_waiting_consumer(queue: Handover[int]) -> None:
    """A consumer that waits for ever learns of the end."""
    room = Room(queue.get)
    assert waits(room)
    queue.close()
    assert room.join() is None
    assert has_ended(queue)


def test_cancel_frees_a_blocked_producer(queue: Handover[int], token: CancelToken) -> None:
    """A producer before a full hand-over raises Cancelled with the hand-over's name."""
    queue.put(1)
    queue.put(2)
    room = Room(lambda: queue.put(3))
    assert waits(room)
    token.cancel()
    with pytest.raises(Cancelled, match="test"):
        room.join()
    assert len(queue) == 2


def test_cancel_frees_a_blocked_consumer(queue: Handover[int], token: CancelToken) -> None:
    """A consumer before an empty hand-over raises Cancelled."""
    room = Room(queue.get)
    assert waits(room)
    token.cancel()
    with pytest.raises(Cancelled):
        room.join()


def test_after_cancel_nothing_passes(queue: Handover[int], token: CancelToken) -> None:
    """Cancelled means at once: neither room in the queue nor items in it let a call through."""
    queue.put(1)
    token.cancel()
    with pytest.raises(Cancelled):
        queue.put(2)
    with pytest.raises(Cancelled):
        queue.get()


def test_a_clean_stop_lets_items_pass(queue: Handover[int], token: CancelToken) -> None:
    """stop asks for a clean end only: what is in hand still goes through the hand-over."""
    queue.put(1)
    token.stop()
    assert token.stopping.is_set() and not token.cancelled.is_set()
    queue.put(2)
    assert [queue.get(), queue.get()] == [1, 2]


def test_the_first_failure_is_kept(token: CancelToken) -> None:
    """Of several rooms that die the token keeps the first, and ends everything at once."""
    first = RuntimeError("first")
    token.fail("engine", first)
    token.fail("sender", RuntimeError("second"))
    assert token.failure is first
    assert token.failed_room == "engine"
    assert token.cancelled.is_set() and token.stopping.is_set()


def test_every_handover_of_a_token_is_cancelled(token: CancelToken) -> None:
    """One cancel frees the rooms before all hand-overs that share the token."""
    queues: list[Handover[int]] = [Handover(str(index), 1, token) for index in range(3)]
    rooms = [Room(queue.get) for queue in queues]
    assert all(waits(room) for room in rooms)
    token.cancel()
    for room in rooms:
        with pytest.raises(Cancelled):
            room.join()


def test_wakeup_ends_the_wait_under_way_or_the_next_one(token: CancelToken) -> None:
    """set ends a wait that runs; a set without a wait is remembered for one wait."""
    wakeup = Wakeup(token)
    room = Room(lambda: wakeup.wait(LONG_S))
    assert waits(room)
    wakeup.set()
    room.join()
    wakeup.set()
    Room(lambda: wakeup.wait(LONG_S)).join()
    start = time.monotonic()
    wakeup.wait(0.03)
    assert time.monotonic() - start >= 0.03


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_wakeup_ends_when_the_process_stops(token: CancelToken, end: str) -> None:
    """A wait ends with the token's stop or cancel, and later waits do not begin."""
    wakeup = Wakeup(token)
    room = Room(lambda: wakeup.wait(LONG_S))
    assert waits(room)
    getattr(token, end)()
    room.join()
    start = time.monotonic()
    wakeup.wait(LONG_S)
    assert time.monotonic() - start < LONG_S / 2


def test_producers_and_consumers_never_miss_a_wake(token: CancelToken) -> None:
    """A hand-over for one item, with nudges in between from a third thread, still passes every item in order."""
    queue: Handover[int] = Handover("narrow", 1, token)
    over = threading.Event()

    def nudge() -> None:
        while not over.is_set():
            queue.nudge()
            over.wait(0.001)

    def produce() -> None:
        for number in range(300):
            queue.put(number)

    nudger, producer = Room(nudge), Room(produce)
    found: list[int] = []
    while len(found) < 300:
        item = queue.get(LONG_S)
        if item is not None:
            found.append(item)
    over.set()
    producer.join()
    nudger.join()
    assert found == list(range(300))
