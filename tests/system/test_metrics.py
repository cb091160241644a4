"""The metrics endpoint of a running daemon: it agrees with `health` on the wire and with the finals."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.brokers import Listener, Mosquitto, free_port, wait_until
from tests.system.processes import AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
PATIENT_S = 90.0


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    """A running agent that serves metrics."""
    agent = AgentProcess(tmp_path / "agent", broker.port, metrics={"port": free_port()})
    yield agent.start()
    if not agent.ended:
        agent.kill()


def text_of(agent: AgentProcess) -> str:
    """One scrape."""
    found = re.search(r"port: (\d+)", agent.config.read_text().split("metrics:")[1])
    assert found is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def samples(text: str, *names: str) -> dict[str, float]:
    """Samples of these metrics; labels stand behind the name, sorted."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in names:
                found["/".join([sample.name, *(value for _, value in sorted(sample.labels.items()))])] = sample.value
    return found


GROWING = (
    "srh_patches_seen_total",
    "srh_patches_used_total",
    "srh_patches_rejected_total",
    "srh_stage_seconds_bucket",
    "srh_stage_seconds_count",
    "srh_stage_seconds_sum",
)


def test_scrapes_agree_with_health_and_with_the_finals(
    agent: AgentProcess, broker: Mosquitto, tmp_path: Path
) -> None:
    """While slides come counters only grow; at the end endpoint, health and finals have the same counts."""
    slides = tmp_path / "slides"
    made = command("agent", "phantom", "--out", slides, "--slides", "3", "--seed", "41000", "--layout", "strips-b")
    assert made.returncode == 0, made.stderr
    listener = Listener(broker.port)
    assert command("agent", "replay", slides, agent.folder, "--rate", "200").returncode == 0

    scraped: list[str] = []

    def all_ended() -> bool:
        scraped.append(text_of(agent))
        return len(listener.bodies("/final")) >= 5

    wait_until(all_ended, "finals of three slides and two patients", PATIENT_S)
    finals = {body["slide"]: body for body in listener.bodies("/final") if body["kind"] == "slide.final"}
    used = sum(final["counts"]["used"] for final in finals.values())
    seen = sum(final["counts"]["seen"] for final in finals.values())
    assert seen == 3 * 42 and used > 0

    before = len(listener.bodies("/health"))
    wait_until(lambda: len(listener.bodies("/health")) > before, "one more health message")
    health, text = listener.bodies("/health")[-1], text_of(agent)
    told = samples(text, *GROWING, "srh_outbox_messages", "srh_boot_sequence", "srh_mqtt_connected")
    assert told["srh_patches_used_total"] == health["patches"]["used"] == used
    assert told["srh_patches_seen_total"] == health["patches"]["seen"] == seen
    for reason, count in health["patches"]["rejected"].items():
        assert told[f"srh_patches_rejected_total/{reason}"] == count
    for stage in ("last_byte_to_batch", "last_byte_to_result"):
        assert told[f"srh_stage_seconds_count/{stage}"] == health["latency"][stage]["count"] == used
    assert told["srh_stage_seconds_count/inference"] == health["latency"]["inference"]["count"] > 0
    assert health["latency"]["publish_to_puback"]["count"] > 0
    assert health["latency"]["ledger_write"]["p99_ms"] > 0
    assert health["drift"]["used"] == min(used, 1000) and 0.25 < health["drift"]["confidence"] <= 1
    assert (told["srh_outbox_messages"], told["srh_boot_sequence"], told["srh_mqtt_connected"]) == (0, 1, 1)
    assert health["ledger_bytes"] > 0 and health["disk_free_bytes"] > 0 and health["folder_readable"]

    for earlier, later in pairwise(scraped):
        was, now = samples(earlier, *GROWING), samples(later, *GROWING)
        assert all(now[name] >= value for name, value in was.items())
    assert not any("PHANTOM" in scrape or key in scrape for scrape in scraped for key in finals)
    assert all(len(message.payload) <= 4096 for message in listener.messages if message.topic.endswith("/health"))
    listener.close()
    assert agent.stop() == 0


def test_without_a_broker_the_endpoint_says_so(agent: AgentProcess, broker: Mosquitto) -> None:
    """The figures are there when MQTT is not: not connected, and what could not be sent is counted."""
    wait_until(lambda: samples(text_of(agent), "srh_mqtt_connected")["srh_mqtt_connected"] == 1, "a connection")
    broker.kill()
    wait_until(lambda: samples(text_of(agent), "srh_mqtt_connected")["srh_mqtt_connected"] == 0, "its loss is told")
    broker.start()
    wait_until(
        lambda: samples(text_of(agent), "srh_mqtt_reconnects_total")["srh_mqtt_reconnects_total"] == 1, "again"
    )
