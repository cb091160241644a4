"""The audit log of a real daemon: every result traced to the bytes of its files, whoever is killed when."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from agent.audit_chain import Entry
from agent.audit_check import check
from agent.audit_log import log_files
from agent.finished import survey
from agent.identity import Pseudonyms, load_or_create_key
from agent.profile_folder import load_profile_folder
from tests.brokers import Listener, Mosquitto, wait_until
from tests.system.processes import PROFILE, AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FINAL_S = 90.0


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> dict[PurePosixPath, bytes]:
    """The files of one synthetic phantom slide of two strips."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "1", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return {file.relative: (out / file.relative).read_bytes() for file in survey(out).placed}


def image(agent: AgentProcess, name: PurePosixPath, content: bytes) -> None:
    """Let the imager write a file."""
    path = agent.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def entries_of(agent: AgentProcess) -> list[Entry]:
    """Every entry of a log that is whole."""
    found: list[Entry] = []
    verdict = check(log_files(agent.state), found.append)
    assert verdict.fault is None, str(verdict.fault)
    return found


def of_kind(agent: AgentProcess, kind: str) -> list[dict[str, Any]]:
    """The facts of every entry of one kind."""
    return [entry.facts for entry in entries_of(agent) if entry.kind == kind]


def verify(agent: AgentProcess, *words: str, exit_code: int = 0) -> dict[str, Any]:
    """What `agent verify --json` says."""
    done = command("agent", "verify", "--config", agent.config, "--json", *words)
    assert done.returncode == exit_code, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def heads(listener: Listener) -> set[str]:
    """Every head that health has published, but for that of an empty log."""
    published = (body["audit"] for body in listener.bodies("/health"))
    return {audit["head"] for audit in published if audit["entries"]}


