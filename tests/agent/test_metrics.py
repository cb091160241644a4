"""Promises of the Prometheus endpoint: the health figures, on loopback, until it is stopped."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.messages import Counts, EngineRef, Health, QueueState
from agent.metrics import serve_metrics
from tests.brokers import free_port, wait_until


def health(**changes: Any) -> Health:
    """Figures in which every number is another one."""
    fields: dict[str, Any] = {
        "event_id": "1",
        "session_id": "s",
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "patches": Counts(seen=15, used=10, rejected={"empty": 3, "blood": 2}),
        "handovers": {
            "reader-engine": QueueState(depth=4, high_water=7, capacity=16),
            "engine-sender": QueueState(depth=0, high_water=1, capacity=16),
        },
        "outbox": 6,
        "reconnects": 8,
        "scan_only_finds": 9,
        "engine": EngineRef(name="fake", precision="fp32"),
        "uptime_s": 11.5,
        "last_byte_age_s": 12.5,
        "rss_bytes": 13,
        **changes,
    }
    return Health(**fields)


class Endpoint:
    """A served endpoint whose figures the test may change."""

    def __init__(self) -> None:
        self.now = health()
        self.port = free_port()
        self.stop = serve_metrics(self.port, lambda: self.now)

    def scrape(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample by its name and labels, as Prometheus' own parser reads them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
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
    assert endpoint.scrape() == {
        ("srh_patches_used_total", ()): 10.0,
        ("srh_patches_rejected_total", (("reason", "empty"),)): 3.0,
        ("srh_patches_rejected_total", (("reason", "blood"),)): 2.0,
        ("srh_handover_depth", (("handover", "reader-engine"),)): 4.0,
        ("srh_handover_depth", (("handover", "engine-sender"),)): 0.0,
        ("srh_handover_high_water", (("handover", "reader-engine"),)): 7.0,
        ("srh_handover_high_water", (("handover", "engine-sender"),)): 1.0,
        ("srh_outbox_messages", ()): 6.0,
        ("srh_mqtt_reconnects_total", ()): 8.0,
        ("srh_scan_only_finds_total", ()): 9.0,
        ("srh_uptime_seconds", ()): 11.5,
        ("srh_resident_bytes", ()): 13.0,
        ("srh_last_byte_age_seconds", ()): 12.5,
    }


def test_each_scrape_asks_anew(endpoint: Endpoint) -> None:
    """A scrape shows the figures of its own moment; an age that is not known is left out."""
    endpoint.scrape()
    endpoint.now = health(outbox=0, last_byte_age_s=None)
    found = endpoint.scrape()
    endpoint.now = health()
    assert found["srh_outbox_messages", ()] == 0.0
    assert ("srh_last_byte_age_seconds", ()) not in found


def test_it_listens_on_loopback_only(endpoint: Endpoint) -> None:
    """Nobody from another machine can ask: the port is open on 127.0.0.1 and not on another local address."""
    socket.create_connection(("127.0.0.1", endpoint.port), timeout=10).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=10)


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
