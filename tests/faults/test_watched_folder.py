"""A share that hiccups under the watched folder: errors come and go, everything counts once."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.acquisition import State
from agent.imager import Layout
from tests.brokers import Mosquitto, wait_until
from tests.fakes import ToldFolder
from tests.faults.ground import Ground
from tests.faults.shim import Call, Shim
from tests.faults.station import Station
from tests.reading import Bench, slide_files


@pytest.fixture
def station(ground: Ground, broker: Mosquitto, tmp_path: Path) -> Iterator[Station]:
    """A station whose agent has not been started; a patient waits longer than a file that is tried again."""
    station = Station(tmp_path, ground, broker, patient_quiet_s=60.0)
    yield station
    station.close()


@pytest.mark.system
@pytest.mark.timeout(240)
def test_errors_of_a_share_come_and_go(station: Station, ground: Ground, tmp_path: Path) -> None:
    """EIO, ESTALE and EACCES while files are opened, read, looked at or listed: late, and otherwise as ever."""
    shim = Shim(tmp_path, ground.library)
    station.agent.start(environment=shim.environment)
    station.expect_final(station.slide())
    faults = [
        (Call.OPEN, errno.EIO),
        (Call.READ, errno.EIO),
        (Call.READ, errno.ESTALE),
        (Call.STAT, errno.EACCES),
        (Call.LIST, errno.ESTALE),
    ]
    for calls, error in faults:
        fault = shim.cause(station.agent.folder, calls, error=error)
        slide = station.slide()
        wait_until(lambda fault=fault: fault.hits >= 3, f"{calls.name} fails")  # type: ignore[misc]
        fault.end()
        station.expect_final(slide, 20.0)
    assert station.agent.stop() == 0
    station.expect_everything_once()


@pytest.mark.parametrize(
    "layout",
    [
        "strips-b",
        "tiff-strip",
        "tiff-mosaic",
        "opensrh",
    ],
)
def test_any_one_failing_read_changes_nothing(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever read of a slide fails once, the first or any later one: the slide is complete in the end."""
    for relative, content in slide_files(layout, "3").items():
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_bytes(content)
    pread, reads = os.pread, 0

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)  # files that are still young are read a second time anyway
    for fails_at in (1, 2, 5, 9, 14, 19):
        reads, bench = 0, Bench(ToldFolder(tmp_path))
        for turn in range(8):
            bench.poll(3.0 * turn)
        if reads < fails_at:
            break
        bench.take(bench.reader.close_patient(None))
        (outcome,) = bench.outcomes().values()
        assert (outcome.state, outcome.posterior.counts.seen) == (State.COMPLETE, 42), f"read {fails_at} failed"
