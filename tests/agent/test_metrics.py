"""Promises of the Prometheus endpoint: the health figures, by promtool's rules, on loopback, until it is stopped."""

from __future__ import annotations

import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from agent.measures import BOUNDS_S
from agent.messages import Counts, Drift, EngineRef, Health, ProfileRef, QueueState, StageLatency
from agent.metrics import serve_metrics
from tests.brokers import free_port, wait_until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def health(**changes: Any) -> Health:
    """Figures in which every number is another one."""
    took = StageLatency(count=6, sum_ms=1500.0, p50_ms=1.0, p99_ms=2.0, buckets=(1, 2, *[0] * 11, 3, 0))
    fields: dict[str, Any] = {
        "event_id": "1",
        "session_id": "s",
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "version": "9.8.7",
        "boot_seq": 5,
        "profile": ProfileRef(name="fake", version=3, sha256="ab" * 32),
        "engine": EngineRef(name="fake", precision="fp32"),
        "passed_over": ("openvino",),
        "engine_replacements": 27,
        "since": datetime(2026, 1, 1, tzinfo=UTC),
        "uptime_s": 11.5,
        "patches": Counts(seen=15, used=10, rejected={"empty": 3, "blood": 2}),
        "corrected": 4,
        "handovers": {
            "reader-engine": QueueState(depth=4, high_water=7, capacity=16),
            "engine-sender": QueueState(depth=0, high_water=1, capacity=17),
        },
        "latency_bounds_ms": tuple(1e3 * bound for bound in BOUNDS_S),
        "latency": {"inference": took},
        "drift": Drift(used=100, confidence=0.875, judged=80, embedding_far=20, intensity_outside=8, limit=0.3),
        "connected": True,
        "outbox": 6,
        "reconnects": 8,
        "dropped": 21,
        "refused": 22,
        "alerts": {"stalled": 23},
        "folder_readable": False,
        "scan_only_finds": 9,
        "events_lost": 26,
        "last_byte_age_s": 12.5,
        "rss_bytes": 13,
        "ledger_bytes": 24,
        "disk_free_bytes": 25,
        **changes,
    }
    return Health(**fields)


