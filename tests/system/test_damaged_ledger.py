"""A ledger that is damaged under the real daemon: set aside, counted anew from the folder, nothing contradicted."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.doctor.ledger import look_at_ledger
from agent.ledger import FinalRow, Ledger, Record
from agent.profile_folder import load_profile_folder
from agent.settings import load_settings
from agent.topics import final_event_id
from tests.agent.ledger_cases import overwrite
from tests.brokers import Listener, Mosquitto, wait_until
from tests.system.processes import PROFILE, AgentProcess, command
from tests.system.test_run import FINAL_S, append, files_of, finals

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
MAY_DIFFER = {"time", "session_id", "latency"}
"""When it was said, by which start, and how long it took."""
PAGE = 4096


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic phantom slides of two strips as DICOM."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "2", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return out


def _patches(ledger: Path) -> None:
    """The first page of the patches."""
    with closing(sqlite3.connect(ledger)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'patches'").fetchone()
    overwrite(ledger, (root - 1) * PAGE, PAGE)


def _head(ledger: Path) -> None:
    overwrite(ledger, 0, PAGE)


def _log(ledger: Path) -> None:
    overwrite(ledger.with_name(f"{ledger.name}-wal"), 32 + 24 + 100, 200)


def _empty(ledger: Path) -> None:
    ledger.write_bytes(b"")


def contradictions(listener: Listener) -> list[str]:
    """event_ids under which different things were said."""
    said: defaultdict[str, set[str]] = defaultdict(set)
    for message in list(listener.messages):
        if message.topic.endswith(("/final", "/alert")):
            body = {key: value for key, value in json.loads(message.payload).items() if key not in MAY_DIFFER}
            said[str(json.loads(message.payload)["event_id"])].add(json.dumps(body, sort_keys=True))
    return [event_id for event_id, bodies in said.items() if len(bodies) > 1]


def answer(body: dict[str, Any]) -> tuple[Any, ...]:
    """What a final answers, to the last bit."""
    return body["probabilities"], body["interval"], body["counts"], body["state"], body["predicted"]


def kept(agent: AgentProcess) -> dict[tuple[Any, ...], Any]:
    """Every patch in the ledger of an agent that has ended."""
    with closing(sqlite3.connect(agent.state / "ledger.sqlite")) as database:
        query = "SELECT patient, slide, strip, x, y, outcome, pixels FROM slides JOIN patches USING (slide_id)"
        return {row[:5]: row[5:] for row in database.execute(query)}


def count_again(agent: AgentProcess, patches: int) -> None:
    """Wait until so many patches have been counted since this start."""

    def counted() -> bool:
        slides = [line for line in agent.events("slide") if line["state"] == "complete"]
        return bool(slides) and agent.events("ledger_rebuilt") != [] and _seen(agent) >= patches

    wait_until(counted, "the folder is counted anew", FINAL_S)


def _seen(agent: AgentProcess) -> int:
    lines = [json.loads(line) for line in agent.log().splitlines() if line.startswith("{")]
    rebuilt = max(number for number, line in enumerate(lines) if line["event"] == "ledger_rebuilt")
    return sum(line["seen"] for line in lines[rebuilt:] if line["event"] == "slide")


@pytest.mark.parametrize("damage", [_patches, _head, _log, _empty])
def test_a_damaged_ledger_changes_no_answer(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Counted, ended, damaged, started: the same patches, the same answers, nothing said twice with other content."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    for name, content in files_of(phantom).items():
        append(agent.folder, name, content)
    wait_until(lambda: len(finals(listener, "slide")) == 2 and finals(listener, "patient"), "every final", FINAL_S)
    if damage is not _log:
        assert agent.stop() == 0
        before = kept(agent)
    else:
        agent.kill()
    said = {**finals(listener, "slide"), **finals(listener, "patient")}
    ledger = agent.state / "ledger.sqlite"
    damage(ledger)
    agent.start()
    count_again(agent, sum(body["counts"]["seen"] for body in finals(listener, "slide").values()))
    wait_until(lambda: any(b["reason"] == "ledger_rebuilt" for b in listener.bodies("/alert")), "the alert")
    assert agent.stop() == 0
    if damage is not _log:
        assert kept(agent) == before
    again = {**finals(listener, "slide"), **finals(listener, "patient")}
    assert {key: answer(body) for key, body in again.items()} == {key: answer(body) for key, body in said.items()}
    for key, body in again.items():
        assert body["event_id"] == said[key]["event_id"] or body["revision"] > said[key]["revision"]
    assert contradictions(listener) == []
    (told,) = [body for body in listener.bodies("/alert") if body["reason"] == "ledger_rebuilt"]
    (aside,) = [path for path in agent.state.iterdir() if path.name.endswith("Z")]
    assert told["severity"] == "error" and aside.name in told["detail"]
    found = [
        finding for finding in look_at_ledger(load_settings(agent.config)) if finding.check == "ledger_set_aside"
    ]
    assert [str(aside) in finding.found and str(aside) in finding.mend for finding in found] == [True]
    agent.start()
    assert agent.stop() == 0
    assert len([body for body in listener.bodies("/alert") if body["reason"] == "ledger_rebuilt"]) == 1
    listener.close()


def _years(ledger: Path) -> None:
    """Finals of 8000 earlier slides: more than SQLite keeps in memory, so that damage on the disk is met."""
    sha256 = load_profile_folder(PROFILE).sha256
    tally = json.dumps(
        {"sums": [1, 2, 3, 4], "used": 40, "rejected": {}, "judged": 40, "marks": {}, "why": "x" * 300}
    )
    rows = []
    for number in range(8000):
        name = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        event_id = final_event_id(sha256, "slide", name, name, 1)
        rows.append(FinalRow("slide", name, name, 1, event_id, "f" * 64, "complete", 1, 1, "{}", tally, time.time()))
    opened = Ledger.open(ledger)
    opened.append(Record(sha256, finals=tuple(rows)))
    opened.close()


def test_damage_that_appears_under_a_running_agent(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """It ends with exit code 1 and leaves a mark; the next start sets the ledger aside and answers all the same."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent)
    ledger = agent.state / "ledger.sqlite"
    _years(ledger)
    agent.start()
    overwrite(ledger, PAGE, ledger.stat().st_size - PAGE)
    for name, content in files_of(phantom).items():
        append(agent.folder, name, content)
    assert agent.wait(FINAL_S) == 1
    assert ledger.with_name("ledger.sqlite.damaged").exists()
    assert "the next start sets it aside" in agent.log()
    agent.start()
    wait_until(lambda: len(finals(listener, "slide")) == 2, "every final", FINAL_S)
    assert agent.stop() == 0
    assert agent.events("ledger_rebuilt") and contradictions(listener) == []
    opened = Ledger.open(ledger)
    assert opened._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    opened.close()
    assert len(kept(agent)) == sum(body["counts"]["seen"] for body in finals(listener, "slide").values())
    listener.close()
