"""The MQTT session against real brokers (mosquitto, amqtt) and against things that are no broker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.publish
import pytest

from agent.connection import COMMAND_LIFE_S
from agent.errors import SettingsError
from agent.packets import message_properties, publish_bytes
from agent.publish import Acked, Command, Connected, Disconnected, Event, Overheard, Session
from agent.settings import MqttSettings
from agent.topics import Message
from tests.brokers import Listener, Mosquitto, free_port, listening, need, wait_until

FAST = (0.01, 0.05)
PROTOCOL_LEVEL = 8
"""Its place in a CONNECT packet shorter than 128 bytes: 4 says 3.1.1, 5 says 5."""


def message(topic: str = "t/final", body: str = "1", **changes: Any) -> Message:
    """A QoS 1 message with what the test cares about."""
    fields: dict[str, Any] = {
        "topic": topic,
        "payload": f'{{"event_id": "{body}"}}'.encode(),
        "event_id": body,
        "kind": "slide.final",
        "qos": 1,
        "retain": False,
        "coalesce": False,
        "durable": True,
    }
    return Message(**{**fields, **changes})


WILL = message("t/status", "offline", kind="status", retain=True)


class Seen:
    """Runs a session and keeps the events that it gave."""

    def __init__(self, port: int, commands: str | None = None, **settings: Any) -> None:
        """Starts the session at once."""
        self.events: list[Event] = []
        chosen = MqttSettings(port=port, **settings)
        self.session = Session(chosen, client_id="test", will=WILL, commands=commands, backoff_s=FAST)
        self.session.start()

    def find(self, kind: type[Event]) -> list[Any]:
        """The events of a kind so far."""
        self.events += self.session.events(0.01)
        return [event for event in self.events if isinstance(event, kind)]

    def wait(self, kind: type[Event], count: int = 1) -> Any:
        """The latest event of a kind, once there are `count` of them."""
        wait_until(lambda: len(self.find(kind)) >= count, f"{count} × {kind.__name__}")
        return self.find(kind)[-1]


@pytest.fixture
def run() -> Iterator[Callable[..., Seen]]:
    """Starts sessions and ends them with the test."""
    started: list[Seen] = []

    def start(port: int, commands: str | None = None, **settings: Any) -> Seen:
        started.append(Seen(port, commands, **settings))
        return started[-1]

    yield start
    for seen in started:
        seen.session.stop(10)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Makes brokers and ends them with the test."""
    made: list[Mosquitto] = []

    def make(*settings: str, anonymous: bool = True) -> Mosquitto:
        made.append(Mosquitto(tmp_path, *settings, anonymous=anonymous))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Makes subscribers and ends them with the test."""
    made: list[Listener] = []

    def make(port: int, **login: str) -> Listener:
        made.append(Listener(port, **login))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def test_a_message_arrives_with_its_mqtt_5_properties(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], listen: Callable[..., Listener]
) -> None:
    """On MQTT 5 a message arrives whole, with content type, schema and expiry, and is acknowledged."""
    broker = mosquitto().start()
    listener, seen = listen(broker.port), run(broker.port)
    assert seen.wait(Connected).protocol == "5"
    mid = seen.session.publish(message(expiry_s=60))
    assert mid is not None and seen.wait(Acked) == Acked(mid)
    wait_until(lambda: listener.messages, "the message arrives")
    properties: Any = listener.messages[0].properties
    assert listener.event_ids() == ["1"]
    assert properties.ContentType == "application/json"
    assert properties.UserProperty == [("schema", "slide.final.v1")]
    assert 0 < properties.MessageExpiryInterval <= 60


def test_mosquitto_sub_sees_every_property(run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto]) -> None:
    """Another people's client prints format, content type, expiry, schema and correlation as we sent them."""
    broker = mosquitto().start()
    words = [need("mosquitto_sub", "mosquitto-clients"), "-V", "5", "-p", str(broker.port)]
    subscriber = subprocess.Popen(
        [*words, "-q", "1", "-t", "t/final", "-F", "%F %C %E %P %D %p", "-C", "1", "-W", "20"],
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: "t/final (QoS 1)" in broker.log.read_text(), "mosquitto_sub has subscribed")
    seen = run(broker.port)
    seen.wait(Connected)
    seen.session.publish(message(expiry_s=900, correlation=b"asked-42"))
    out, _ = subscriber.communicate(timeout=30)
    form, content, expiry, *rest = out.split(maxsplit=3)
    assert (form, content) == ("1", "application/json") and 895 <= int(expiry) <= 900
    assert rest == ['schema:slide.final.v1 asked-42 {"event_id": "1"}\n']


