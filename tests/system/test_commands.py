"""Commands, `current` and the status topic with the daemon as a process and mosquitto's own clients."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from agent.messages import Status
from tests.brokers import Listener, Mosquitto, need, wait_until
from tests.system.processes import AgentProcess, command
from tests.system.test_run import FINAL_S, append, files_of, finals

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
BASE = "srh/v1/test/instrument"
ALL = ["close-patient", "replay-state", "engine"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom patient with one slide of two strips."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "1", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    """A subscriber of everything."""
    heard = Listener(broker.port)
    yield heard
    heard.close()


@pytest.fixture
def start(broker: Mosquitto, tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Starts agents and ends them with the test."""
    started: list[AgentProcess] = []

    def make(name: str = "agent", **settings: Any) -> AgentProcess:
        listens = "commands" in settings.get("mqtt", {})
        started.append(AgentProcess(tmp_path / name, broker.port, patient={"quiet_s": 3600}, **settings).start())
        if listens:  # READY does not wait for the broker
            wait_until(lambda: f"{BASE}/cmd/+ (QoS" in broker.log.read_text(), "subscribed")
        return started[-1]

    yield make
    for agent in started:
        if not agent.ended:
            agent.signal(signal.SIGCONT)
            agent.kill()


TIMED_OUT = 27
"""Exit code of mosquitto_rr when nobody answered."""


def request(port: int, verb: str, body: str, *more: str, patience_s: int) -> dict[str, Any] | None:
    """Ask with mosquitto_rr (MQTT 5: response topic), and return the reply, or None if there was none in time."""
    program = need("mosquitto_rr", "mosquitto-clients")
    words = [program, "-V", "5", "-p", str(port), "-t", f"{BASE}/cmd/{verb}", "-e", f"{BASE}/reply/me", "-m", body]
    done = subprocess.run([*words, "-W", str(patience_s), *more], capture_output=True, text=True, check=False)
    assert done.returncode in (0, TIMED_OUT), done.stderr
    reply: dict[str, Any] | None = None if done.returncode == TIMED_OUT else json.loads(done.stdout)
    return reply


def ask(port: int, verb: str, body: str = "{}", *more: str) -> dict[str, Any]:
    """Ask, and insist on a reply."""
    reply = request(port, verb, body, *more, patience_s=20)
    assert reply is not None, f"no reply to {verb}"
    return reply


def test_every_command_is_answered(
    phantom: Path, broker: Mosquitto, listener: Listener, start: Callable[..., AgentProcess]
) -> None:
    """mosquitto_rr asks for the engine, the state, and the patient's end, and gets what each of them promises."""
    agent = start(mqtt={"commands": ALL})
    for name, content in files_of(phantom).items():
        append(agent.folder, name, content)
    wait_until(lambda: finals(listener, "slide"), "the slide's final", FINAL_S)
    (final,) = finals(listener, "slide").values()

    said = ask(broker.port, "engine")
    assert said["ok"] and said["result"]["engine"]["name"] == "eager" and said["result"]["batch"] >= 1
    refused = ask(broker.port, "engine", '{"use": "openvino", "request_id": "r1"}')
    assert not refused["ok"] and refused["request_id"] == "r1" and "engine.order" in refused["detail"]

    late = Listener(broker.port)
    wait_until(lambda: late.bodies("/final"), "what is retained")
    assert not late.bodies("/patches"), "the heat map is not retained: a late receiver has none"
    replayed = ask(broker.port, "replay-state")
    assert replayed["ok"] and replayed["result"]["patient"] == final["patient"]
    assert replayed["result"]["patches"] == final["counts"]["seen"] == 42
    wait_until(lambda: sum(len(body["x"]) for body in late.bodies("/patches")) == 42, "the whole heat map")
    places = {
        place for body in late.bodies("/patches") for place in zip(body["strip"], body["x"], body["y"], strict=True)
    }
    assert len(places) == 42 and [body["before"] for body in late.bodies("/patches")] == [0]
    again = late.event_ids("/final")
    assert again[0] == final["event_id"] and set(again) == {final["event_id"]} and len(again) == 2
    late.close()

    closed = ask(broker.port, "close-patient", '{"request_id": "r2"}')
    assert closed["ok"] and closed["result"] == {"closed": [final["patient"]]}
    wait_until(lambda: finals(listener, "patient"), "the patient's final")
    wait_until(lambda: listener.bodies("/current")[-1]["patient"] is None, "nobody is on the table")
    assert ask(broker.port, "close-patient", '{"request_id": "r2"}') == closed, "the same request: the same reply"
    nobody = ask(broker.port, "close-patient")
    assert nobody["ok"] and nobody["result"] == {"closed": []} and "no patient was open" in nobody["detail"]
    stranger = ask(broker.port, "close-patient", json.dumps({"patient": "a" * 16}))
    assert not stranger["ok"] and stranger["result"] is None


