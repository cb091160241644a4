"""Promises of the overseer: every room ends with the process, and one that a file system keeps does not keep it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.calls import asking
from agent.handover import CancelToken, Handover
from agent.ledger import Record
from agent.overseer import oversee
from agent.pulse import Pulse
from agent.reload import LiveSettings
from agent.settings import Settings
from agent.worker import Work
from tests.brokers import wait_until


class House:
    """Two rooms: the reader, which a test may keep in a call, and one behind it that works until nothing comes."""

    def __init__(self, folder: Path, stop_limit_s: float) -> None:
        document: dict[str, Any] = {"folder": folder / "a", "state_dir": folder / "b", "profile": folder / "c"}
        document |= {"pipeline": {"stop_limit_s": stop_limit_s}, "watch": {"answer_limit_s": 0.1}}
        self.live = LiveSettings(Settings.model_validate(document), lambda: self.live.now)
        self.token = CancelToken()
        self.work: Handover[Work] = Handover("reader-engine", 1, self.token)
        records: Handover[Record] = Handover("engine-sender", 1, self.token)
        self.pulse = Pulse(self.work, records)
        self.answers = threading.Event()
        self.hangs = threading.Event()
        self.ended: list[str] = []

    def read(self) -> None:
        """One call that comes back when the folder answers."""
        with asking():
            self.hangs.set()
            self.answers.wait()
        self.work.close()
        self.ended.append("reader")

    def answer(self) -> None:
        """Whatever hangs goes on."""
        self.answers.set()

    def infer(self) -> None:
        """Work until the hand-over has ended."""
        while not self.work.ended:
            self.work.get(0.1)
        self.ended.append("engine")

    def run(self, has_looked: Callable[[], bool] = lambda: True) -> bool:
        """Until every room has ended, or was left behind."""
        rooms = {"reader": self.read, "engine": self.infer}
        return oversee(rooms, self.token, self.pulse, self.live, has_looked=has_looked, give_up=self.work.close)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house with two seconds to end in."""
    house = House(tmp_path, 2.0)
    yield house
    house.answer()


def when(happened: threading.Event, then: Callable[[], None]) -> threading.Thread:
    """Do something, on another thread, after something has happened."""

    def wait() -> None:
        happened.wait()
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_rooms_that_answer_end_by_themselves(house: House) -> None:
    """A call that comes back in time is waited for, and nothing is said of it."""
    house.token.stop()
    thread = when(house.hangs, house.answer)
    with capture_logs() as logs:
        assert house.run()
    thread.join()
    assert sorted(house.ended) == ["engine", "reader"]
    assert "left_behind" not in [line["event"] for line in logs]


def test_a_room_that_a_file_system_keeps_is_left_behind(house: House) -> None:
    """Half of the limit is its own; then the rooms behind it finish, and the process can end."""
    house.token.stop()
    begun = time.monotonic()
    with capture_logs() as logs:
        assert not house.run()
    assert time.monotonic() - begun >= 1.0
    assert house.ended == ["engine"]
    assert not house.token.cancelled.is_set(), "it was a clean end for the others"
    assert [(line["event"], line.get("room")) for line in logs][-1] == ("left_behind", "reader")


def test_a_dead_room_ends_the_process_whatever_hangs(house: House) -> None:
    """When another room fails, the one in a call is not waited for either."""

    def die() -> None:
        house.token.fail("sender", RuntimeError("no disk"))

    thread = when(house.hangs, die)
    assert not house.run()
    thread.join()
    assert house.token.failed_room == "sender"


def test_ready_does_not_wait_for_a_folder_that_hangs(house: House) -> None:
    """`ready` is logged although nothing has been listed, once the folder counts as hanging."""
    with capture_logs() as logs:
        thread = threading.Thread(target=lambda: house.run(lambda: False))
        thread.start()
        wait_until(lambda: "ready" in [line["event"] for line in logs], "the agent is ready")
        house.token.stop()
        thread.join()
    assert [line["event"] for line in logs][:2] == ["ready", "stopping"]
