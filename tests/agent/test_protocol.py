"""Which MQTT version is tried next, for each way in which a connection can end."""

from __future__ import annotations

import pytest

from agent.protocol import UNSUPPORTED_VERSION, ProtocolChoice


def test_a_version_that_the_settings_name_stays() -> None:
    """Whatever happens, 3.1.1 stays 3.1.1 and 5 stays 5."""
    for choice, wanted in ((ProtocolChoice("5"), "5"), (ProtocolChoice("3.1.1"), "3.1.1")):
        for _ in range(5):
            assert not choice.ended(UNSUPPORTED_VERSION, reached=True, answered=True)
            assert not choice.ended("no answer", reached=True, answered=False)
        assert choice.version == wanted


def test_auto_begins_with_5_and_stays_with_what_worked() -> None:
    """Once a connection has worked, nothing changes the version any more."""
    choice = ProtocolChoice("auto")
    assert choice.version == "5" and not choice.is_settled
    choice.settle()
    assert not choice.ended(UNSUPPORTED_VERSION, reached=True, answered=True)
    assert choice.version == "5"


@pytest.mark.parametrize("reason", [UNSUPPORTED_VERSION, f"the broker refuses the connection: {UNSUPPORTED_VERSION}"])
def test_a_broker_without_5_is_asked_for_3_1_1_at_once(reason: str) -> None:
    """Its refusal says so; should 3.1.1 be refused as well, 5 comes again, after a pause."""
    choice = ProtocolChoice("auto")
    ends = [(choice.ended(reason, reached=True, answered=True), choice.version) for _ in range(2)]
    assert ends == [(True, "3.1.1"), (False, "5")]


def test_two_silences_in_a_row_change_the_version() -> None:
    """A broker that takes the connection and says nothing may not understand; one that is away says nothing of it."""
    choice = ProtocolChoice("auto")
    tried = []
    for reached in (True, False, True, True):
        assert not choice.ended("no answer", reached=reached, answered=False)
        tried.append(choice.version)
    assert tried == ["5", "5", "5", "3.1.1"]
