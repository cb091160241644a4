"""Promises of the pulse: a room that hangs is noticed, and one that only waits is not blamed."""

from __future__ import annotations

import time

import pytest

from agent.batching import Batch
from agent.calls import asking
from agent.handover import CancelToken, Handover
from agent.ledger import Record
from agent.pulse import Pulse
from agent.worker import Work
from tests.brokers import wait_until

AT_ONCE_S = -1.0
"""A limit that every beat has passed already."""


@pytest.fixture
def handovers() -> tuple[Handover[Work], Handover[Record]]:
    """The two hand-overs of the pipeline, for one item each."""
    token = CancelToken()
    return Handover("reader-engine", 1, token), Handover("engine-sender", 1, token)


def three_rooms(handovers: tuple[Handover[Work], Handover[Record]]) -> Pulse:
    """A pulse that all three rooms have signed on to."""
    pulse = Pulse(*handovers)
    for room in ("reader", "engine", "sender"):
        pulse.beats(room)()
    return pulse


def test_rooms_that_came_round_are_healthy(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """Within the limit everything is well, and without any room nothing is wrong."""
    assert three_rooms(handovers).is_healthy(60.0)
    assert Pulse(*handovers).is_healthy(60.0)


def test_a_room_that_never_came_round_is_noticed(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """Signing on counts as the first beat; from then on the limit runs."""
    pulse = Pulse(*handovers)
    pulse.beats("engine")
    assert pulse.is_healthy(60.0)
    assert not pulse.is_healthy(AT_ONCE_S)


@pytest.mark.parametrize("late", ["reader", "engine", "sender"])
def test_one_late_room_is_enough(handovers: tuple[Handover[Work], Handover[Record]], late: str) -> None:
    """A single room that has not come round in time makes the process unhealthy; its next beat mends it."""
    pulse = Pulse(*handovers)
    beats = {room: pulse.beats(room) for room in ("reader", "engine", "sender")}
    limit_s = 0.2
    last = time.monotonic()

    def others_beat() -> bool:
        for room, beat in beats.items():
            if room != late:
                beat()
        return time.monotonic() - last > limit_s

    wait_until(others_beat, "the limit is over")
    assert not pulse.is_healthy(limit_s)
    beats[late]()
    assert pulse.is_healthy(limit_s)


def test_a_room_before_a_full_handover_is_not_at_fault(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """A late reader or engine that waits for the next room is excused; a late sender never is."""
    work, records = handovers
    pulse = Pulse(work, records)
    pulse.beats("reader")
    pulse.beats("engine")
    assert not pulse.is_healthy(AT_ONCE_S)
    work.put(Batch())
    assert not pulse.is_healthy(AT_ONCE_S), "the engine still waits for nobody"
    records.put(Record("sha"))
    assert pulse.is_healthy(AT_ONCE_S)
    pulse.beats("sender")
    assert not pulse.is_healthy(AT_ONCE_S)


def test_a_beat_does_what_else_is_asked(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """The function given with a beat runs each time, on the room's own thread."""
    calls: list[int] = []
    beat = Pulse(*handovers).beats("sender", lambda: calls.append(1))
    assert calls == [], "signing on is no beat"
    beat()
    beat()
    assert calls == [1, 1]


@pytest.mark.parametrize(("room", "excused"), [("reader", True), ("engine", False), ("sender", False)])
def test_only_the_reader_may_wait_for_a_file_system(
    handovers: tuple[Handover[Work], Handover[Record]], room: str, excused: bool
) -> None:
    """While a call on the folder is under way a late reader is excused, and no other room; and only as long."""
    pulse = Pulse(*handovers)
    pulse.beats(room)
    with asking():
        assert pulse.is_healthy(AT_ONCE_S) is excused
    assert not pulse.is_healthy(AT_ONCE_S)
