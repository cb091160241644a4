"""Broker, dashboard and browser together: restarts, overload, old state, missing cells, and what the logs hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.results import Parts
from agent.topics import Message
from tests.agent.dashboard.processes import DashboardProcess, Events, Speaker
from tests.agent.dashboard.sayings import TOPICS, Saying
from tests.brokers import Listener, Mosquitto, wait_until

pytestmark = pytest.mark.system
SAYS_SO_S = 3.0
RIGHT_AGAIN_S = 5.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running broker."""
    mosquitto = Mosquitto(tmp_path, "set_tcp_nodelay true").start()
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def speaker(broker: Mosquitto) -> Iterator[Speaker]:
    """Somebody who publishes at that broker."""
    client = Speaker(broker.port)
    yield client
    client.close()


@pytest.fixture
def dashboard(tmp_path: Path, broker: Mosquitto) -> Iterator[DashboardProcess]:
    """A dashboard at that broker that may ask the agent."""
    process = DashboardProcess(tmp_path, broker.port, commands=["replay-state"]).start()
    yield process
    process.kill()


def test_a_broker_restarted_in_mid_slide(broker: Mosquitto, dashboard: DashboardProcess) -> None:
    """The screen says so within three seconds, and within five after the restart shows what is said then."""
    speaker, agent = Speaker(broker.port), Saying(datetime.now(UTC))
    with Events(dashboard) as browser:
        browser.wait("connected", broker__state="connected")
        speaker.say(agent.status(), agent.current("p", "s"), agent.slide("p", "s"), agent.patient("p", used=40))
        browser.wait("the result", patient__counts__used=40)
        speaker.close()
        killed = time.monotonic()
        broker.kill()
        view = browser.wait("the loss is told", limit_s=SAYS_SO_S, broker__state="lost", arriving="unknown")
        told_s = time.monotonic() - killed
        assert view["broker"]["reason"] and view["patient"]["counts"]["used"] == 40
        broker.start()
        restarted = time.monotonic()
        speaker = Speaker(broker.port)
        speaker.say(agent.status(), agent.health(), agent.current("p", "s"), agent.patient("p", used=60))
        browser.wait("right again", RIGHT_AGAIN_S, broker__state="connected", patient__counts__used=60)
        right_s = time.monotonic() - restarted
        speaker.close()
    print(f"told after {told_s:.2f} s, right {right_s:.2f} s after the restart")


def test_what_the_broker_kept_since_yesterday_is_not_current(broker: Mosquitto, tmp_path: Path) -> None:
    """A dashboard that is started in the morning shows nobody, whatever is retained."""
    yesterday, speaker = Saying(datetime.now(UTC) - timedelta(days=1)), Speaker(broker.port)
    speaker.say(yesterday.status(), yesterday.health(), yesterday.current("p", "s"))
    speaker.say(yesterday.slide("p", "s"), yesterday.patient("p"), yesterday.patient_final("q"))
    dashboard = DashboardProcess(tmp_path, broker.port).start()
    try:
        with Events(dashboard) as browser:
            view = browser.wait("the status", agent__state="online")
            view = browser.wait("the health", health__stale=True)
            wait_until(lambda: browser.view["seq"] > view["seq"] + 1, "two more views")
            view = browser.view
            assert (view["current"], view["patient"], view["slides"], view["history"]) == (None, None, [], [])
            assert view["arriving"] == "unknown"
    finally:
        dashboard.kill()
        speaker.close()


def test_the_current_patient_is_shown_whatever_else_the_broker_keeps(tmp_path: Path) -> None:
    """Years of results are retained, more than the broker sends in one go; the patient on the table is there."""
    broker = Mosquitto(tmp_path, "max_queued_messages 100").start()
    speaker, agent = Speaker(broker.port), Saying(datetime.now(UTC) - timedelta(days=400))
    speaker.say(*(agent.patient(f"old{n}") for n in range(8000)))
    agent.time = datetime.now(UTC)
    speaker.say(agent.status(), agent.current("p", "s"), agent.slide("p", "s"), agent.patient("p"))
    dashboard = DashboardProcess(tmp_path, broker.port).start()
    try:
        with Events(dashboard) as browser:
            browser.wait("the pointer", limit_s=2.0, current__patient="p")
            browser.wait("the patient", limit_s=15.0, patient__patient="p")
            assert [slide["slide"] for slide in browser.view["slides"]] == ["s"]
    finally:
        dashboard.kill()
        speaker.close()
        broker.kill()


