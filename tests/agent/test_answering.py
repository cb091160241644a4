"""Promises about a folder that hangs: told once, as long as it lasts, and that it answers again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.answering import Answering
from agent.calls import asking
from agent.engine import Choice
from agent.handover import CancelToken, Handover
from agent.ledger import Ledger, Record
from agent.messages import EngineRef
from agent.pulse import Pulse
from agent.reporter import Speaker
from agent.speech import Speech
from agent.topics import Topics
from agent.worker import Work
from models.profile import LoadedProfile
from tests.brokers import wait_until
from tests.fakes import FakeEngine, fake_profile

LIMIT_S = 0.05


class Scene:
    """A reader whose calls hang and return when told, and what is said of it."""

    def __init__(self, ledger: Ledger) -> None:
        token = CancelToken()
        work: Handover[Work] = Handover("reader-engine", 1, token)
        records: Handover[Record] = Handover("engine-sender", 1, token)
        pulse = Pulse(work, records)
        wall = datetime(2026, 1, 2, tzinfo=UTC)
        profile = LoadedProfile(
            fake_profile(), "ab" * 32, b"", np.zeros((1, 2, 300, 300), np.uint16), np.zeros((1, 4), np.float32)
        )
        topics, engine = Topics("srh/v1", "site", "scope"), EngineRef(name="fake", precision="fp32")
        speech = Speech(Speaker("s", topics, profile, engine, lambda: wall), Choice(FakeEngine(), {}), 1, wall)
        self.ledger = ledger
        self.beat = pulse.beats("reader")
        self.answering = Answering(pulse, lambda: LIMIT_S, speech, ledger)
        self.logged: list[str] = []
        self._leave = threading.Event()
        self._thread = threading.Thread()

    def hang(self) -> None:
        """A call begins and does not come back until it counts as hanging."""
        self._leave.clear()
        inside = threading.Event()

        def read() -> None:
            with asking():
                inside.set()
                self._leave.wait()

        self._thread = threading.Thread(target=read)
        self._thread.start()
        inside.wait()
        wait_until(self.trouble, "the folder counts as hanging")

    def answer(self) -> None:
        """The call comes back, and the reader comes round."""
        self._leave.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.beat()

    def trouble(self) -> str | None:
        """What a look finds; keeps what it logs."""
        with capture_logs() as logs:
            self.answering.look()
        self.logged += [line["event"] for line in logs]
        return self.answering.trouble

    def alerts(self) -> list[str]:
        """Reasons of the alerts that wait for the broker."""
        return [json.loads(row.message.payload)["reason"] for row in self.ledger.unsent()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A reader at work."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    scene = Scene(ledger)
    yield scene
    scene.answer()
    ledger.close()


def test_a_folder_that_answers_is_no_trouble(scene: Scene) -> None:
    """Calls that are short, and no calls at all, say nothing."""
    assert scene.trouble() is None
    with asking():
        assert scene.trouble() is None
    assert scene.logged == [] and scene.alerts() == []


def test_a_hang_is_told_once_and_its_end_too(scene: Scene) -> None:
    """One log line and one alert, however often one looks; one more log line when the reader comes round."""
    scene.hang()
    first = scene.trouble()
    assert first is not None and "does not answer" in first
    for _ in range(5):
        assert scene.trouble()
    assert scene.logged == ["folder_hangs"] and scene.alerts() == ["folder_hangs"]
    scene.answer()
    assert scene.trouble() is None
    assert scene.logged == ["folder_hangs", "folder_answers"]


def test_a_folder_that_hangs_again_and_again_is_one_alert(scene: Scene) -> None:
    """Each hang is logged, but a share that is slow all night does not fill anybody's list of alerts."""
    for _ in range(3):
        scene.hang()
        scene.answer()
        assert scene.trouble() is None
    assert scene.logged == ["folder_hangs", "folder_answers"] * 3
    assert scene.alerts() == ["folder_hangs"] and scene.answering.alerts == 1
