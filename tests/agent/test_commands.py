"""Bodies of commands: what is understood, and that what is not never comes back in words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.commands import COMMANDS, AskEngine, Body, ClosePatient, ReplayState, parse_body, request_id_of
from agent.outlets import Verb

PATIENT = "abcdefgh234567zz"


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("payload", [b"", b"{}", b'{"request_id": "a-1"}'])
def test_nothing_but_an_id_is_a_body_of_every_command(verb: Verb, payload: bytes) -> None:
    """An empty payload, an empty object, and an object with a request_id are understood by every command."""
    body = parse_body(verb, payload)
    assert isinstance(body, COMMANDS[verb])
    assert isinstance(body, Body) and body.request_id == request_id_of(payload)


def test_bodies_are_typed() -> None:
    """Each command takes its own fields."""
    assert parse_body("close-patient", b'{"patient": "%s"}' % PATIENT.encode()) == ClosePatient(patient=PATIENT)
    assert parse_body("engine", b'{"use": "eager"}') == AskEngine(use="eager")
    assert parse_body("replay-state", b"{}") == ReplayState()


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b'{"patient": "DOE^JANE"}', "patient: String should match"),
        (b'{"DOE^JANE": 1}', "unknown field"),
        (b'{"patient": ["DOE^JANE"]}', "patient: Input should be a valid string"),
        (b'{"patient": "DOE^JANE"', "body: Invalid JSON"),
        (b'"DOE^JANE"', "body: Input should be an object"),
        (b"\xff\xfe DOE^JANE", "body: Invalid JSON"),
        (b'{"request_id": "DOE^JANE"}', "request_id: String should match"),
    ],
)
def test_what_is_wrong_is_said_without_what_was_sent(payload: bytes, word: str) -> None:
    """The complaint names field and rule, and which fields there are, but no key and no value of the body."""
    said = parse_body("close-patient", payload)
    assert isinstance(said, str) and word in said and "(fields: request_id, patient)" in said
    assert "DOE" not in said and "JANE" not in said


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_a_complaint(payload: bytes) -> None:
    """No payload raises anything."""
    for verb in COMMANDS:
        assert isinstance(parse_body(verb, payload), Body | str)
    assert request_id_of(payload) is None or json.loads(payload)["request_id"] == request_id_of(payload)


def test_the_id_of_a_body_that_is_wrong_otherwise_is_still_found() -> None:
    """A refusal can carry the request_id back."""
    assert request_id_of(b'{"patient": 3, "request_id": "r-7", "more": null}') == "r-7"
    assert request_id_of(b'{"request_id": "not an id"}') is None