def test_what_is_not_obeyed_is_answered_too(broker: Mosquitto, start: Callable[..., AgentProcess]) -> None:
    """A command that is off, an unknown one and a bad body get a reply; no name from a body goes anywhere."""
    agent = start(mqtt={"commands": ["close-patient"]})
    off = ask(broker.port, "engine")
    assert not off["ok"] and "mqtt.commands" in off["detail"]
    unknown = ask(broker.port, "make-coffee")
    assert not unknown["ok"] and unknown["verb"] == "unknown" and "close-patient" in unknown["detail"]
    bad = ask(broker.port, "close-patient", '{"patient": "DOE^JANE", "request_id": "r3"}')
    assert not bad["ok"] and bad["request_id"] == "r3" and bad["detail"].startswith("patient:")
    for said in (agent.log(), json.dumps([off, unknown, bad])):
        assert "DOE" not in said and "make-coffee" not in said


def test_hostile_commands_hold_up_nothing(
    phantom: Path, broker: Mosquitto, listener: Listener, start: Callable[..., AgentProcess]
) -> None:
    """Thousands of commands at once, and a response topic that the broker would disconnect us for: the connection
    stays, results come, few of the thousands are answered, and whoever asks afterwards is."""
    agent = start(mqtt={"commands": ALL})
    publish = [need("mosquitto_pub", "mosquitto-clients"), "-p", str(broker.port), "-t", f"{BASE}/cmd/engine"]
    too_deep = ["-V", "5", "-D", "publish", "response-topic", f"{BASE}/reply/" + 200 * "/"]
    subprocess.run([*publish, *too_deep, "-m", "{}"], check=True)
    wait_until(lambda: listener.bodies("/reply/engine"), "the reply where replies go by default")
    subprocess.run([*publish, "-l"], input='{"use": "x"}\n' * 5000, text=True, check=True)
    for name, content in files_of(phantom).items():
        append(agent.folder, name, content)
    wait_until(lambda: finals(listener, "slide"), "the slide's final", FINAL_S)
    assert len(listener.bodies("/reply/engine")) < 200 and agent.events("commands_dropped")
    wait_until(lambda: request(broker.port, "engine", "{}", patience_s=2), "an answer, once the flood is over", 60)
    assert len(listener.bodies("/status")) == 1, "never disconnected"


def test_with_3_1_1_the_request_id_matches_reply_and_command(
    broker: Mosquitto, start: Callable[..., AgentProcess]
) -> None:
    """mosquitto_pub and mosquitto_sub with 3.1.1: the reply comes at reply/<verb> with the command's request_id."""
    start(mqtt={"commands": ALL, "protocol": "3.1.1"})
    server = ["-V", "311", "-p", str(broker.port)]
    words = [need("mosquitto_sub", "mosquitto-clients"), *server, "-t", f"{BASE}/reply/engine", "-C", "1", "-W", "20"]
    subscriber = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: f"{BASE}/reply/engine (QoS" in broker.log.read_text(), "subscribed")
    publish = [need("mosquitto_pub", "mosquitto-clients"), *server, "-t", f"{BASE}/cmd/engine"]
    subprocess.run([*publish, "-m", '{"request_id": "r-311"}'], check=True)
    out, _ = subscriber.communicate(timeout=30)
    assert json.loads(out)["request_id"] == "r-311" and json.loads(out)["ok"]


