"""Bad networks and bad brokers: the agent goes through one after the other, and misses no final."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.brokers import Listener, Mosquitto, wait_until
from tests.faults.ground import Ground
from tests.faults.network import PUBACK, Relay
from tests.faults.station import Station

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
KEEPALIVE_S, PUBACK_LIMIT_S = 2, 3.0


class Place(NamedTuple):
    """A station whose broker is behind a bad network."""

    station: Station
    relay: Relay
    broker: Mosquitto

    def broker_with(self, *lines: str) -> None:
        """Start the broker again with other settings; what it kept is gone, as without persistence."""
        self.broker.kill()
        self.broker.lines[3:] = lines
        self.broker.start()

    def disconnections(self) -> list[str]:
        """Why connections have ended so far."""
        return [str(event["reason"]) for event in self.station.agent.events("mqtt_disconnected")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, ground: Ground) -> Iterator[Place]:
    """One agent for every test here: it must stand all of them in one life."""
    folder = tmp_path_factory.mktemp("network")
    broker = Mosquitto(folder).start()
    relay = Relay(broker.port, seed=3)
    station = Station(
        folder, ground, broker, relay.port, keepalive_s=KEEPALIVE_S, puback_limit_s=PUBACK_LIMIT_S, in_flight=4
    )
    station.agent.start()
    station.expect_final(station.slide())
    yield Place(station, relay, broker)
    station.close()
    relay.close()
    broker.kill()


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    """The shared place, whole again afterwards."""
    yield shared
    relay = shared.relay
    relay.refusing = relay.deaf = False
    relay.cut_after, relay.bytes_per_s, relay.delay_s = None, 0.0, 0.0
    relay.swallow = lambda _: False
    assert not shared.station.agent.ended, shared.station.agent.log()


def test_a_broker_that_answers_pings_and_acknowledges_nothing_is_left(place: Place) -> None:
    """Without a PUBACK for `mqtt.puback_limit_s` the agent connects anew, and delivers where it is acknowledged."""
    station, relay = place.station, place.relay
    station.expect_nothing_owed()
    relay.swallow = lambda packet: packet == PUBACK
    begun = time.monotonic()
    slide, before = station.slide(), len(place.disconnections())
    wait_until(lambda: len(place.disconnections()) > before, "the agent leaves", 15.0)
    assert time.monotonic() - begun < PUBACK_LIMIT_S + 8.0
    assert "acknowledged nothing" in place.disconnections()[-1]
    assert relay.swallowed
    relay.swallow = lambda _: False
    station.expect_final(slide)
    station.expect_nothing_owed()


def test_connections_that_break_at_any_byte_lose_nothing(place: Place) -> None:
    """Cut four times in the middle of packets, the agent comes back each time until everything is delivered."""
    station, relay = place.station, place.relay
    cuts = relay.cuts
    relay.cut_after = (200, 12_000)
    relay.drop_all()
    slide = station.slide()
    wait_until(lambda: relay.cuts >= cuts + 4, "the connection was cut four times", 60.0)
    relay.cut_after = None
    relay.drop_all()
    station.expect_final(slide)
    station.expect_nothing_owed()


def test_a_slow_network_is_no_reason_to_connect_anew(place: Place) -> None:
    """At 12 kB/s and with 50 ms of delay, acknowledgements trickle in: the connection stays and delivers."""
    station, relay = place.station, place.relay
    station.expect_nothing_owed()
    before = len(place.disconnections())
    relay.bytes_per_s, relay.delay_s = 12_000.0, 0.05
    station.expect_final(station.slide())
    relay.bytes_per_s = relay.delay_s = 0.0
    station.expect_nothing_owed()
    assert len(place.disconnections()) == before


def test_a_half_open_connection_is_noticed(place: Place) -> None:
    """Both ends believe in a connection that passes nothing on: the agent leaves it and delivers on a new one."""
    station, relay = place.station, place.relay
    station.expect_nothing_owed()
    before = len(place.disconnections())
    relay.deaf = True
    slide = station.slide()
    wait_until(lambda: len(place.disconnections()) > before, "the agent leaves", 15.0)
    relay.deaf = False
    relay.drop_all()
    station.expect_final(slide)
    station.expect_nothing_owed()


def test_a_network_that_refuses_everybody_is_waited_for(place: Place) -> None:
    """While every connection is closed at once, a slide ends; its final arrives when connections are taken again."""
    station, relay = place.station, place.relay
    ended = len(station.agent.events("slide"))
    relay.refusing = True
    relay.drop_all()
    slide = station.slide()
    wait_until(lambda: len(station.agent.events("slide")) > ended, "the slide is counted", 60.0)
    relay.refusing = False
    station.expect_final(slide)


def test_a_frozen_broker_is_waited_for(place: Place) -> None:
    """A broker that stops answering anything at all is left within twice the keepalive time, and come back to."""
    station = place.station
    station.expect_nothing_owed()
    before = len(place.disconnections())
    place.broker.send_signal(signal.SIGSTOP)
    slide = station.slide()
    wait_until(lambda: len(place.disconnections()) > before, "the agent leaves", 15.0)
    place.broker.send_signal(signal.SIGCONT)
    station.expect_final(slide)


def test_a_broker_with_narrow_limits_gets_everything_one_by_one(place: Place) -> None:
    """A receive maximum of 1 is kept: every final arrives, in one connection."""
    station = place.station
    place.broker_with("max_inflight_messages 1", "max_queued_messages 0")
    wait_until(lambda: station.agent.events("mqtt_connected")[-1]["receive_maximum"] == 1, "the limit is known", 60.0)
    before = len(place.disconnections())
    for slide in [station.slide(), station.slide()]:
        station.expect_final(slide)
    station.expect_nothing_owed()
    assert len(place.disconnections()) == before
    place.broker_with()


def test_a_final_that_is_too_large_for_the_broker_waits_for_another(place: Place) -> None:
    """With a packet limit below a final's size it is refused here, told, kept, and sent when the limit is lifted."""
    station = place.station
    place.broker_with("max_packet_size 1000")
    limited = "maximum_packet_size"
    wait_until(lambda: station.agent.events("mqtt_connected")[-1][limited] == 1000, "the limit is known", 60.0)
    slide = station.slide()
    wait_until(lambda: _refused(station, "1000"), "the refusal is told in the log", 60.0)
    assert slide not in station.heard().finals("slide")
    wait_until(lambda: "refused_by_broker" in station.alerts(), "and as an alert", 30.0)
    place.broker_with()
    station.expect_final(slide)
    station.expect_nothing_owed()