def test_a_message_beyond_the_brokers_packet_size_costs_no_connection(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], listen: Callable[..., Listener]
) -> None:
    """What the broker would disconnect us for is refused with both sizes; what fits to the byte is sent."""
    broker = mosquitto("max_packet_size 1000").start()
    listener, seen = listen(broker.port), run(broker.port)
    assert seen.wait(Connected).maximum_packet_size == 1000
    fitting = message(payload=b"")
    room = 1000 - publish_bytes(fitting, message_properties(fitting)) - 1  # a second digit in the packet's length
    for size in (room + 1, room):
        mid = seen.session.publish(message(payload=b"x" * size))
        seen.wait(Acked, 2 - (size - room))
        assert seen.find(Acked)[-1].mid == mid
    first, second = seen.find(Acked)
    assert first.refused == "its 1001 bytes are more than the 1000 that the broker takes" and second.refused is None
    wait_until(lambda: len(listener.messages) == 1, "the one that fits arrives")
    assert len(listener.messages[0].payload) == room
    assert not seen.find(Disconnected) and len(seen.find(Connected)) == 1


@pytest.mark.parametrize(("setting", "word"), [("retain_available false", "etain"), ("max_qos 0", "QoS")])
def test_a_broker_that_cannot_keep_results_is_told(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], setting: str, word: str
) -> None:
    """A broker without retained messages or QoS 1 is not used half: the reason names what it lacks."""
    seen = run(mosquitto(setting).start().port)
    assert word in seen.wait(Disconnected).reason
    assert not seen.find(Connected)


def test_mqtt_3_1_1_on_request(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], listen: Callable[..., Listener]
) -> None:
    """`protocol: 3.1.1` speaks 3.1.1 from the start, and the same payload arrives and is acknowledged."""
    broker = mosquitto().start()
    listener, seen = listen(broker.port), run(broker.port, protocol="3.1.1")
    assert seen.wait(Connected).protocol == "3.1.1"
    mid = seen.session.publish(message(expiry_s=60))
    assert mid is not None and seen.wait(Acked) == Acked(mid)
    wait_until(lambda: listener.event_ids() == ["1"], "the message arrives")


