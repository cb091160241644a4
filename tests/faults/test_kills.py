"""Fifty kills: a short form of `python -m tests.faults kills --count 1000`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import Mosquitto, wait_until
from tests.faults.ground import Ground
from tests.faults.kills import Scenario
from tests.faults.network import Relay
from tests.faults.station import Station

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize("seed", [501, 502, 503, 504, 505])
def test_ten_kills_lose_nothing_and_count_nothing_twice(seed: int, ground: Ground, tmp_path: Path) -> None:
    """Killed ten times at random moments of an acquisition: finals, alerts and ledger of an undisturbed run."""
    outcome = Scenario(seed, 10, ground, tmp_path / "scenario").run()
    assert outcome.verdict.found() == {}
    assert outcome.struck.total() == 10


def test_a_final_that_was_lost_on_its_way_is_said_after_a_kill(
    ground: Ground, broker: Mosquitto, tmp_path: Path
) -> None:
    """Sent into a network that swallows it, and killed before anybody noticed: the next start says it."""
    relay = Relay(broker.port)
    station = Station(tmp_path, ground, broker, relay.port)
    station.agent.start()
    station.expect_final(station.slide())
    station.expect_nothing_owed()
    slide = station.slide()
    wait_until(lambda: station.has_told(slide), "every patch of the second slide is told")
    relay.deaf = True  # not earlier, or running answers fill the window before the final
    wait_until(lambda: len(station.agent.events("patient")) == 2, "slide and patient have ended")
    swallowed = relay.swallowed_bytes
    wait_until(lambda: relay.swallowed_bytes > swallowed, "what came last has been sent")
    station.agent.kill()
    relay.deaf = False
    relay.drop_all()
    assert slide not in station.heard().finals("slide")
    station.agent.start()
    station.expect_final(slide)
    assert station.agent.stop() == 0
    station.expect_everything_once()
    station.close()
    relay.close()