def test_a_broker_that_forbids_finals_gets_them_when_it_allows_them(place: Place, tmp_path: Path) -> None:
    """Refused by an access rule, a final stays in the ledger and arrives after the rule is mended."""
    station = place.station
    rules = tmp_path / "rules"
    rules.write_text("topic read #\ntopic write srh/v1/+/+/status\ntopic write srh/v1/+/+/slide/+/posterior\n")
    place.broker_with(f"acl_file {rules}")
    slide = station.slide()
    wait_until(lambda: _refused(station, "Not authorized"), "the refusal is told", 60.0)
    assert slide not in station.heard().finals("slide")
    place.broker_with()
    station.expect_final(slide)
    station.expect_nothing_owed()


def test_a_broker_that_forgot_everything_is_told_again(place: Place) -> None:
    """After a restart of a broker without persistence every final of before is retained there again."""
    station = place.station
    said = set(station.heard().finals("slide"))
    place.broker_with()
    late = Listener(place.broker.port)
    wait_until(
        lambda: {body["slide"] for body in late.bodies("/final") if body["kind"] == "slide.final"} >= said,
        "every final of before",
        60.0,
    )
    late.close()
    station.expect_nothing_owed()


def _refused(station: Station, word: str) -> bool:
    """Whether the log says that a final was refused, with this word in the reason."""
    events = station.agent.events("mqtt_message_refused")
    return any(event["kind"] == "slide.final" and word in event["reason"] for event in events)
