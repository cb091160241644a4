"""Promises of a replaced engine to whoever listens: one alert, a new status, and answers that name who gave them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.acquisition import State
from agent.audit_check import check
from agent.audit_log import log_files
from agent.audit_trail import AuditTrail
from agent.engine import Choice
from agent.engine.service import Service
from agent.errors import EngineError
from agent.intake import SlideClosed
from agent.ledger import Ledger
from agent.reload import LiveSettings
from agent.settings import Settings
from agent.speech import Speech
from agent.worker import Work
from tests.agent.engine.breaking import Breaking
from tests.agent.test_worker import PROFILE, SLIDE, EngineRoom, batch, progress
from tests.fakes import FakeEngine

SINCE = datetime(2026, 1, 2, tzinfo=UTC)


class Room:
    """An ENGINE room whose engine breaks after so many batches of four, joined as the pipeline joins it."""

    def __init__(self, healthy: int, *others: FakeEngine) -> None:
        first = Breaking(FakeEngine(), "nan", healthy)
        choices = [Choice(first, label="first"), *(Choice(engine, label=engine.name) for engine in others)]
        service = Service(iter(choices), PROFILE)
        self.room = EngineRoom(engine=service, self_test=service.self_test, next_engine=service.next_engine)
        self.speech = Speech(self.room.speaker, service.choice, 3, SINCE)
        service.replaced = lambda change: self.room.worker.replaced(
            change.detail, self.speech.take_over(service.choice)
        )


def second() -> FakeEngine:
    """An engine that answers as the first one did."""
    return FakeEngine("second", "int8", batch_size=3)


def test_people_are_told_once_and_what_follows_names_the_new_engine() -> None:
    """Alert and status come before the first answer of the new engine; nothing is lost; the final stays as it is."""
    made, undisturbed = Room(1, second()), EngineRoom()
    work: list[Work] = [
        batch(range(4)),
        batch(range(4, 8)),
        batch(range(8, 10)),
        progress(State.COMPLETE, 2),
        SlideClosed(SLIDE),
    ]
    with capture_logs() as lines:
        made.room.work(*work)
    undisturbed.work(*work)
    (alert,) = made.room.said("alert")
    assert (alert["reason"], alert["severity"], alert["slide"]) == ("engine_replaced", "warning", None)
    assert alert["detail"].startswith("engine first failed and second has taken over; nothing is lost: ")
    (status,) = made.room.said("status")
    assert (status["state"], status["boot_seq"]) == ("online", 3)
    assert status["engine"] == {"name": "second", "precision": "int8"}
    assert list(status["passed_over"]) == ["first"] and "golden pair differs by nan" in status["passed_over"]["first"]
    (final,), (expected,) = made.room.said("slide.final"), undisturbed.said("slide.final")
    assert final["counts"] == {"seen": 10, "used": 10, "rejected": {}}
    assert final["engine"] == status["engine"]
    assert {**final, "engine": 0, "latency": 0} == {**expected, "engine": 0, "latency": 0}
    order = [(m.kind, json.loads(m.payload).get("engine")) for r in made.room.records for m in r.messages]
    at = [kind for kind, _ in order].index("alert")
    assert order[at + 1] == ("status", status["engine"])
    said = [engine for kind, engine in order[at:] if kind == "slide.posterior"]
    assert said and all(engine == status["engine"] for engine in said)
    before = [engine for kind, engine in order[:at] if kind == "slide.posterior"]
    assert before == [{"name": "fake", "precision": "fp32"}]
    assert (made.room.measures.replacements, made.room.measures.alerts) == (1, {"engine_replaced": 1})
    passed = [line for line in lines if line["event"] == "engine_passed_over"]
    assert [(line["engine"], line["log_level"]) for line in passed] == [("first", "warning")]
    assert [line["engine"] for line in lines if line["event"] == "engine"] == ["second"]


def test_each_replacement_is_told() -> None:
    """The same engine may break after every start: no alert is taken for a repetition of an earlier one."""
    rooms = [Room(1, second()) for _ in range(2)]
    for made in rooms:
        made.room.work(batch(range(4)), batch(range(4, 8)))
    ids = {made.room.said("alert")[0]["event_id"] for made in rooms}
    assert len(ids) == 2


def test_the_reply_to_the_engine_command_follows(tmp_path: Path) -> None:
    """`cmd/engine` names the engine in service, its batch, and the one that broke."""
    made = Room(0, second())
    made.room.work(batch(range(2)))
    told = made.speech.engine(tmp_path)
    assert (told.engine.name, told.batch, list(told.passed_over)) == ("second", 3, ["first"])


def test_without_another_engine_the_room_ends() -> None:
    """As ever: what was found is handed on, nothing of the batch counts, and nothing claims to have taken over."""
    made = Room(1)
    with pytest.raises(EngineError, match=r"engine is broken: .*no engine can be used: first: "):
        made.room.work(batch(range(4)), batch(range(4, 8)))
    assert made.room.reducer.total.seen == 4
    assert made.room.measures.replacements == 0


def test_the_audit_log_has_the_change(tmp_path: Path) -> None:
    """One entry like that of the start, when the SENDER room looks next, and none without a change."""
    made = Room(0, second())
    settings = Settings(folder=tmp_path / "imager", state_dir=tmp_path, profile=tmp_path / "profile")
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    trail = AuditTrail(ledger.audit, LiveSettings(settings, lambda: settings), made.speech)
    trail.look()
    made.room.work(batch(range(2)))
    trail.look()
    trail.look()
    ledger.close()
    facts = []
    assert check(log_files(tmp_path), lambda entry: facts.append((entry.kind, entry.facts))).fault is None
    (_, start), (kind, change) = facts
    assert kind == "engine"
    assert (start["engine"]["name"], change["engine"]["name"]) == ("fake", "second")
    assert (
        start["engine"].keys() == change["engine"].keys() and start["libraries"].keys() == change["libraries"].keys()
    )
    assert change["session_id"] == start["session_id"] and list(change["passed_over"]) == ["first"]
