"""Disks that fail under the ledger, the key and the spool: the agent ends or waits, and loses nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers import Mosquitto, wait_until
from tests.faults.ground import Ground
from tests.faults.shim import Call, Fault, Shim
from tests.faults.station import Station

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FULL = {"error": errno.ENOSPC}


@pytest.fixture
def shim(ground: Ground, tmp_path: Path) -> Shim:
    """A shim without faults."""
    return Shim(tmp_path, ground.library)


@pytest.fixture
def station(ground: Ground, broker: Mosquitto, tmp_path: Path) -> Iterator[Station]:
    """A station whose agent has not been started."""
    station = Station(tmp_path, ground, broker)
    yield station
    station.close()


def start(station: Station, shim: Shim, *, ready: bool = True) -> None:
    """Start the agent under the shim."""
    station.agent.start(ready=ready, environment=shim.environment)


FAULTS: dict[str, Callable[[Shim, Path], list[Fault]]] = {
    "the disk is full": lambda shim, state: [shim.cause(state, Call.WRITE, ending="-wal", error=errno.ENOSPC)],
    "the disk fills up within a write": lambda shim, state: [
        shim.cause(state, Call.WRITE, ending="-wal", short=True, skip=3, most=1),
        shim.cause(state, Call.WRITE, ending="-wal", error=errno.ENOSPC, skip=4),
    ],
    "writing fails": lambda shim, state: [shim.cause(state, Call.WRITE, ending="-wal", error=errno.EIO, skip=2)],
    "syncing fails": lambda shim, state: [shim.cause(state, Call.SYNC, ending="-wal", error=errno.EIO)],
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_ledger_that_cannot_be_written_ends_the_agent_and_loses_nothing(
    what: str, station: Station, shim: Shim
) -> None:
    """Exit code 1, with the reason; the broker says `offline`; after the disk works again a start mends all."""
    start(station, shim)
    first = station.slide()
    station.expect_final(first)
    faults = FAULTS[what](shim, station.agent.state)
    second = station.slide()
    assert station.agent.wait(60.0) == 1
    assert all(fault.hits for fault in faults)
    (died,) = station.agent.events("room_died")
    assert died["room"] == "sender" and "ledger" in died["error"]
    assert ("disk is full" in died["error"]) == (what.startswith("the disk"))
    wait_until(lambda: station.heard().status == "offline", "the will")
    for fault in faults:
        fault.end()
    start(station, shim)
    station.expect_final(second)
    station.expect_final(station.slide())
    assert station.agent.stop() == 0
    station.expect_final(first)
    station.expect_everything_once()


def test_slow_and_short_writes_change_nothing(station: Station, shim: Shim) -> None:
    """A disk on which each sync takes 50 ms and each write is done by halves makes results later, not different."""
    start(station, shim)
    slow = shim.cause(station.agent.state, Call.SYNC, delay_s=0.05)
    short = shim.cause(station.agent.state, Call.WRITE, short=True)
    for slide in [station.slide(), station.slide()]:
        station.expect_final(slide)
    slow.end()
    assert station.agent.stop() == 0
    assert slow.hits > 3 and short.hits > 20
    station.expect_everything_once()


START_FAULTS: dict[str, Callable[[Shim, Path], Fault]] = {
    "no file can be made": lambda shim, state: shim.cause(state, Call.CREATE, error=errno.ENOSPC),
    "the key cannot be written": lambda shim, state: shim.cause(state, Call.WRITE, error=errno.ENOSPC, skip=0),
    "the ledger cannot be synced": lambda shim, state: shim.cause(state, Call.SYNC, error=errno.EIO),
    "the key cannot be put in place": lambda shim, state: shim.cause(state, Call.RENAME, error=errno.EIO),
}


@pytest.mark.parametrize("what", START_FAULTS)
def test_a_first_start_on_a_bad_disk_can_be_repeated(what: str, station: Station, shim: Shim) -> None:
    """It ends with an error in words instead of a traceback, and leaves nothing that a later start stumbles over."""
    fault = START_FAULTS[what](shim, station.agent.state)
    start(station, shim, ready=False)
    assert station.agent.wait(60.0) != 0
    assert fault.hits
    assert "Traceback" not in station.agent.log() and str(station.agent.state) in station.agent.log()
    fault.end()
    start(station, shim)
    station.expect_final(station.slide())
    assert station.agent.stop() == 0
    station.expect_everything_once()


def test_a_ledger_that_cannot_be_read_is_told_and_left_alone(station: Station, shim: Shim) -> None:
    """A start whose reads fail ends with the reason and harms nothing: the next one finds everything."""
    start(station, shim)
    first = station.slide()
    station.expect_final(first)
    station.expect_nothing_owed()
    station.agent.kill()
    fault = shim.cause(station.agent.state, Call.READ, ending="ledger.sqlite", error=errno.EIO)
    start(station, shim, ready=False)
    assert station.agent.wait(60.0) != 0
    assert fault.hits and "reading or writing it failed" in station.agent.log()
    fault.end()
    start(station, shim)
    assert station.agent.events("restored")[-1]["patches"] == 6
    station.expect_final(station.slide())
    assert station.agent.stop() == 0
    station.expect_final(first)
    station.expect_everything_once()


def test_a_spool_without_room_holds_up_no_result(station: Station, shim: Shim) -> None:
    """Finals go to the broker although they cannot be kept as files; they are as soon as there is room."""
    start(station, shim)
    fault = shim.cause(station.agent.state / "results", Call.STORING, error=errno.ENOSPC)
    final = station.expect_final(station.slide())
    wait_until(lambda: station.agent.events("results_wait_in_the_ledger"), "it is told", 30.0)
    assert fault.hits and not list((station.agent.state / "results").glob("*.json"))
    fault.end()
    assert station.agent.stop() == 0
    start(station, shim)
    assert station.agent.stop() == 0
    assert final["event_id"] in {path.stem for path in (station.agent.state / "results").glob("*.json")}
    station.expect_everything_once()