def test_missing_cells_are_asked_for(broker: Mosquitto, dashboard: DashboardProcess, speaker: Speaker) -> None:
    """A heat map with holes makes the dashboard ask the agent once; with the answer the picture is whole."""
    agent, listener = Saying(datetime.now(UTC)), Listener(broker.port)
    with Events(dashboard) as browser:
        speaker.say(agent.status(), agent.current("p", "s"), agent.slide("p", "s"))
        wait_until(lambda: listener.bodies("cmd/replay-state"), "the dashboard asks")
        assert len(listener.bodies("cmd/replay-state")[0]["request_id"]) == 36
        speaker.say(agent.patches("p", "s", 0, 16))
        wait_until(lambda: browser.patches and browser.patches[-1]["known"] == 48, "the heat map")
        assert browser.patches[-1]["seen"] == 48
        speaker.say(agent.slide("p", "s", used=90))
        before = browser.view["seq"]
        wait_until(lambda: browser.view["seq"] > before + 6, "time goes by with holes")
        assert len(listener.bodies("cmd/replay-state")) == 1
    listener.close()


def test_a_dashboard_that_may_not_ask_does_not(broker: Mosquitto, tmp_path: Path, speaker: Speaker) -> None:
    """Commands are off by default: then nothing is published at all."""
    agent, listener = Saying(datetime.now(UTC)), Listener(broker.port)
    dashboard = DashboardProcess(tmp_path, broker.port).start()
    try:
        with Events(dashboard) as browser:
            speaker.say(agent.status(), agent.current("p", "s"), agent.slide("p", "s"))
            browser.wait("the slide", current__slide="s")
            before = browser.view["seq"]
            wait_until(lambda: browser.view["seq"] > before + 6, "time goes by with holes")
        assert {message.topic.rpartition("/")[0] for message in listener.messages} <= {
            TOPICS.base,
            f"{TOPICS.base}/slide/s",
        }
    finally:
        dashboard.kill()
        listener.close()


def test_ten_thousand_messages_leave_memory_bounded(
    broker: Mosquitto, dashboard: DashboardProcess, speaker: Speaker
) -> None:
    """Made-up patients, slides and heat maps without end: the process does not grow with them, and stays quick."""
    agent = Saying(datetime.now(UTC))
    with Events(dashboard) as browser:
        browser.wait("connected", broker__state="connected")
        speaker.say(agent.status())
        sizes_kib = []
        for lap in range(4):
            for number in range(lap * 250, (lap + 1) * 250):
                said: list[Message] = []
                patient, slide = f"patient-{number}", f"slide-{number}"
                said += [agent.patches(patient, slide, strip, 16, 48 * strip) for strip in range(4)]
                said += [agent.slide(patient, slide, used=used, strips=Parts(done=1)) for used in (10, 20, 30)]
                said += [agent.slide_final(patient, slide), agent.patient(patient), agent.alert()]
                agent.time = max(agent.time, datetime.now(UTC))
                speaker.say(*said)
            last = f"patient-{(lap + 1) * 250 - 1}"
            wait_until(lambda: (browser.view["patient"] or {}).get("patient") == last, f"lap {lap}")  # noqa: B023
            sizes_kib.append(dashboard.rss_kib())
        assert sizes_kib[3] - sizes_kib[1] < 8_000, sizes_kib
        begun = time.monotonic()
        speaker.say(agent.current("now", "s"))
        browser.wait("the newest word", limit_s=2.0, current__patient="now")
        assert time.monotonic() - begun < 2.0
    print(f"resident memory after each lap of 2500 messages: {sizes_kib} KiB")


def test_the_log_holds_no_identity_and_no_payload(
    dashboard: DashboardProcess, speaker: Speaker, broker: Mosquitto
) -> None:
    """Ids, payloads and browsers' addresses are not logged, not even of what is refused; each kind is told once."""
    agent = Saying(datetime.now(UTC))
    stranger = paho.Client(CallbackAPIVersion.VERSION2)
    stranger.connect("127.0.0.1", broker.port)
    stranger.loop_start()
    with Events(dashboard) as browser:
        browser.wait("connected", broker__state="connected")
        for _ in range(50):
            stranger.publish(f"{TOPICS.base}/slide/MUSTER-ERIKA/posterior", b'{"name": "MUSTER^ERIKA"}', qos=1)
        speaker.say(agent.patient("pseudonymabcdefg"), agent.current("pseudonymabcdefg", "s"))
        browser.wait("the result", current__patient="pseudonymabcdefg")
        wait_until(lambda: b'"invalid":50' in dashboard.get("/healthz")[2], "all were counted")
        dashboard.get("/nothing/MUSTER-ERIKA", Host="evil.example")
    stranger.disconnect()
    stranger.loop_stop()
    assert dashboard.stop() == 0
    log = dashboard.log()
    assert not any(word in log for word in ("MUSTER", "ERIKA", "pseudonym", "127.0.0.1:5", "evil"))
    assert [event["reason"] for event in dashboard.events("message_ignored")] == ["invalid"]
    assert dashboard.events("broker_connected") and dashboard.events("dashboard_ended")
