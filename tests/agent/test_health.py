"""Promises of the health figures: they are the rooms' own counters."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from agent.answering import Answering
from agent.batching import Batch, Timed
from agent.contract.schemas import payload_schemas
from agent.engine import Choice
from agent.errors import FormatError
from agent.handover import CancelToken, Handover
from agent.health import Figures
from agent.ledger import Ledger, Record
from agent.measures import BOUNDS_S, EngineMeasures, SenderMeasures
from agent.messages import Counts, EngineRef, Health, StageLatency
from agent.publish import Session
from agent.pulse import Pulse
from agent.reporter import LOOK_AT, Speaker
from agent.settings import MqttSettings
from agent.speech import Speech
from agent.topics import Message, Topics
from agent.watch import Watch
from agent.worker import Work
from models.contract import ModelInput, PatchKey
from models.profile import LoadedProfile
from tests.brokers import free_port
from tests.fakes import FakeEngine, ToldFolder, fake_profile
from tests.reading import Bench, slide_files

PROFILE = LoadedProfile(
    fake_profile(), "ab" * 32, b"", np.zeros((1, 2, 300, 300), np.uint16), np.zeros((1, 4), np.float32)
)
WILL = Message("t/status", b"{}", "will", "status", 1, True, False, False)


@pytest.fixture
def handovers() -> tuple[Handover[Work], Handover[Record]]:
    """The two hand-overs of the pipeline, for one item each."""
    token = CancelToken()
    return Handover("reader-engine", 1, token), Handover("engine-sender", 1, token)


@pytest.fixture
def figures(tmp_path: Path, handovers: tuple[Handover[Work], Handover[Record]]) -> Iterator[tuple[Figures, Bench]]:
    """The figures of real parts that no thread runs, and the reader with its reducer."""
    (tmp_path / "imager").mkdir()
    bench = Bench(ToldFolder(tmp_path / "imager"))
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    wall = datetime(2026, 1, 2, tzinfo=UTC)
    engine = EngineRef(name="fake", precision="fp32")
    speaker = Speaker("session", Topics("srh/v1", "site", "scope"), PROFILE, engine, lambda: wall)
    speech = Speech(speaker, Choice(FakeEngine(), {"openvino": "not built"}), 7, wall)
    session = Session(MqttSettings(port=free_port()), client_id="test", will=WILL)
    watch = Watch(tmp_path / "imager", mode="scan")
    measures = EngineMeasures(), SenderMeasures()
    answering = Answering(Pulse(*handovers), lambda: 10.0, speech, ledger)
    yield Figures(speech, bench.reducer, bench.reader, watch, handovers, session, ledger, *measures, answering), bench
    ledger.close()


def test_an_idle_agent_has_zeros(figures: tuple[Figures, Bench]) -> None:
    """Before the first byte: no patches, nothing waiting, no age of a last byte."""
    health = figures[0].health()
    assert (health.patches.seen, health.patches.used, health.outbox, health.reconnects) == (0, 0, 0, 0)
    assert health.last_byte_age_s is None
    assert health.rss_bytes > 1 << 20
    assert 0 <= health.uptime_s < 60
    assert health.engine == EngineRef(name="fake", precision="fp32")
    assert health.drift is not None and (health.drift.used, health.drift.confidence) == (0, None)
    assert all(took.count == 0 and took.p50_ms is None for took in health.latency.values())


def test_it_says_who_speaks(figures: tuple[Figures, Bench]) -> None:
    """Version, profile, start, boot sequence and the engines passed over: what a support call asks first."""
    health = figures[0].health()
    assert (health.boot_seq, health.passed_over, health.since) == (7, ("openvino",), health.time)
    assert health.profile is not None and health.profile.sha256 == PROFILE.sha256
    assert health.version.count(".") == 2


def test_stages_are_told_with_their_buckets(figures: tuple[Figures, Bench]) -> None:
    """What a room measured shows as count, sum, quantiles and one bucket for each bound and beyond."""
    found, _ = figures
    found.engine.ran([1.0], 1.002, 1.004)
    found.sender.publish_to_puback.add(100.0)
    health = found.health()
    assert list(health.latency)[:2] == ["last_byte_to_batch", "inference"]
    assert set(health.latency) >= {"ledger_write", "publish_to_puback", "last_byte_to_result", "batch_to_record"}
    inference, puback = health.latency["inference"], health.latency["publish_to_puback"]
    assert (inference.count, inference.sum_ms, sum(inference.buckets)) == (1, 2.0, 1)
    assert len(inference.buckets) == len(health.latency_bounds_ms) + 1 == len(BOUNDS_S) + 1
    assert inference.p50_ms is not None and 1.0 <= inference.p50_ms <= 2.5
    assert puback.buckets[-1] == 1 and puback.p99_ms == 1e3 * BOUNDS_S[-1]


def test_drift_is_about_the_latest_patches(figures: tuple[Figures, Bench]) -> None:
    """Marks and confidence of what was used lately, and the share at which the profile draws the line."""
    found, _ = figures
    found.engine.recent.add((1 << 39, 1 << 39), ("embedding_far",))
    found.engine.recent.add((1 << 40, 0), ())
    found.engine.recent.add((1 << 40, 0), None)
    drift = found.health().drift
    assert drift is not None
    assert (drift.used, drift.judged, drift.embedding_far, drift.intensity_outside) == (3, 2, 1, 0)
    assert drift.confidence == pytest.approx(2.5 / 3)
    assert drift.limit == PROFILE.spec.decision.most_marked


def test_a_folder_that_cannot_be_read_is_told(figures: tuple[Figures, Bench]) -> None:
    """After a scan of a folder that is gone, the figure is false until a scan succeeds again."""
    found, bench = figures
    assert found.health().folder_readable
    bench.folder.folder.rmdir()
    found.watch.poll(1.0)
    assert (found.health().folder_readable, found.health().folder_trouble) == (False, "No such file or directory")
    bench.folder.folder.mkdir()
    found.watch.poll(100.0)
    assert (found.health().folder_readable, found.health().folder_trouble) == (True, None)


def test_a_folder_that_does_not_answer_is_told(figures: tuple[Figures, Bench]) -> None:
    """Whatever the last look found: a folder that hangs now cannot be read, and its alerts count."""
    found, _ = figures
    found.answering.trouble, found.answering.alerts = "it does not answer", 2
    health = found.health()
    assert (health.folder_readable, health.folder_trouble) == (False, "it does not answer")
    assert health.alerts == {"folder_hangs": 2}


def test_the_ledger_and_its_disk_are_measured_when_looked_at(figures: tuple[Figures, Bench]) -> None:
    """Sizes come from the file system, on the ledger's own thread."""
    found, _ = figures
    assert (found.health().ledger_bytes, found.health().disk_free_bytes) == (0, 0)
    found.look()
    health = found.health()
    assert health.ledger_bytes >= found.ledger.path.stat().st_size > 0
    assert health.disk_free_bytes > 0


def test_the_fullest_message_is_small(figures: tuple[Figures, Bench]) -> None:
    """With every number large and every known reason counted, health stays within 4 kB."""
    found, _ = figures
    health = found.health()
    many = 123_456_789
    took = StageLatency(
        count=many, sum_ms=123456789.123, p50_ms=12345.67, p99_ms=30000.0, buckets=(many,) * (len(BOUNDS_S) + 1)
    )
    reasons = ("empty", "blood", "saturated", "truncated", "missing_channel", "unreadable", "vanished", "misnumbered")
    full = health.model_copy(
        update={
            "patches": Counts(seen=9 * many, used=many, rejected=dict.fromkeys(reasons, many)),
            "latency": dict.fromkeys(health.latency, took),
            "alerts": dict.fromkeys([*LOOK_AT, *FormatError.REASONS], many),
            "passed_over": ("tensorrt-fp16-b32-0123abcd", "inductor-bf16-b8-0123abcd", "openvino-bf16-b1-0123abcd"),
        }
    )
    assert len(Health.model_validate(full.model_dump()).model_dump_json().encode()) <= 4096


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
    jsonschema.validate(body, payload_schemas()["health"])
    assert body["session_id"] == "session"
