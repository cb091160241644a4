"""The desk for commands: what is carried out once, what is refused, where replies go, and what a replay says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.catch_up import PATCHES_A_MESSAGE, CatchUp
from agent.command_desk import MOST_A_SECOND, REMEMBERED, REPLAY_PAUSE_S, CommandDesk
from agent.commands import COMMANDS
from agent.engine import Choice
from agent.ledger import CountedPatch, Ledger, Record
from agent.messages import Current, EngineRef
from agent.publish import Command
from agent.reporter import Speaker
from agent.speech import Speech
from agent.topics import Message, Topics
from models.contract import PatchKey, SlideKey
from tests.agent.test_worker import PROFILE, EngineRoom, batch
from tests.fakes import FakeEngine

TOPICS = Topics("srh/v1", "site", "scope")
SPEAKER = Speaker(
    "session", TOPICS, PROFILE, EngineRef(name="fake", precision="fp32"), lambda: datetime(2026, 1, 2, tzinfo=UTC)
)
SPEECH = Speech(SPEAKER, Choice(FakeEngine(), {"openvino": "not built"}), 3, datetime(2026, 1, 2, tzinfo=UTC))


@dataclass
class Office:
    """A desk over a real ledger; closing patients is the test's own matter."""

    ledger: Ledger
    enabled: tuple[str, ...] = tuple(COMMANDS)
    now: float = 0.0
    closings: list[tuple[str | None, Callable[[tuple[str, ...]], Message]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.desk = CommandDesk(
            self.enabled,
            SPEAKER,
            close_patient=lambda *asked: self.closings.append(asked),
            catch_up=CatchUp(self.ledger, SPEAKER, lambda: SPEECH.status("online")),
            engine=lambda: SPEECH.engine(self.ledger.path.parent),
            clock=lambda: self.now,
        )

    def ask(self, verb: str, body: str = "{}", **more: Any) -> list[Message]:
        """Everything that is said because of a command, what trickles included."""
        answer = self.desk.take(Command(verb, body.encode(), **more))
        return [*answer.messages, *(answer.trickle or ())]

    def reply(self, verb: str, body: str = "{}", **more: Any) -> dict[str, Any]:
        """The one reply to a command."""
        (said,) = (json.loads(message.payload) for message in self.ask(verb, body, **more) if message.kind == "reply")
        assert isinstance(said, dict)
        return said


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """A desk with every command on."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    yield Office(ledger)
    ledger.close()


def said_by(messages: list[Message], kind: str) -> list[dict[str, Any]]:
    """Payloads of one kind."""
    return [json.loads(message.payload) for message in messages if message.kind == kind]


# Who is answered where


def test_the_engine_is_told(office: Office) -> None:
    """Engine, precision, batch, what was passed over and why, and what is built."""
    said = office.reply("engine", '{"request_id": "r1"}')
    assert (said["ok"], said["verb"], said["request_id"]) == (True, "engine", "r1")
    assert said["result"] == {
        "engine": {"name": "fake", "precision": "fp32"},
        "batch": 4,
        "passed_over": {"openvino": "not built"},
        "built": [],
    }


def test_a_reply_goes_where_it_may(office: Office) -> None:
    """Below reply/ a Response Topic is taken; otherwise the reply is at reply/<verb>. Correlation comes back."""
    wish = f"{TOPICS.base}/reply/me/7"
    (wished,) = office.ask("engine", reply_to=wish, correlation=b"\x00\xff")
    assert (wished.topic, wished.correlation, wished.retain, wished.qos) == (wish, b"\x00\xff", False, 1)
    for elsewhere in (
        None,
        f"{TOPICS.base}/status",
        "other/reply/x",
        f"{TOPICS.base}/reply/+",
        f"{TOPICS.base}/reply/",
    ):
        (said,) = office.ask("engine", reply_to=elsewhere, correlation=b"c")
        assert (said.topic, said.correlation) == (f"{TOPICS.base}/reply/engine", b"c")


def test_refusals_say_why(office: Office) -> None:
    """Unknown, off, too late, a bad body, another engine: not ok, a detail that helps, and nothing done."""
    office.now = 10.0
    for verb, body, more, word in (
        ("no-such", "{}", {}, "known are close-patient, replay-state, engine"),
        ("$SYS", "{}", {}, "unknown command"),
        ("", "{}", {}, "unknown command"),
        ("close-patient", "{}", {"expires_at_s": 9.9}, "time was over"),
        ("close-patient", '{"patient": "Jane"}', {}, "patient: String should match"),
        ("engine", '{"use": "eager"}', {}, "agent.build_trt"),
    ):
        said = office.reply(verb, body, **more)
        assert not said["ok"] and word in said["detail"] and said["result"] is None
    assert not office.closings
    off = Office(office.ledger, enabled=("engine",))
    said = off.reply("close-patient", '{"request_id": "r"}')
    assert not said["ok"] and "mqtt.commands" in said["detail"] and said["request_id"] == "r"
    assert not off.closings


# Once


def test_a_repeated_request_is_carried_out_once(office: Office) -> None:
    """The same request_id closes once: nothing while it is under way, then the same reply at its new place."""
    body = '{"request_id": "r"}'
    assert office.ask("close-patient", body) == [] and office.ask("close-patient", body) == []
    ((patient, closed),) = office.closings
    assert patient is None
    reply = closed(("p1", "p2"))
    assert json.loads(reply.payload)["result"] == {"closed": ["p1", "p2"]}
    elsewhere = f"{TOPICS.base}/reply/again"
    (again,) = office.ask("close-patient", body, reply_to=elsewhere, correlation=b"2")
    assert (again.payload, again.topic, again.correlation) == (reply.payload, elsewhere, b"2")
    assert len(office.closings) == 1
    assert office.reply("engine", body)["ok"], "another command may use the same id"


def test_without_an_id_every_request_counts(office: Office) -> None:
    """Two commands without a request_id are two commands."""
    office.ask("close-patient")
    office.ask("close-patient")
    assert len(office.closings) == 2


def test_a_refused_request_may_be_repeated(office: Office) -> None:
    """Only what was carried out is remembered: after a refusal the same id is tried again."""
    body = '{"request_id": "r"}'
    assert office.reply("replay-state")["ok"]
    assert not office.reply("replay-state", body)["ok"], "too soon"
    office.now += REPLAY_PAUSE_S
    assert office.reply("replay-state", body)["ok"]


def test_only_the_latest_requests_are_remembered(office: Office) -> None:
    """The memory is bounded: the oldest of more than 100 is forgotten first."""
    for number in range(REMEMBERED + 1):
        office.now += 1
        office.ask("close-patient", json.dumps({"request_id": f"r{number}"}))
    office.ask("close-patient", '{"request_id": "r1"}')
    assert len(office.closings) == REMEMBERED + 1
    office.ask("close-patient", '{"request_id": "r0"}')
    assert len(office.closings) == REMEMBERED + 2


@pytest.mark.parametrize(
    ("patient", "closed", "ok", "word"),
    [
        (None, ("p1", "p2"), True, "2 closed"),
        (None, (), True, "no patient was open"),
        ("a" * 16, ("a" * 16,), True, "1 closed"),
        ("a" * 16, (), False, "this patient is not open"),
    ],
)
def test_what_was_closed_is_told(
    office: Office, patient: str | None, closed: tuple[str, ...], ok: bool, word: str
) -> None:
    """The reply names the patients that ended; asking for one who is not open is not ok."""
    office.ask("close-patient", json.dumps({"patient": patient}))
    ((asked, answer),) = office.closings
    assert asked == patient
    said = json.loads(answer(closed).payload)
    assert said["ok"] is ok and word in said["detail"]
    assert said["result"] == ({"closed": list(closed)} if ok else None)


# Replay


def tell(ledger: Ledger, patient: str, slides: dict[str, int]) -> None:
    """Let a patient have results in the ledger: slide → patches, every third one rejected."""
    room = EngineRoom()
    for slide, count in slides.items():
        keys = [PatchKey(patient, slide, 0, 300 * number, 0) for number in range(count)]
        outcomes = [((1, 2, 3, 4), None) if number % 3 else (None, "empty") for number in range(count)]
        rows = [CountedPatch(key, *outcome) for key, outcome in zip(keys, outcomes, strict=True)]
        ledger.append(Record(PROFILE.sha256, tuple(rows)))
        room.work(batch([0], slide=SlideKey(patient, slide)))
    for record in room.records:
        ledger.append(Record(PROFILE.sha256, messages=tuple(m for m in record.messages if m.kind != "current")))


def point_to(ledger: Ledger, patient: str | None) -> None:
    """Say who is on the table."""
    current = TOPICS.message(Current(**SPEAKER.stamp(), patient=patient, slide=None if patient is None else "s"))
    ledger.append(Record(PROFILE.sha256, messages=(current,)))


def test_a_replay_says_everything_of_the_patient_on_the_table(office: Office) -> None:
    """Birth, current, posteriors, then the reply, then the heat map of each slide, whole, in small messages."""
    tell(office.ledger, "p1", {"s1": 130, "s2": 3})
    tell(office.ledger, "p2", {"s3": 5})
    point_to(office.ledger, "p1")
    said = office.ask("replay-state")
    kinds = [message.kind for message in said]
    assert kinds[0] == "status" and kinds[-4:] == ["slide.patches"] * 4 and kinds[-5] == "reply"
    assert sorted(kinds[1:-5]) == ["current", "patient.posterior", "slide.posterior", "slide.posterior"]
    (reply,) = said_by(said, "reply")
    assert reply["result"] == {"patient": "p1", "retained": 5, "patches": 133}
    maps = said_by(said, "slide.patches")
    assert [(body["slide"], body["before"], len(body["x"])) for body in maps] == [
        ("s1", 0, 60), ("s1", 60, 60), ("s1", 120, 10), ("s2", 0, 3),
    ]  # fmt: skip
    assert {body["patient"] for body in maps} == {"p1"}
    assert len({x for body in maps if body["slide"] == "s1" for x in body["x"]}) == 130
    assert sum(index < 0 for body in maps for index in body["predicted"]) == 44 + 1
    assert all(len(message.payload) < 2048 for message in said if message.kind == "slide.patches")
    assert PATCHES_A_MESSAGE == 60


def test_with_nobody_on_the_table_the_last_patient_is_replayed(office: Office) -> None:
    """After a scan people still look at the screen: the patient of whom something was said last."""
    tell(office.ledger, "p1", {"s1": 2})
    tell(office.ledger, "p2", {"s3": 5})
    point_to(office.ledger, None)
    assert office.reply("replay-state")["result"] == {"patient": "p2", "retained": 4, "patches": 5}


def test_a_replay_of_nothing(office: Office) -> None:
    """Before the first patient there is the birth to say again, and that is told."""
    said = office.ask("replay-state")
    assert [message.kind for message in said] == ["status", "reply"]
    (reply,) = said_by(said, "reply")
    assert reply["ok"] and reply["result"] == {"patient": None, "retained": 1, "patches": 0}


def test_a_replay_reads_a_slide_when_its_turn_has_come(office: Office) -> None:
    """Nothing is held for a slow network: what is counted meanwhile is said, too."""
    tell(office.ledger, "p1", {"s1": 3})
    answer = office.desk.take(Command("replay-state", b""))
    late = CountedPatch(PatchKey("p1", "s1", 7, 0, 0), None, "empty")
    office.ledger.append(Record(PROFILE.sha256, (late,)))
    assert said_by([*answer.messages], "reply")[0]["result"]["patches"] == 3
    assert [len(body["x"]) for body in said_by([*(answer.trickle or ())], "slide.patches")] == [4]


def test_a_flood_is_not_answered(office: Office) -> None:
    """Replies go before results: of more commands in a second than anybody needs, the rest is dropped and told."""
    with capture_logs() as logs:
        replies = [office.ask("engine") for _ in range(1000)]
    assert [len(said) for said in replies] == [1] * MOST_A_SECOND + [0] * (1000 - MOST_A_SECOND)
    assert [log["event"] for log in logs] == ["command"] * MOST_A_SECOND + ["commands_dropped"]
    office.now += 1
    assert office.reply("engine")["ok"]


def test_replays_are_rationed(office: Office) -> None:
    """A second one within a second is refused, whoever asks."""
    assert office.reply("replay-state")["ok"]
    office.now += REPLAY_PAUSE_S / 2
    assert "ask again" in office.reply("replay-state")["detail"]
    office.now += REPLAY_PAUSE_S / 2
    assert office.reply("replay-state")["ok"]


# The process's own status


def test_what_contradicts_the_birth() -> None:
    """A late will, a farewell or an earlier birth of another session, and what is no status at all."""

    def heard(session: str, state: str, boot_seq: int) -> bool:
        body = {"session_id": session, "state": state, "boot_seq": boot_seq, "of a later version": 1}
        return SPEECH.is_contradicted_by(json.dumps(body).encode())

    assert not heard("session", "online", 3) and not heard("session", "offline", 3)
    assert heard("old", "offline", 2) and heard("old", "online", 2) and heard("old", "stopped", 9)
    assert not heard("twin", "online", 3), "two agents must not answer each other for ever"
    assert SPEECH.is_contradicted_by(b"") and SPEECH.is_contradicted_by(b"{}")
