"""Promises of the health figures: they are the rooms' own counters, and a room that hangs is noticed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from agent.batching import Batch, Timed
from agent.handover import CancelToken, Handover
from agent.health import Figures, Pulse
from agent.ledger import Ledger, Record
from agent.messages import EngineRef
from agent.publish import Session
from agent.reporter import Speaker
from agent.settings import MqttSettings
from agent.topics import Message, Topics, json_schemas
from agent.watch import Watch
from agent.worker import Work
from models.contract import ModelInput, PatchKey
from models.profile import LoadedProfile
from tests.brokers import free_port, wait_until
from tests.fakes import ToldFolder, fake_profile
from tests.reading import Bench, slide_files

PROFILE = LoadedProfile(
    fake_profile(), "ab" * 32, b"", np.zeros((1, 2, 300, 300), np.uint16), np.zeros((1, 4), np.float32)
)
WILL = Message("t/status", b"{}", "will", "status", 1, True, False, False)
AT_ONCE_S = -1.0
"""A limit that every beat has passed already."""


@pytest.fixture
def handovers() -> tuple[Handover[Work], Handover[Record]]:
    """The two hand-overs of the pipeline, for one item each."""
    token = CancelToken()
    return Handover("reader-engine", 1, token), Handover("engine-sender", 1, token)


def three_rooms(handovers: tuple[Handover[Work], Handover[Record]]) -> Pulse:
    """A pulse that all three rooms have signed on to."""
    pulse = Pulse(*handovers)
    for room in ("reader", "engine", "sender"):
        pulse.beats(room)()
    return pulse


def test_rooms_that_came_round_are_healthy(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """Within the limit everything is well, and without any room nothing is wrong."""
    assert three_rooms(handovers).is_healthy(60.0)
    assert Pulse(*handovers).is_healthy(60.0)


def test_a_room_that_never_came_round_is_noticed(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """Signing on counts as the first beat; from then on the limit runs."""
    pulse = Pulse(*handovers)
    pulse.beats("engine")
    assert pulse.is_healthy(60.0)
    assert not pulse.is_healthy(AT_ONCE_S)


@pytest.mark.parametrize("late", ["reader", "engine", "sender"])
def test_one_late_room_is_enough(handovers: tuple[Handover[Work], Handover[Record]], late: str) -> None:
    """A single room that has not come round in time makes the process unhealthy; its next beat mends it."""
    pulse = Pulse(*handovers)
    beats = {room: pulse.beats(room) for room in ("reader", "engine", "sender")}
    limit_s = 0.2
    last = time.monotonic()

    def others_beat() -> bool:
        for room, beat in beats.items():
            if room != late:
                beat()
        return time.monotonic() - last > limit_s

    wait_until(others_beat, "the limit is over")
    assert not pulse.is_healthy(limit_s)
    beats[late]()
    assert pulse.is_healthy(limit_s)


def test_a_room_before_a_full_handover_is_not_at_fault(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """A late reader or engine that waits for the next room is excused; a late sender never is."""
    work, records = handovers
    pulse = Pulse(work, records)
    pulse.beats("reader")
    pulse.beats("engine")
    assert not pulse.is_healthy(AT_ONCE_S)
    work.put(Batch())
    assert not pulse.is_healthy(AT_ONCE_S), "the engine still waits for nobody"
    records.put(Record("sha"))
    assert pulse.is_healthy(AT_ONCE_S)
    pulse.beats("sender")
    assert not pulse.is_healthy(AT_ONCE_S)


def test_a_beat_does_what_else_is_asked(handovers: tuple[Handover[Work], Handover[Record]]) -> None:
    """The function given with a beat runs each time, on the room's own thread."""
    calls: list[int] = []
    beat = Pulse(*handovers).beats("sender", lambda: calls.append(1))
    assert calls == [], "signing on is no beat"
    beat()
    beat()
    assert calls == [1, 1]