def test_a_result_is_traced_to_the_bytes_of_its_files(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """While the agent runs: payload, files, profile, engine and settings of a final, and the head in health."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    for name, content in phantom.items():
        image(agent, name, content)
    wait_until(lambda: len(listener.bodies("/final")) == 2, "finals of slide and patient", FINAL_S)
    wait_until(lambda: len(of_kind(agent, "file")) == len(phantom), "every file was read whole")
    last = entries_of(agent)[-1].hash
    wait_until(lambda: last in heads(listener), "health publishes the end of the log")

    naming = Pseudonyms(load_or_create_key(agent.state / "identity.key"))
    wanted = {naming.of("file", str(name)): hashlib.sha256(content).hexdigest() for name, content in phantom.items()}
    profile = load_profile_folder(PROFILE)
    for message in [m for m in listener.messages if m.topic.endswith("/final")]:
        said = json.loads(message.payload)
        found = verify(agent, "--event", said["event_id"], "--folder", "--head", last)
        (result,) = found["results"]
        assert found["whole"] and found["head_found"]
        assert result["payload_sha256"] == hashlib.sha256(message.payload).hexdigest()
        assert {file["file"]: file["sha256"] for file in result["files"]} == wanted
        assert {file["now"] for file in result["files"]} == {"same"}
        assert (result["predicted"], result["used"]) == (said["predicted"], said["counts"]["used"])
        assert result["start"]["session_id"] == said["session_id"]
        assert result["start"]["profile"]["sha256"] == profile.sha256 == result["profile_sha256"]
        assert (result["start"]["engine"]["name"], result["start"]["settings"]["site"]) == ("eager", "test")
    assert agent.stop() == 0
    assert entries_of(agent)[-1].kind == "stop"
    listener.close()


def test_kills_and_restarts_leave_one_chain(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """kill -9 after each file: the log is whole each time, each result stands in it once, each head is found."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent)
    for number, (name, content) in enumerate(phantom.items()):
        agent.start()
        image(agent, name, content)
        if number == len(phantom) - 1:
            wait_until(lambda: len(listener.bodies("/final")) >= 2, "finals of slide and patient", FINAL_S)
            wait_until(lambda: len(of_kind(agent, "file")) == len(phantom), "every file was read whole")
        agent.kill()
    agent.start()
    wait_until(lambda: heads(listener), "health publishes the log")
    assert agent.stop() == 0
    assert [start["boot_seq"] for start in of_kind(agent, "start")] == list(range(1, len(phantom) + 2))
    finals = [final["event_id"] for final in of_kind(agent, "final")]
    assert len(finals) == len(set(finals)) and set(finals) == set(listener.event_ids("/final"))
    assert heads(listener) <= {entry.hash for entry in entries_of(agent)}
    assert agent.events("audit_broken") == []
    listener.close()


def test_the_log_outlives_the_ledger(broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path) -> None:
    """A new ledger goes on behind the last entry of the old one, and the log stays whole."""
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    assert agent.stop() == 0
    (agent.state / "ledger.sqlite").unlink()
    agent.start()
    assert agent.stop() == 0
    assert [entry.kind for entry in entries_of(agent)] == ["start", "stop", "start", "stop"]
    assert agent.events("audit_broken") == []


def test_a_log_that_was_changed_is_found(broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path) -> None:
    """Cut while the agent was away: the next start says so; and `verify` says where, and that a head is gone."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent)
    for _ in range(3):
        agent.start()
        assert agent.stop() == 0
    last = entries_of(agent)[-1].hash
    (path,) = log_files(agent.state)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    said = verify(agent, "--head", last, exit_code=1)
    assert said["whole"] and not said["head_found"]
    agent.start()
    assert agent.stop() == 0
    (told,) = agent.events("audit_broken")
    assert "it ends with entry 2" in told["detail"]
    said = verify(agent, exit_code=1)
    assert said["fault"]["line"] == 3 and "missing before it" in said["fault"]["why"]
    listener.close()


def test_a_log_that_cannot_be_written_stops_no_result(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Results go out and their entries wait in the ledger; when the log can be written, they are in it once."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent)
    agent.state.mkdir()
    in_the_way = agent.state / "audit-000000000001.jsonl"
    in_the_way.mkdir()
    agent.start()
    for name, content in phantom.items():
        image(agent, name, content)
    wait_until(lambda: len(listener.bodies("/final")) == 2, "finals of slide and patient", FINAL_S)
    assert len(agent.events("audit_waits_in_the_ledger")) == 1
    assert agent.stop() == 0
    in_the_way.rmdir()
    agent.start()
    assert agent.stop() == 0
    assert {final["event_id"] for final in of_kind(agent, "final")} == set(listener.event_ids("/final"))
    listener.close()


def test_a_changed_file_makes_a_correction_that_is_traced(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Other pixels under the same name: two results, each with the bytes that it rests on, and what replaced what."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port, patient={"quiet_s": 3600.0})
    agents.append(agent.start())
    for name, content in phantom.items():
        image(agent, name, content)
    wait_until(lambda: len(listener.bodies("/final")) == 1, "the slide's final", FINAL_S)
    wait_until(lambda: len(of_kind(agent, "file")) == len(phantom), "every file was read whole")
    name, content = next(iter(phantom.items()))
    changed = bytearray(content)
    half = len(changed) // 2
    changed[half : half + 600_000] = changed[half + 600_000 : half + 1_200_000]
    image(agent, name, bytes(changed))
    wait_until(lambda: len(listener.bodies("/final")) == 2, "the corrected final", FINAL_S)
    first, second = listener.event_ids("/final")
    wait_until(lambda: len(of_kind(agent, "file")) > len(phantom), "the changed file was read whole")
    (before,), (after,) = (verify(agent, "--event", event)["results"] for event in (first, second))
    assert (before["superseded_by"], after["superseded"]) == (second, first)
    naming = Pseudonyms(load_or_create_key(agent.state / "identity.key"))
    file_id = naming.of("file", str(name))
    for result, bytes_of in ((before, content), (after, bytes(changed))):
        hashes = [file["sha256"] for file in result["files"] if file["file"] == file_id]
        assert hashlib.sha256(bytes_of).hexdigest() in hashes
        assert len({file["file"] for file in result["files"]}) == len(phantom)
    assert all(file["certain"] for file in after["files"])
    assert agent.stop() == 0
    listener.close()
