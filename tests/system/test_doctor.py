"""Doctor beside a running agent: it sees that it runs, and leaves it alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Listener, Mosquitto, free_port, wait_until
from tests.system.processes import AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    """A running agent that serves metrics."""
    agent = AgentProcess(tmp_path / "agent", broker.port, metrics={"port": free_port()})
    yield agent.start()
    if not agent.ended:
        agent.kill()


def test_a_running_agent_is_examined_and_left_alone(agent: AgentProcess, broker: Mosquitto) -> None:
    """Ledger in use, metrics served, nothing failed; the agent keeps its connection, its ledger and its will."""
    listener = Listener(broker.port)
    wait_until(lambda: listener.bodies("/status"), "the agent's birth")
    before = sorted(path.name for path in agent.state.iterdir())
    done = command("agent", "doctor", "--config", agent.config, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert agent.process is not None
    assert f"in use by the running agent (process {agent.process.pid})" in found["ledger"]["found"]
    assert found["metrics_port"]["found"].endswith("the metrics answers")
    assert found["broker_publish"]["verdict"] == "ok"
    assert done.stderr == ""
    probes = [message for message in listener.messages if not message.payload]
    assert [(message.topic, message.retain) for message in probes] == [("srh/v1/test/instrument/health", False)]
    assert sorted(path.name for path in agent.state.iterdir()) == before
    assert not agent.events("mqtt_disconnected")
    assert {body["state"] for body in listener.bodies("/status")} == {"online"}
    assert agent.stop() == 0
    wait_until(lambda: listener.bodies("/status")[-1]["state"] == "stopped", "its clean end")
    listener.close()


def test_after_a_kill_the_ledger_is_examined_whole(agent: AgentProcess) -> None:
    """Nobody holds it: a copy is verified with what its log holds, and the next start finds everything as it was."""
    agent.kill()
    before = {path.name: path.read_bytes() for path in agent.state.iterdir()}
    done = command("agent", "doctor", "--config", agent.config)
    assert "whole, " in done.stdout and "0 failed" in done.stdout, done.stdout
    assert {path.name: path.read_bytes() for path in agent.state.iterdir()} == before
    agent.start()
    assert agent.stop() == 0