@pytest.mark.filterwarnings("default")
def test_falls_back_to_3_1_1_where_the_broker_has_no_more(run: Callable[..., Seen]) -> None:
    """amqtt does not answer MQTT 5 with a will; `auto` then connects with 3.1.1 and QoS 1 is acknowledged."""
    amqtt_broker = pytest.importorskip("amqtt.broker")
    port = free_port()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="amqtt")
    thread.start()
    broker = amqtt_broker.Broker(config, loop=loop)
    try:
        asyncio.run_coroutine_threadsafe(broker.start(), loop).result(20)
        seen = run(port)
        assert seen.wait(Connected).protocol == "3.1.1"
        assert {event.reason for event in seen.find(Disconnected)} == {"no answer"}
        mid = seen.session.publish(message())
        assert mid is not None and seen.wait(Acked) == Acked(mid)
        seen.session.stop(10)
    finally:
        asyncio.run_coroutine_threadsafe(broker.shutdown(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_broker_that_refuses_the_version_is_tried_with_the_other_one_at_once(run: Callable[..., Seen]) -> None:
    """A CONNACK of 3.1.1 with code 1 (unacceptable protocol version) makes the next attempt speak 3.1.1."""
    versions: list[int] = []

    def refuse(connection: socket.socket) -> None:
        versions.append(connection.recv(1024)[PROTOCOL_LEVEL])
        connection.sendall(b"\x20\x02\x00\x01")

    with listening(refuse) as port:
        seen = run(port)
        wait_until(lambda: len(versions) >= 2, "two attempts")
        seen.wait(Disconnected)
    assert seen.find(Disconnected)[0].reason == "Unsupported protocol version"
    assert versions[:2] == [5, 4]


def test_a_broker_that_closes_without_an_answer_is_tried_with_the_other_version(run: Callable[..., Seen]) -> None:
    """Two connections closed before any answer make `auto` try 3.1.1, and two more MQTT 5 again."""
    versions: list[int] = []

    def answer(connection: socket.socket) -> None:
        versions.append(connection.recv(1024)[PROTOCOL_LEVEL])

    with listening(answer) as port:
        run(port)
        wait_until(lambda: len(versions) >= 5, "five attempts")
    assert versions[:5] == [5, 5, 4, 4, 5]


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x02\x00\xff", b"\x20\x03\x00\x00\xff", b"\xff" * 64, b"\x20\x00"],
)
def test_garbage_is_a_reason_and_not_the_end(run: Callable[..., Seen], garbage: bytes) -> None:
    """Whatever answers instead of a broker, the session says why and keeps trying."""
    with listening(lambda connection: connection.sendall(garbage)) as port:
        seen = run(port)
        seen.wait(Disconnected, count=3)
    assert not seen.find(Connected)
    assert all(event.reason for event in seen.find(Disconnected))


def test_a_refused_login_is_a_reason(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A wrong password gives Disconnected with the broker's reason, never Connected; the right one connects."""
    users = tmp_path / "users"
    subprocess.run([need("mosquitto_passwd", "mosquitto"), "-b", "-c", users, "agent", "right"], check=True)
    broker = mosquitto(f"password_file {users}", anonymous=False).start()
    password = tmp_path / "password"
    password.write_text("wrong\n")
    login = {"username": "agent", "password_file": password}
    seen = run(broker.port, **login)
    assert seen.wait(Disconnected).reason == "Not authorized"
    assert not seen.find(Connected)
    assert seen.session.publish(message()) is None
    # The file is read for every attempt: a renewed password needs no restart.
    password.write_text("right\n")
    assert seen.wait(Connected).protocol == "5"


def test_a_clean_end_suppresses_the_will_and_any_other_does_not(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], listen: Callable[..., Listener]
) -> None:
    """The broker publishes the will after an unclean stop and only then."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    first = run(broker.port)
    first.wait(Connected)
    first.session.stop(10, clean=True)
    wait_until(lambda: "Received DISCONNECT from test" in broker.log.read_text(), "the broker sees the clean end")
    second = run(broker.port)
    second.wait(Connected)
    assert listener.event_ids() == []
    second.session.stop(10, clean=False)
    wait_until(lambda: listener.event_ids() == ["offline"], "the will arrives")


def test_the_will_of_a_killed_process(
    mosquitto: Callable[..., Mosquitto], listen: Callable[..., Listener], tmp_path: Path
) -> None:
    """When a process is killed (SIGKILL), the broker publishes its will, retained."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    script = f"""
        from agent.publish import Connected, Session
        from agent.settings import MqttSettings
        from agent.topics import Message
        will = Message("t/status", b'{{"event_id": "offline"}}', "offline", "status", 1, True, False, False)
        session = Session(MqttSettings(port={broker.port}), client_id="victim", will=will)
        session.start()
        while not any(isinstance(event, Connected) for event in session.events(1.0)):
            pass
        print("connected", flush=True)
        session.events(60.0)
    """
    victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    with victim.stdout as out:
        assert out.readline() == b"connected\n"
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    wait_until(lambda: listener.event_ids() == ["offline"], "the will arrives")
    late = listen(broker.port)
    wait_until(lambda: late.event_ids() == ["offline"], "the will is retained")


def test_the_brokers_receive_maximum_is_told(run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto]) -> None:
    """Connected carries how many unacknowledged messages the broker takes."""
    seen = run(mosquitto("max_inflight_messages 2").start().port)
    assert seen.wait(Connected).receive_maximum == 2


def test_publishing_needs_a_connection_and_a_new_one_starts_empty(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], listen: Callable[..., Listener]
) -> None:
    """Nothing is kept while the broker is away, and the session itself sends nothing again after a reconnect."""
    broker = mosquitto()
    seen = run(broker.port)
    seen.wait(Disconnected)
    assert seen.session.publish(message(body="never")) is None
    broker.start()
    seen.wait(Connected)
    broker.kill()
    lost = seen.session.publish(message(body="lost"))  # in flight on a dying connection, or already refused
    downs = len(seen.find(Disconnected))
    wait_until(lambda: len(seen.find(Disconnected)) > downs, "the end is noticed")
    assert seen.session.publish(message(body="never")) is None
    broker.start()
    listener = listen(broker.port)
    seen.wait(Connected, count=2)
    assert seen.session.reconnects == 1
    mid = seen.session.publish(message(body="kept"))
    seen.wait(Acked)
    assert Acked(lost or 0) not in seen.events or lost == mid
    wait_until(lambda: listener.event_ids() == ["kept"], "only the new message arrives")


def test_commands_arrive_once_and_only_fresh_ones(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto]
) -> None:
    """A command gives one Command; retained and oversized ones are ignored."""
    broker = mosquitto().start()

    def send(payload: bytes, retain: bool = False) -> None:
        paho.mqtt.publish.single("t/cmd/close-patient", payload, qos=1, retain=retain, port=broker.port)

    send(b"old", retain=True)
    seen = run(broker.port, commands="t/cmd/+")
    seen.wait(Connected)
    wait_until(lambda: "Sending SUBACK to test" in broker.log.read_text(), "subscribed")
    send(b"x" * 5000)
    send(b"{}")
    command = seen.wait(Command)
    assert (command.verb, command.payload, command.reply_to, command.correlation) == (
        "close-patient",
        b"{}",
        None,
        None,
    )
    assert len(seen.find(Command)) == 1


def test_a_command_brings_where_and_until_when(run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto]) -> None:
    """Response topic, correlation data and expiry of a command sent with mosquitto_pub come with it."""
    broker = mosquitto().start()
    seen = run(broker.port, commands="t/cmd/+")
    seen.wait(Connected)
    wait_until(lambda: "Sending SUBACK to test" in broker.log.read_text(), "subscribed")
    words = [
        need("mosquitto_pub", "mosquitto-clients"),
        "-V",
        "5",
        "-p",
        str(broker.port),
        "-t",
        "t/cmd/engine",
        "-n",
    ]
    asked = ["-D", "publish", "response-topic", "t/reply/me", "-D", "publish", "correlation-data", "7"]
    subprocess.run([*words, *asked, "-D", "publish", "message-expiry-interval", "5"], check=True)
    command = seen.wait(Command)
    assert (command.verb, command.payload, command.reply_to, command.correlation) == (
        "engine",
        b"",
        "t/reply/me",
        b"7",
    )
    assert 0 < command.expires_at_s - time.monotonic() <= 5
    subprocess.run(words, check=True)
    assert seen.wait(Command, 2).expires_at_s - time.monotonic() <= COMMAND_LIFE_S


def test_only_a_live_status_is_overheard(run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto]) -> None:
    """What comes on our own status topic while we are there is told; what was retained before is not."""
    broker = mosquitto().start()
    for protocol in ("5", "3.1.1"):
        paho.mqtt.publish.single(WILL.topic, b"old", qos=1, retain=True, port=broker.port)
        seen = run(broker.port, protocol=protocol, client_id=f"client-{protocol}")
        seen.wait(Connected)
        wait_until(lambda: f"Sending SUBACK to client-{protocol}" in broker.log.read_text(), "subscribed")  # noqa: B023
        paho.mqtt.publish.single(WILL.topic, b"late", qos=1, retain=True, port=broker.port)
        assert seen.wait(Overheard) == Overheard(b"late")
        assert len(seen.find(Overheard)) == 1
        seen.session.stop(10)


def test_a_dead_network_thread_is_told(mosquitto: Callable[..., Mosquitto]) -> None:
    """Whatever ends the network thread is raised by `events`, so that the process ends and nobody waits for ever."""
    failures = [RuntimeError("broken")]

    def wake() -> None:
        if failures:
            raise failures.pop()

    port = mosquitto().start().port
    session = Session(MqttSettings(port=port), client_id="t", will=WILL, wake=wake)
    session.start()
    with pytest.raises(RuntimeError, match="broken"):
        while session.events(10.0):  # its Connected may come first, alone or together with the failure
            pass
    session.stop(5.0)


def test_stop_without_a_broker_is_quick(run: Callable[..., Seen]) -> None:
    """A session that never connected ends at once, however long its pause between attempts is."""
    session = Session(MqttSettings(port=free_port()), client_id="t", will=WILL, backoff_s=(60.0, 60.0))
    session.start()
    assert any(isinstance(event, Disconnected) for event in session.events(10.0))
    session.stop(5.0)
    assert not any(thread.name == "mqtt" and thread.is_alive() for thread in threading.enumerate())


def test_secrets_that_cannot_be_read_are_setting_errors(tmp_path: Path) -> None:
    """A missing password or TLS file is refused before anything starts, naming field and file."""
    missing = tmp_path / "missing"
    not_pem = tmp_path / "not.pem"
    not_pem.write_text("no certificate")
    for changes, words in (
        ({"username": "a", "password_file": missing}, "mqtt.password_file"),
        ({"ca_file": missing}, "mqtt.ca_file"),
        ({"ca_file": not_pem}, "mqtt.ca_file"),
    ):
        with pytest.raises(SettingsError, match=words):
            Session(MqttSettings.model_validate(changes), client_id="t", will=WILL)


# paho leaves it to the garbage collector to close the socket of a failed TLS handshake.
SOCKETS_LEFT = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)


@SOCKETS_LEFT
def test_tls_verifies_the_broker(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """With the right authority the session connects over TLS; with another one it gives the reason."""
    for name in ("right", "other"):
        make_certificate(tmp_path, name)
    broker = mosquitto(f"certfile {tmp_path}/right.crt", f"keyfile {tmp_path}/right.key").start()
    good = run(broker.port, host="localhost", ca_file=tmp_path / "right.crt")
    assert good.wait(Connected).protocol == "5"
    bad = run(broker.port, host="localhost", ca_file=tmp_path / "other.crt")
    reason = bad.wait(Disconnected).reason
    assert "CERTIFICATE_VERIFY_FAILED" in reason and "authority in mqtt.ca_file" in reason
    assert not bad.find(Connected)


@SOCKETS_LEFT
@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"days": "-1"}, ["has expired", "CERTIFICATE_VERIFY_FAILED"]),
        ({"host": "elsewhere.example"}, ["for another name", "set mqtt.host", "localhost"]),
    ],
)
def test_a_wrong_certificate_of_the_broker_says_what_to_do(
    run: Callable[..., Seen],
    mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    made: dict[str, str],
    words: list[str],
) -> None:
    """An expired certificate, and one for another host, are refused with the remedy."""
    make_certificate(tmp_path, "broker", **made)
    broker = mosquitto(f"certfile {tmp_path}/broker.crt", f"keyfile {tmp_path}/broker.key").start()
    seen = run(broker.port, host="localhost", ca_file=tmp_path / "broker.crt")
    reason = seen.wait(Disconnected).reason
    assert all(word in reason for word in words), reason
    assert not seen.find(Connected)


@SOCKETS_LEFT
def test_a_client_certificate_is_shown_and_its_lack_is_told(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A broker that asks for a certificate gets ours; without one, or with a foreign one, it refuses and says why."""
    for name in ("broker", "agent", "foreign"):
        make_certificate(tmp_path, name)
    files = [f"certfile {tmp_path}/broker.crt", f"keyfile {tmp_path}/broker.key", f"cafile {tmp_path}/agent.crt"]
    broker = mosquitto(*files, "require_certificate true").start()
    place = {"host": "localhost", "ca_file": tmp_path / "broker.crt"}
    mine = {"cert_file": tmp_path / "agent.crt", "key_file": tmp_path / "agent.key"}
    assert run(broker.port, **place, **mine).wait(Connected).protocol == "5"
    without = run(broker.port, **place)
    assert "mqtt.cert_file" in without.wait(Disconnected).reason
    other = {"cert_file": tmp_path / "foreign.crt", "key_file": tmp_path / "foreign.key"}
    foreign = run(broker.port, **place, **other)
    assert "our certificate in mqtt.cert_file" in foreign.wait(Disconnected).reason
    assert not without.find(Connected) and not foreign.find(Connected)


@SOCKETS_LEFT
def test_tls_at_an_unencrypted_port_is_told(
    run: Callable[..., Seen], mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A broker without TLS at this port gives a reason that names the port."""
    make_certificate(tmp_path, "right")
    broker = mosquitto().start()
    seen = run(broker.port, host="localhost", ca_file=tmp_path / "right.crt")
    reason = seen.wait(Disconnected).reason
    assert f"no TLS is spoken at port {broker.port}" in reason, reason


def make_certificate(folder: Path, name: str, host: str = "localhost", days: str = "2") -> None:
    """Write a self-signed certificate and its key; -1 days make it one that has expired."""
    openssl, key, certificate = need("openssl", "openssl"), f"{folder}/{name}.key", f"{folder}/{name}.crt"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    dated = [openssl, "x509", "-in", certificate, "-signkey", key, "-days", days, "-out", certificate]
    for words in ([openssl, "req", *kind, *named, "-keyout", key, "-out", certificate], dated):
        environment = {**os.environ, "RANDFILE": f"{folder}/random"}
        subprocess.run(words, check=True, capture_output=True, env=environment)
