"""SIGHUP on the running daemon: what it says to the service manager and to the log, and that slides go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.brokers import Mosquitto, wait_until
from tests.system.processes import AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    """A running agent whose patients never end by silence, at a real broker."""
    agent = AgentProcess(tmp_path / "agent", broker.port, patient={"quiet_s": 3600})
    yield agent.start()
    if not agent.ended:
        agent.kill()


def rewrite(agent: AgentProcess, section: str, **values: Any) -> None:
    """Change a section of the settings file."""
    document = yaml.safe_load(agent.config.read_text())
    document[section] = {**document.get(section, {}), **values}
    agent.config.write_text(yaml.safe_dump(document))


def test_a_changed_file_is_taken_over_without_a_restart(agent: AgentProcess, tmp_path: Path) -> None:
    """A patient that would stay open for an hour ends as soon as the new limit is in force; the topic tree waits."""
    slides = tmp_path / "slides"
    assert command("agent", "phantom", "--out", slides, "--slides", "1", "--layout", "strips-b").returncode == 0
    assert command("agent", "replay", slides, agent.folder, "--rate", "1000").returncode == 0
    wait_until(lambda: agent.events("slide"), "the slide's end", 90)
    assert not agent.events("patient")
    rewrite(agent, "patient", quiet_s=0.5)
    rewrite(agent, "mqtt", keepalive_s=7)
    agent.signal(signal.SIGHUP)
    wait_until(lambda: agent.events("patient"), "the patient's end", 30)
    (event,) = agent.events("settings_taken_over")
    assert event["applied"] == ["patient.quiet_s"]
    assert list(event["need_restart"]) == ["mqtt.keepalive_s"]
    assert agent.said("RELOADING=1")
    assert agent.stop() == 0
    reloading = next(number for number, said in enumerate(agent.notified) if "RELOADING=1" in said)
    assert any("READY=1" in said and "1 need a restart" in said for said in agent.notified[reloading + 1 :])


def test_a_broken_file_is_refused_and_the_agent_goes_on(agent: AgentProcess) -> None:
    """The log names line and key, READY comes again, and a mended file works."""
    rewrite(agent, "watch", scan_interval_s="soon")
    agent.signal(signal.SIGHUP)
    wait_until(lambda: agent.events("settings_refused"), "the refusal", 10)
    (event,) = agent.events("settings_refused")
    assert any("watch.scan_interval_s" in line for line in event["problems"])
    rewrite(agent, "watch", scan_interval_s=1.0)
    agent.signal(signal.SIGHUP)
    wait_until(lambda: agent.events("settings_taken_over"), "the takeover", 10)
    assert agent.stop() == 0