@pytest.fixture
def figures(tmp_path: Path, handovers: tuple[Handover[Work], Handover[Record]]) -> Iterator[tuple[Figures, Bench]]:
    """The figures of real parts that no thread runs, and the reader with its reducer."""
    (tmp_path / "imager").mkdir()
    bench = Bench(ToldFolder(tmp_path / "imager"))
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    speaker = Speaker(
        "session",
        Topics("srh/v1", "site", "scope"),
        PROFILE,
        EngineRef(name="fake", precision="fp32"),
        lambda: datetime(2026, 1, 2, tzinfo=UTC),
    )
    session = Session(MqttSettings(port=free_port()), client_id="test", will=WILL)
    watch = Watch(tmp_path / "imager", mode="scan")
    yield Figures(speaker, bench.reducer, bench.reader, watch, handovers, session, ledger), bench
    ledger.close()


def test_an_idle_agent_has_zeros(figures: tuple[Figures, Bench]) -> None:
    """Before the first byte: no patches, nothing waiting, no age of a last byte."""
    health = figures[0].health()
    assert (health.patches.seen, health.patches.used, health.outbox, health.reconnects) == (0, 0, 0, 0)
    assert health.last_byte_age_s is None
    assert health.rss_bytes > 1 << 20
    assert 0 <= health.uptime_s < 60
    assert health.engine == EngineRef(name="fake", precision="fp32")


def test_patches_are_those_since_the_start(figures: tuple[Figures, Bench]) -> None:
    """Used and rejected patches of every slide add up, and the age of the last byte is told."""
    found, bench = figures
    for name, content in slide_files("tiff-mosaic", "1").items():
        path = bench.folder.folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        bench.folder.touched.append(str(name))
    bench.poll(time.monotonic())
    health = found.health()
    counts = bench.reducer.of_slide(next(iter(bench.reducer.slides))).counts
    assert health.patches.seen == counts.seen == 42
    assert health.patches.used == counts.used
    assert health.patches.rejected == counts.rejected
    assert health.last_byte_age_s is not None and 0 <= health.last_byte_age_s < 60


def test_restored_patches_are_not_counted_again(figures: tuple[Figures, Bench]) -> None:
    """The total is what this start has done; patches from the ledger are in posteriors only."""
    _, bench = figures
    item = ModelInput(PatchKey("P", "S", 0, 0, 0), np.ones((2, 300, 300), np.uint16))
    bench.ledger += bench.reducer.run(Batch((Timed(item, 0.0),)))
    assert bench.reducer.total.used == 1
    bench.restart()
    assert bench.reducer.total.used == 0
    assert bench.reducer.of_slide(item.key.of_slide).counts.used == 1


def test_handovers_are_told_with_their_marks(figures: tuple[Figures, Bench]) -> None:
    """Depth, high water and capacity of each hand-over, by its name."""
    found, _ = figures
    work, _ = found.handovers
    work.put(Batch())
    states = found.health().handovers
    assert set(states) == {"reader-engine", "engine-sender"}
    assert (states["reader-engine"].depth, states["reader-engine"].high_water) == (1, 1)
    assert (states["engine-sender"].depth, states["engine-sender"].capacity) == (0, 1)


def test_the_outbox_is_counted_when_looked_at(figures: tuple[Figures, Bench]) -> None:
    """What waits in the ledger is counted on its own thread and told from then on."""
    found, _ = figures
    waiting = Message("t/alert", b"{}", "1", "alert", 1, False, False, True)
    found.ledger.append(Record(PROFILE.sha256, messages=(waiting,)))
    assert found.health().outbox == 0
    found.look()
    assert found.health().outbox == 1


def test_the_message_is_a_health_message(figures: tuple[Figures, Bench]) -> None:
    """It goes to the health topic, expires, is never kept in the ledger, and fits its JSON Schema."""
    message = figures[0].message()
    assert (message.topic, message.kind) == ("srh/v1/site/scope/health", "health")
    assert message.retain and not message.durable and message.expiry_s
    body = json.loads(message.payload)
    jsonschema.validate(body, json_schemas()["health"])
    assert body["session_id"] == "session"
