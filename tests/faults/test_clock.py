"""Somebody sets the clock while an acquisition goes on: results stay, silence is measured by another clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Mosquitto, wait_until
from tests.faults.ground import Ground
from tests.faults.shim import Shim
from tests.faults.station import Station

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
DAY_S = 86_400.0


@pytest.fixture
def shim(ground: Ground, tmp_path: Path) -> Shim:
    """A shim without faults."""
    return Shim(tmp_path, ground.library)


@pytest.fixture
def station(ground: Ground, broker: Mosquitto, tmp_path: Path, shim: Shim) -> Iterator[Station]:
    """A station whose agent runs under the shim."""
    station = Station(tmp_path, ground, broker)
    station.agent.start(environment=shim.environment)
    yield station
    station.close()


def days_off(body: dict[str, Any]) -> float:
    """How far a message's time is from ours, days."""
    return (datetime.fromisoformat(body["time"]) - datetime.now(UTC)).total_seconds() / DAY_S


@pytest.mark.parametrize("days", [1, -1])
def test_a_day_forward_or_back_within_an_acquisition(days: int, station: Station, shim: Shim) -> None:
    """Half of a slide before the jump, half after it: one final on complete data, nobody fell silent."""
    station.expect_final(station.slide())
    files = station.files()
    station.write(files[:4])
    slide = station.pseudonym()
    heard = station.heard
    wait_until(
        lambda: any(b["slide"] == slide and b["counts"]["seen"] == 4 for b in heard().of_kind("slide.posterior")),
        "four patches are counted",
    )
    shim.jump(days * DAY_S)
    station.write(files[4:])
    final = station.expect_final(slide)
    assert shim.clock_hits and round(days_off(final)) == days
    assert not {"stalled", "truncated"} & station.alerts()
    shim.jump(0)
    station.expect_final(station.slide())
    assert station.agent.stop() == 0
    station.expect_everything_once()


def test_forty_days_forward_without_a_broker(station: Station, shim: Shim, broker: Mosquitto) -> None:
    """Longer than any result's time at the broker: finals that waited are delivered, for a day at least; a restart,
    which prunes what is older than `patient.keep_days`, says no final again; in the present everything goes on."""
    first = station.slide()
    station.expect_final(first)
    station.expect_nothing_owed()
    broker.kill()
    second = station.slide()
    wait_until(lambda: station.has_counted(2), "the slide is counted", 30.0)
    shim.jump(40 * DAY_S)
    broker.start()
    final = station.expect_final(second)
    message = next(m for m in station.witness.messages if m.topic.endswith(f"{second}/final"))
    expiry = getattr(message.properties, "MessageExpiryInterval", 0)
    assert expiry >= DAY_S - 60 and abs(days_off(final)) < 1
    station.expect_nothing_owed()
    assert station.agent.stop() == 0
    station.agent.start(environment=shim.environment)
    station.expect_final(station.slide())
    shim.jump(0)
    station.expect_final(station.slide())
    assert station.agent.stop() == 0
    finals = station.heard().of_kind("slide.final")
    assert len(finals) == 4 and {body["revision"] for body in finals} == {1}