class Endpoint:
    """A served endpoint whose figures the test may change."""

    def __init__(self) -> None:
        self.now = health()
        self.port = free_port()
        self.stop = serve_metrics(self.port, lambda: self.now)

    def text(self) -> str:
        """What a scrape gets."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def families(self) -> list[Metric]:
        """The metrics, as Prometheus' own parser reads them."""
        return list(text_string_to_metric_families(self.text()))

    def scrape(self) -> Samples:
        """Every sample by its name and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families()
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    """One for all tests that leave it as it is, since stopping takes half a second."""
    endpoint = Endpoint()
    yield endpoint
    endpoint.stop()


def test_every_figure_is_served(endpoint: Endpoint) -> None:
    """All numbers of the health message, counters as counters, and nothing else."""
    samples = endpoint.scrape()
    buckets = {key: value for key, value in samples.items() if key[0] == "srh_stage_seconds_bucket"}
    about = (
        ("intended_use", "research use only"),
        ("profile", "fake"),
        ("profile_sha256", "ab" * 32),
        ("profile_version", "3"),
        ("version", "9.8.7"),
    )
    assert {key: value for key, value in samples.items() if key not in buckets} == {
        ("srh_agent_info", about): 1.0,
        ("srh_engine_info", (("name", "fake"), ("precision", "fp32"))): 1.0,
        ("srh_engine_passed_over", (("engine", "openvino"),)): 1.0,
        ("srh_engine_replacements_total", ()): 27.0,
        ("srh_start_time_seconds", ()): datetime(2026, 1, 1, tzinfo=UTC).timestamp(),
        ("srh_uptime_seconds", ()): 11.5,
        ("srh_boot_sequence", ()): 5.0,
        ("srh_patches_seen_total", ()): 15.0,
        ("srh_patches_used_total", ()): 10.0,
        ("srh_patches_corrected_total", ()): 4.0,
        ("srh_patches_rejected_total", (("reason", "empty"),)): 3.0,
        ("srh_patches_rejected_total", (("reason", "blood"),)): 2.0,
        ("srh_handover_depth", (("handover", "reader-engine"),)): 4.0,
        ("srh_handover_depth", (("handover", "engine-sender"),)): 0.0,
        ("srh_handover_high_water", (("handover", "reader-engine"),)): 7.0,
        ("srh_handover_high_water", (("handover", "engine-sender"),)): 1.0,
        ("srh_handover_capacity", (("handover", "reader-engine"),)): 16.0,
        ("srh_handover_capacity", (("handover", "engine-sender"),)): 17.0,
        ("srh_stage_seconds_count", (("stage", "inference"),)): 6.0,
        ("srh_stage_seconds_sum", (("stage", "inference"),)): 1.5,
        ("srh_recent_patches", ()): 100.0,
        ("srh_recent_judged_patches", ()): 80.0,
        ("srh_recent_confidence_ratio", ()): 0.875,
        ("srh_recent_marked_ratio", (("mark", "embedding_far"),)): 0.25,
        ("srh_recent_marked_ratio", (("mark", "intensity_outside"),)): 0.1,
        ("srh_marked_limit_ratio", ()): 0.3,
        ("srh_mqtt_connected", ()): 1.0,
        ("srh_mqtt_reconnects_total", ()): 8.0,
        ("srh_outbox_messages", ()): 6.0,
        ("srh_messages_dropped_total", ()): 21.0,
        ("srh_messages_refused_total", ()): 22.0,
        ("srh_alerts_total", (("reason", "stalled"),)): 23.0,
        ("srh_folder_readable", ()): 0.0,
        ("srh_scan_only_finds_total", ()): 9.0,
        ("srh_events_lost_total", ()): 26.0,
        ("srh_last_byte_age_seconds", ()): 12.5,
        ("srh_resident_bytes", ()): 13.0,
        ("srh_ledger_bytes", ()): 24.0,
        ("srh_disk_free_bytes", ()): 25.0,
    }


def test_buckets_are_cumulative_and_end_at_infinity(endpoint: Endpoint) -> None:
    """As Prometheus wants histograms: each bucket holds those before it, the last one holds all."""
    found = {
        labels: value for (name, labels), value in endpoint.scrape().items() if name == "srh_stage_seconds_bucket"
    }
    by_bound = sorted((float(dict(labels)["le"]), value) for labels, value in found.items())
    assert [bound for bound, _ in by_bound] == [*BOUNDS_S, float("inf")]
    assert [value for _, value in by_bound] == [1, *[3] * 12, 6, 6]
    assert all(dict(labels)["stage"] == "inference" for labels in found)


def test_names_and_types_are_as_promtool_wants_them(endpoint: Endpoint) -> None:
    """Its lint rules: help for all, `_total` on counters alone, base units, no types or capitals in names."""
    text = endpoint.text()
    for family in endpoint.families():
        name = family.name
        assert family.documentation and f"# HELP {name}" in text and f"# TYPE {name}" in text, name
        assert re.fullmatch(r"srh_[a-z_]+", name), name
        assert not re.search(r"(_ms|_milliseconds|_minutes|_hours|_kib|_mib|_percent|_s)$", name), name
        assert not re.search(r"_(counter|gauge|histogram|summary|bucket|count|sum)$", name), name
        assert family.type in ("counter", "gauge", "histogram"), name
        suffixed = [sample.name.endswith("_total") for sample in family.samples]
        assert all(suffixed) if family.type == "counter" else not any(suffixed), name
        assert len({(s.name, tuple(sorted(s.labels.items()))) for s in family.samples}) == len(family.samples)
    assert len(re.findall("^# TYPE", text, re.M)) == len(set(re.findall("^# TYPE (.+) ", text, re.M)))


LABELS = {"stage", "reason", "handover", "mark", "engine", "le", "name", "precision"}
ABOUT = {"intended_use", "profile", "profile_sha256", "profile_version", "version"}


def test_no_label_can_grow_without_end_or_name_anybody(endpoint: Endpoint) -> None:
    """Labels are stable words (stages, reasons, rooms, engines): none holds a patient, a slide, a file or a host."""
    for family in endpoint.families():
        for sample in family.samples:
            assert set(sample.labels) <= (ABOUT if sample.name == "srh_agent_info" else LABELS), sample.name


def test_each_scrape_asks_anew(endpoint: Endpoint) -> None:
    """A scrape shows the figures of its own moment; what is not known is left out."""
    endpoint.scrape()
    endpoint.now = health(outbox=0, last_byte_age_s=None, drift=Drift(used=0, limit=0.3))
    found = endpoint.scrape()
    endpoint.now = health()
    assert found["srh_outbox_messages", ()] == 0.0
    assert ("srh_last_byte_age_seconds", ()) not in found
    assert ("srh_recent_confidence_ratio", ()) not in found
    assert not any(name == "srh_recent_marked_ratio" for name, _ in found)


def test_a_health_message_of_an_older_agent_can_be_served(endpoint: Endpoint) -> None:
    """Figures that it does not carry are left out or zero, and nothing fails."""
    names = "event_id session_id time patches handovers outbox reconnects scan_only_finds engine uptime_s rss_bytes"
    endpoint.now = Health(**{name: getattr(endpoint.now, name) for name in names.split()})
    found = endpoint.scrape()
    endpoint.now = health()
    assert found["srh_patches_used_total", ()] == 10.0
    assert ("srh_start_time_seconds", ()) not in found


def test_it_listens_on_loopback_only(endpoint: Endpoint) -> None:
    """Nobody from another machine can ask: the port is open on 127.0.0.1 and not on another local address."""
    socket.create_connection(("127.0.0.1", endpoint.port), timeout=10).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=10)


def test_a_port_that_is_taken_stops_nobody() -> None:
    """The agent's answers matter more than its figures: the log says which port, and nothing is served."""
    with socket.create_server(("127.0.0.1", 0)) as other, structlog.testing.capture_logs() as logs:
        port = int(other.getsockname()[1])
        serve_metrics(port, health)()
    (event,) = logs
    assert (event["event"], event["log_level"], event["port"]) == ("metrics_not_served", "error", port)
    assert "in use" in event["reason"] and "ss -ltnp" in event["mend"]


def test_stop_frees_the_port_and_ends_the_thread() -> None:
    """Behind stop nothing listens and no thread is left."""
    before = set(threading.enumerate())
    endpoint = Endpoint()
    endpoint.scrape()
    own = set(threading.enumerate()) - before
    assert own
    endpoint.stop()
    wait_until(lambda: not any(thread.is_alive() for thread in own), "its threads end")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=10)