def test_without_commands_nothing_is_listened_to(broker: Mosquitto, start: Callable[..., AgentProcess]) -> None:
    """By default no command topic is subscribed to; whoever sends one learns from the broker that nobody listens."""
    start()
    wait_until(lambda: "Sending SUBACK" in broker.log.read_text(), "the agent has subscribed")
    assert f"{BASE}/status (QoS" in broker.log.read_text()
    assert "/cmd/" not in broker.log.read_text()
    words = [need("mosquitto_pub", "mosquitto-clients"), "-d", "-V", "5", "-q", "1", "-p", str(broker.port)]
    done = subprocess.run(
        [*words, "-t", f"{BASE}/cmd/engine", "-m", "{}"], capture_output=True, text=True, check=True
    )
    assert "RC:16" in done.stdout, "No matching subscribers"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_after_a_restart_nobody_is_on_the_table_until_bytes_arrive(
    phantom: Path, broker: Mosquitto, listener: Listener, start: Callable[..., AgentProcess], protocol: str
) -> None:
    """Killed in mid-slide and started again, the agent says that nobody is on the table, although it reads the old
    slide again; with the next bytes its patient is back, and a clean stop takes the pointer away."""
    agent = start(mqtt={"protocol": protocol})
    files: list[tuple[PurePosixPath, bytes]] = list(files_of(phantom).items())
    for name, content in files[:2]:
        append(agent.folder, name, content[: len(content) // 2])
    wait_until(lambda: listener.bodies("/posterior"), "a posterior")
    wait_until(lambda: listener.bodies("/current")[-1]["patient"] is not None, "a patient on the table")
    agent.kill()
    agent.start()
    wait_until(lambda: listener.bodies("/current")[-1]["patient"] is None, "nobody is on the table")
    late = Listener(broker.port)
    wait_until(lambda: late.bodies("/current"), "what a new receiver sees")
    assert late.bodies("/current")[-1]["patient"] is None
    late.close()
    # What comes before its first look lay in the folder already.
    wait_until(lambda: agent.log().count('"event": "ready"') == 2, "the second start has looked into the folder")
    before = len(listener.bodies("/posterior"))
    for name, content in files[:2]:
        append(agent.folder, name, content[len(content) // 2 :])
    wait_until(lambda: listener.bodies("/current")[-1]["patient"] is not None, "the patient is back")
    wait_until(lambda: len(listener.bodies("/posterior")) > before, "a posterior of what was added")
    assert agent.stop() == 0
    wait_until(lambda: listener.bodies("/status")[-1]["state"] == "stopped", "the farewell")
    assert listener.bodies("/current")[-1]["patient"] is None


def test_a_late_will_cannot_kill_a_new_session(
    broker: Mosquitto, listener: Listener, start: Callable[..., AgentProcess]
) -> None:
    """A frozen session's will that comes after the next one's birth is known by its lower boot_seq, and the living
    session says its birth again, so that what is retained is right for new receivers, too."""
    old = start(mqtt={"client_id": "first", "keepalive_s": 600})
    wait_until(lambda: listener.bodies("/status"), "the first birth")
    old.signal(signal.SIGSTOP)
    # The same machine would find its ledger locked; here another one takes over, with a ledger that is ahead.
    new = start("second", mqtt={"client_id": "second"})
    for births in (2, 3):
        wait_until(lambda: len(listener.bodies("/status")) == 2 * births - 2, "the last birth")  # noqa: B023
        assert new.stop() == 0
        new.start()
    wait_until(lambda: listener.bodies("/status")[-1]["boot_seq"] == 3, "the new session's birth")
    old.kill()  # only now does the broker learn that the old session is gone
    wait_until(lambda: len(listener.bodies("/status")) == 8, "the late will, and the birth again")
    states = [(body["state"], body["boot_seq"]) for body in listener.bodies("/status")]
    assert states[-3:] == [("online", 3), ("offline", 1), ("online", 3)]
    will, birth = (Status.model_validate(body) for body in listener.bodies("/status")[-2:])
    assert will.is_older_than(birth) and not birth.is_older_than(will)
    late = Listener(broker.port)
    wait_until(lambda: late.bodies("/status"), "what is retained")
    assert [(body["state"], body["boot_seq"]) for body in late.bodies("/status")] == [("online", 3)]
    late.close()
