"""What system tests share: a running mosquitto, and agents that end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Mosquitto
from tests.system.processes import AgentProcess


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running mosquitto."""
    folder = tmp_path / "broker"
    folder.mkdir()
    mosquitto = Mosquitto(folder).start()
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def agents() -> Iterator[list[AgentProcess]]:
    """Agents to end at the end."""
    started: list[AgentProcess] = []
    yield started
    for agent in started:
        if not agent.ended:
            agent.kill()
