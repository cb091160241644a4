"""When a connection that is there counts as useless: nothing is acknowledged although something should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.delivery import Delivery
from agent.ledger import Ledger, Record
from agent.publish import Acked
from agent.topics import Message

LIMIT_S = 20.0


def message(name: str, qos: int = 1) -> Message:
    """A final, or something fleeting."""
    return Message(f"t/{name}", b"{}", name, "slide.final", qos, False, False, qos == 1)


class Wire:
    """A session (agent.publish.Session) that only remembers what it was given."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.left: list[str] = []

    def publish(self, message: Message) -> int | None:
        """The next mid."""
        self.sent.append(message)
        return len(self.sent)

    def reconnect(self, reason: str) -> None:
        """The connection is given up."""
        self.left.append(reason)


class Bench:
    """A delivery on a ledger, a wire and a clock of its own."""

    def __init__(self, ledger: Ledger) -> None:
        """Connected at second 0."""
        self.now = 0.0
        self.wire = Wire()
        self.ledger = ledger
        self.delivery = Delivery(
            ledger,
            self.wire,  # type: ignore[arg-type]
            puback_limit_s=LIMIT_S,
            clock=lambda: self.now,
        )
        self.delivery.begin(16, [])

    def pump_at(self, now: float) -> bool:
        """One turn at this second; whether the connection was given up by then."""
        self.now = now
        self.delivery.pump()
        return bool(self.wire.left)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A connected delivery."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    yield Bench(ledger)
    ledger.close()


def owe(bench: Bench, *names: str) -> None:
    """Put finals into the ledger."""
    bench.ledger.append(Record("p" * 64, messages=tuple(message(name) for name in names)))


def test_nothing_owed_means_nothing_missed(bench: Bench) -> None:
    """A connection on which nothing waits for an acknowledgement may be silent for ever."""
    assert not bench.pump_at(1e6)
    owe(bench, "a")
    assert not bench.pump_at(2e6)
    bench.delivery.acknowledge([Acked(1)])
    assert not bench.pump_at(3e6)


def test_a_broker_that_acknowledges_nothing_is_left_after_the_limit(bench: Bench) -> None:
    """At the limit the connection is given up, once, with the reason; the message stays in the ledger."""
    owe(bench, "a")
    assert not bench.pump_at(5.0)
    assert not bench.pump_at(5.0 + LIMIT_S - 0.1)
    assert bench.pump_at(5.0 + LIMIT_S)
    bench.pump_at(5.0 + 2 * LIMIT_S)
    assert bench.wire.left == ["the broker has acknowledged nothing for 20 s"]
    assert not bench.delivery.connected and bench.ledger.outbox_length() == 1


def test_any_acknowledgement_starts_the_limit_anew(bench: Bench) -> None:
    """A slow broker that acknowledges one message after the other is not left, however long the last one waits."""
    owe(bench, *"abcd")
    bench.pump_at(0.0)
    for mid in (1, 2, 3, 4):
        bench.now = 15.0 * mid
        bench.delivery.acknowledge([Acked(mid)])
        assert not bench.pump_at(bench.now)
    assert bench.ledger.outbox_length() == 0


def test_what_the_network_still_takes_counts_only_ahead_of_what_waits(bench: Bench) -> None:
    """Fleeting messages before a final are on their way to the broker first; those behind it prove nothing."""
    for name in "xy":
        bench.delivery.say(message(name, qos=0))
    owe(bench, "a")
    bench.pump_at(1.0)
    bench.now = 15.0
    bench.delivery.acknowledge([Acked(1)])  # x has left this machine: the line is slow, not dead
    assert not bench.pump_at(34.0)
    bench.delivery.say(message("z", qos=0))
    bench.delivery.acknowledge([Acked(4)])
    assert bench.pump_at(35.0)
