"""The SENDER room with a real ledger and real brokers: nothing lost, nothing confused, nothing spinning."""

from __future__ import annotations

import itertools
import json
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
from structlog.testing import capture_logs

from agent.command_desk import Answer
from agent.delivery import MAX_DIRECT, Delivery
from agent.errors import LedgerError
from agent.handover import Cancelled, CancelToken, Handover
from agent.ledger import CountedPatch, Ledger, Record
from agent.publish import Command, Session
from agent.sender import Sender
from agent.settings import MqttSettings
from agent.topics import Message
from models.contract import PatchKey
from tests.brokers import Listener, Mosquitto, free_port, listening, wait_until

PROFILE = "p" * 64


def message(topic: str, event_id: str, **changes: Any) -> Message:
    """A final unless the test says otherwise."""
    fields: dict[str, Any] = {
        "topic": f"t/{topic}",
        "payload": json.dumps({"event_id": event_id}).encode(),
        "event_id": event_id,
        "kind": "slide.final",
        "qos": 1,
        "retain": True,
        "coalesce": False,
        "durable": True,
    }
    return Message(**{**fields, **changes})


def status(state: str) -> Message:
    """Birth, will or farewell."""
    return message("status", state, kind="status", durable=False)


def final(number: int) -> Record:
    """The record of one slide's final."""
    return Record(PROFILE, messages=(message(f"slide/{number}/final", f"final-{number}"),))


def posterior(number: int, topic: str = "slide/a/posterior") -> Record:
    """One of many running answers."""
    return Record(PROFILE, messages=(message(topic, f"posterior-{number}", kind="slide.posterior", coalesce=True),))


def names(count: int, start: int = 0) -> list[str]:
    """The event_ids of `final(start)` to `final(count - 1)`."""
    return [f"final-{number}" for number in range(start, count)]


class Room:
    """A SENDER room on its own thread, as the pipeline runs it."""

    def __init__(self, path: Path, port: int, **options: Any) -> None:
        """Starts at once; `options` go to Sender, `protocol`, `keepalive_s` and `commands` to the session."""
        self.token = CancelToken()
        self.handover: Handover[Record] = Handover("records", 1000, self.token)
        self.ledger = Ledger.open(path)
        self.session = Session(
            MqttSettings(
                port=port, protocol=options.pop("protocol", "5"), keepalive_s=options.pop("keepalive_s", 15)
            ),
            client_id="room",
            will=status("offline"),
            wake=self.handover.nudge,
            commands=options.pop("commands", None),
            backoff_s=(0.01, 0.05),
        )
        self.sender = Sender(
            self.handover,
            self.ledger,
            self.session,
            birth=lambda: status("online"),
            stopped=lambda: status("stopped"),
            **options,
        )
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sender")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.sender.run()
        except (Cancelled, LedgerError) as error:
            self.error = error

    def put(self, *records: Record) -> None:
        """Hand records over."""
        for record in records:
            self.handover.put(record)

    def end(self) -> None:
        """Stop as the pipeline does; returns when the room has left."""
        self.handover.close()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.ledger.close()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    """Starts rooms on one ledger and ends those that the test did not."""
    rooms: list[Room] = []

    def start(port: int, **options: Any) -> Room:
        rooms.append(Room(tmp_path / "ledger.db", port, **options))
        return rooms[-1]

    yield start
    for each in rooms:
        each.token.cancel()
        each.end()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Makes brokers and ends them with the test."""
    made: list[Mosquitto] = []

    def make(*settings: str) -> Mosquitto:
        made.append(Mosquitto(tmp_path, *settings))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Makes subscribers and ends them with the test."""
    made: list[Listener] = []

    def make(port: int) -> Listener:
        made.append(Listener(port))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


Rooms = Callable[..., Room]
Brokers = Callable[..., Mosquitto]
Listeners = Callable[..., Listener]


def test_birth_results_and_stopped_in_order(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """A normal run says online, then every result in order, then stopped; no will, and an empty outbox."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    it = room(broker.port)
    it.put(*(final(number) for number in range(40)))
    it.end()
    wait_until(lambda: "stopped" in listener.event_ids(), "stopped arrives")
    assert listener.event_ids() == ["online", *names(40), "stopped"]
    with reopened(it) as ledger:
        assert ledger.outbox_length() == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_comes_late_gets_everything(
    room: Rooms, mosquitto: Brokers, listen: Listeners, protocol: str
) -> None:
    """With no broker at start, all finals wait in the ledger and arrive in order once it is there."""
    broker = mosquitto()
    it = room(broker.port, protocol=protocol)
    it.put(*(final(number) for number in range(50)), posterior(1), posterior(2))
    wait_until(lambda: len(it.handover) == 0, "all records are in the ledger")
    broker.start()
    listener = listen(broker.port)
    wait_until(lambda: len(listener.event_ids()) >= 52, "everything arrives")
    assert [name for name in listener.event_ids("/final") if name.startswith("final")] == names(50)
    assert listener.event_ids("/posterior") == ["posterior-2"]
    it.end()


def test_a_broker_killed_mid_stream_loses_nothing(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """A broker that dies and forgets twice mid-stream still gets every final; what comes twice has the same id,
    and everything retained is there again at the end."""
    broker = mosquitto().start()
    it = room(broker.port)
    seen: list[str] = []
    for round_ in range(3):
        listener = listen(broker.port)
        it.put(*(final(number) for number in range(round_ * 30, round_ * 30 + 30)))
        wanted = f"final-{round_ * 30 + (29 if round_ == 2 else 5)}"
        wait_until(lambda: wanted in listener.event_ids(), "a part of the stream arrives")  # noqa: B023
        seen += listener.event_ids("/final")
        if round_ < 2:
            broker.kill()
            broker.start()
    wait_until(lambda: it.session.reconnects == 2, "two reconnects")
    late = listen(broker.port)
    wait_until(lambda: set(late.event_ids("/final")) == set(names(90)), "all finals are retained")
    assert set(seen) <= set(names(90))
    it.end()
    with reopened(it) as ledger:
        assert ledger.outbox_length() == 0


def test_a_frozen_broker_is_noticed_and_loses_nothing(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """A broker that hangs with its connections open is left after the keepalive; records go on into the ledger
    meanwhile and all arrive once it answers again."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    with capture_logs() as logs:
        it = room(broker.port, keepalive_s=1)
        wait_until(lambda: listener.event_ids() == ["online"], "online")
        broker.send_signal(signal.SIGSTOP)
        it.put(*(final(number) for number in range(40)))
        wait_until(lambda: any(log["event"] == "mqtt_disconnected" for log in logs), "the silence is noticed")
        wait_until(lambda: len(it.handover) == 0, "records go into the ledger")
        broker.send_signal(signal.SIGCONT)
        wait_until(lambda: set(listener.event_ids("/final")) == set(names(40)), "everything arrives")
        it.end()
    with reopened(it) as ledger:
        assert ledger.outbox_length() == 0


def test_a_broker_that_never_acknowledges_cannot_hold_up_the_end(room: Rooms) -> None:
    """The end waits for acknowledgements up to its limit, keeps the messages, and leaves the will armed."""
    received = bytearray()

    def accept_and_be_silent(connection: socket.socket) -> None:
        received.extend(connection.recv(4096))
        connection.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK of MQTT 5: success, no properties
        while data := connection.recv(4096):
            received.extend(data)

    with listening(accept_and_be_silent) as port:
        it = room(port, flush_limit_s=0.3)
        it.put(final(1))
        wait_until(lambda: b"final-1" in received, "the final is on its way")
        begun = time.monotonic()
        it.end()
        assert time.monotonic() - begun < 5
    assert not received.endswith(b"\xe0\x00")  # DISCONNECT
    with reopened(it) as ledger:
        assert [row.message.event_id for row in ledger.unsent()] == ["final-1"]


def test_an_end_before_the_birth_leaves_no_will(room: Rooms) -> None:
    """Stopped while the broker's answer is on its way, a session says goodbye: nobody is told that it was lost."""
    received = bytearray()

    def never_answer(connection: socket.socket) -> None:
        while data := connection.recv(4096):
            received.extend(data)

    with listening(never_answer) as port:
        it = room(port)
        wait_until(lambda: b"offline" in received, "the CONNECT with its will")
        it.end()
        wait_until(lambda: received.endswith(b"\xe0\x00"), "DISCONNECT")


def test_no_more_in_flight_than_the_broker_takes(room: Rooms) -> None:
    """A broker that takes two unacknowledged messages and acknowledges none is given two: birth and one final."""
    received = bytearray()

    def accept_two(connection: socket.socket) -> None:
        received.extend(connection.recv(4096))
        received.clear()  # the CONNECT with its will
        connection.sendall(b"\x20\x06\x00\x00\x03\x21\x00\x02")  # CONNACK: success, receive maximum 2
        while data := connection.recv(4096):
            received.extend(data)

    with listening(accept_two) as port:
        it = room(port, flush_limit_s=0.3)
        it.put(*(final(number) for number in range(10)))
        wait_until(lambda: b"final-0" in received, "the first final is on its way")
        it.end()
    assert received.count(b"event_id") == 2


def test_a_small_receive_maximum_is_enough(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """With a broker that takes two unacknowledged messages, all arrive on one connection."""
    broker = mosquitto("max_inflight_messages 2").start()
    listener = listen(broker.port)
    it = room(broker.port)
    it.put(*(final(number) for number in range(100)))
    wait_until(lambda: "final-99" in listener.event_ids(), "everything arrives")
    assert listener.event_ids("/final") == names(100)
    assert it.session.reconnects == 0
    it.end()


def test_a_refused_message_is_kept_and_nothing_spins(
    room: Rooms, mosquitto: Brokers, listen: Listeners, tmp_path: Path
) -> None:
    """Finals that an access rule refuses stay in the ledger, cost one log event and a few tries, and arrive once
    the rule is mended; other topics flow meanwhile."""
    rules = tmp_path / "rules"
    rules.write_text("topic read #\ntopic write t/status\ntopic write t/slide/+/posterior\n")
    broker = mosquitto(f"acl_file {rules}").start()
    listener = listen(broker.port)
    with capture_logs() as logs:
        it = room(broker.port, refused_retry_s=(0.2, 0.4))
        it.put(final(1), *(posterior(number) for number in range(50)))
        wait_until(lambda: "posterior-49" in listener.event_ids(), "posteriors flow")
        wait_until(lambda: broker.log.read_text().count("Denied PUBLISH") >= 3, "it is tried again")
        assert listener.event_ids("/final") == []
        assert it.ledger.outbox_length() == 1
        rules.write_text("topic readwrite #\n")
        broker.kill()
        refused = broker.log.read_text().count("Denied PUBLISH")
        broker.start()
        late = listen(broker.port)
        wait_until(lambda: late.event_ids("/final") == ["final-1"], "the final arrives")
        it.end()
    assert refused < 20
    events = [log for log in logs if log["event"] == "mqtt_message_refused"]
    assert [(log["event_id"], log["reason"], log["kept"]) for log in events] == [("final-1", "Not authorized", True)]


def test_a_refused_state_topic_does_not_spin(
    room: Rooms, mosquitto: Brokers, listen: Listeners, tmp_path: Path
) -> None:
    """A stream of posteriors to a topic that is refused costs a few tries, not one for each."""
    rules = tmp_path / "rules"
    rules.write_text("topic read #\ntopic write t/status\ntopic write t/slide/+/final\n")
    broker = mosquitto(f"acl_file {rules}").start()
    listener = listen(broker.port)
    it = room(broker.port)
    it.put(posterior(0))
    wait_until(lambda: "Denied PUBLISH" in broker.log.read_text(), "the first is refused")
    it.put(*(posterior(number) for number in range(1, 300)), final(1))
    wait_until(lambda: listener.event_ids("/final") == ["final-1"], "another topic is served")
    assert broker.log.read_text().count("Denied PUBLISH") < 10
    wait_until(lambda: it.ledger.outbox_length() == 1, "only the refused one is kept")
    it.end()


def test_qos_0_is_sent_when_connected_and_dropped_otherwise(
    room: Rooms, mosquitto: Brokers, listen: Listeners
) -> None:
    """Patches for heat maps never wait for a broker and never enter the ledger."""
    broker = mosquitto()
    it = room(broker.port)

    def patches(number: int) -> Record:
        fleeting = message("slide/a/patches", f"patches-{number}", qos=0, retain=False, durable=False)
        return Record(PROFILE, messages=(fleeting,))

    it.put(patches(1))
    wait_until(lambda: it.sender.measures.dropped == 1, "the first is dropped")
    broker.start()
    listener = listen(broker.port)
    wait_until(lambda: listener.event_ids("/status"), "connected")
    it.put(patches(2))
    wait_until(lambda: listener.event_ids("/patches") == ["patches-2"], "the second arrives")
    assert it.sender.measures.dropped == 1
    assert it.ledger.outbox_length() == 0
    it.end()


def test_health_is_told_while_connected(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """Health follows the birth at once and then comes at its interval, with nothing else going on."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    beats = iter(range(1000))
    it = room(
        broker.port,
        health=lambda: message("health", f"health-{next(beats)}", qos=0, durable=False),
        health_interval_s=0.1,
    )
    wait_until(lambda: "health-4" in listener.event_ids(), "health is told")
    assert listener.event_ids()[0] == "online"
    it.end()


def test_commands_reach_their_handler(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """A command wakes the room and is given to its handler, whose answer is published."""
    broker = mosquitto().start()
    given: list[tuple[str, bytes]] = []

    def take(command: Command) -> Answer:
        given.append((command.verb, command.payload))
        return Answer((message("reply/close-patient", "reply", kind="reply", retain=False, durable=False),))

    listener = listen(broker.port)
    it = room(broker.port, commands="t/cmd/+", on_command=take)
    wait_until(lambda: "Sending SUBACK to room" in broker.log.read_text(), "subscribed")
    paho.mqtt.publish.single("t/cmd/close-patient", b"{}", qos=1, port=broker.port)
    wait_until(lambda: listener.event_ids("/reply/close-patient") == ["reply"], "the answer arrives")
    assert given == [("close-patient", b"{}")]
    it.end()


def test_what_is_said_directly_is_bounded(tmp_path: Path) -> None:
    """A broker that acknowledges nothing cannot make the room keep more and more replies and births."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    delivery = Delivery(ledger, Session(MqttSettings(), client_id="room", will=status("offline")))
    delivery.begin(16, [status("online")])
    delivery.say(*[message("reply/engine", "reply", kind="reply", durable=False)] * (MAX_DIRECT + 10))
    assert delivery.measures.dropped == 11
    ledger.close()


def test_a_repetition_drops_nothing_that_is_new(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """Hundreds of old heat map messages trickle out whole, while new ones and finals come through among them."""
    broker = mosquitto().start()
    listener = listen(broker.port)

    def patches(name: str, number: int) -> Message:
        return message(f"slide/{name}/patches", f"{name}-{number}", qos=0, retain=False, durable=False)

    def take(_: Command) -> Answer:
        return Answer(trickle=(patches("old", number) for number in range(400)))

    it = room(broker.port, commands="t/cmd/+", on_command=take)
    wait_until(lambda: "Sending SUBACK to room" in broker.log.read_text(), "subscribed")
    paho.mqtt.publish.single("t/cmd/replay-state", b"{}", port=broker.port)
    wait_until(lambda: listener.event_ids("/old/patches"), "the repetition has begun")
    for number in range(20):
        it.put(Record(PROFILE, messages=(patches("new", number), *final(number).messages)))
    wait_until(
        lambda: len(listener.event_ids("/patches")) == 420 and listener.event_ids("/final") == names(20), "all"
    )
    assert listener.event_ids("/old/patches") == [f"old-{number}" for number in range(400)]
    assert it.sender.measures.dropped == 0
    it.end()


def test_a_repetition_ends_with_its_connection(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """What was still to be said again is forgotten with the connection; the room goes on as usual."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    asked: list[int] = []

    def take(_: Command) -> Answer:
        endless = (message("slide/a/patches", "old", qos=0, retain=False, durable=False) for _ in itertools.count())
        return Answer(trickle=(asked.append(1) or said for said in endless))  # type: ignore[func-returns-value]

    it = room(broker.port, commands="t/cmd/+", on_command=take)
    wait_until(lambda: "Sending SUBACK to room" in broker.log.read_text(), "subscribed")
    paho.mqtt.publish.single("t/cmd/replay-state", b"{}", port=broker.port)
    wait_until(lambda: listener.event_ids("/patches"), "the repetition has begun")
    broker.kill()
    broker.start()
    late = listen(broker.port)
    wait_until(lambda: it.session.reconnects == 1 and late.event_ids("/status"), "connected again")
    before = len(asked)
    it.put(final(1))
    wait_until(lambda: late.event_ids("/final") == names(2, 1), "the final arrives")
    assert len(asked) == before and not late.event_ids("/patches")
    it.end()


def test_a_late_will_is_answered_by_the_birth(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """What contradicts us on our own status topic is followed by our birth, so that the retained status is right."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    it = room(broker.port, contradicts=lambda payload: b"late" in payload)
    wait_until(lambda: "Sending SUBACK to room" in broker.log.read_text(), "subscribed")
    for said in ("late", "harmless"):
        paho.mqtt.publish.single("t/status", json.dumps({"event_id": said}), qos=1, retain=True, port=broker.port)
    wait_until(lambda: len(listener.event_ids("/status")) == 4, "both, and the birth again")
    assert sorted(listener.event_ids("/status")) == ["harmless", "late", "online", "online"]
    it.end()


def test_a_result_too_large_for_the_broker_is_kept_and_told(
    room: Rooms, mosquitto: Brokers, listen: Listeners
) -> None:
    """It costs neither the connection nor other results: it stays in the ledger, with one alert for its kind."""
    broker = mosquitto("max_packet_size 1000").start()
    listener = listen(broker.port)

    def alert(refused: Message, reason: str) -> Message:
        return message("alert", f"{refused.kind}: {reason}", kind="alert", retain=False)

    with capture_logs() as logs:
        it = room(broker.port, alert=alert, refused_retry_s=(0.05, 0.1))
        wait_until(lambda: listener.event_ids("/status"), "connected")
        large = [
            message(f"slide/{n}/final", f"large-{n}", payload=b'{"event_id": "%d"}' % n + b" " * 1000) for n in (1, 2)
        ]
        heat = message("slide/1/patches", "heat", payload=b" " * 1000, qos=0, retain=False, durable=False)
        it.put(Record(PROFILE, messages=(*large, heat)), final(3))
        wait_until(lambda: listener.event_ids("/alert"), "the alert")
        wait_until(lambda: listener.event_ids("/final") == ["final-3"], "another result")
        wait_until(lambda: it.sender.measures.refused > 6, "they are tried again")
        assert it.session.reconnects == 0
        it.end()
    (said,) = listener.event_ids("/alert")
    assert said.startswith("slide.final: its 1") and "1000 that the broker takes" in said
    events = [(log["event_id"], log["kept"]) for log in logs if log["event"] == "mqtt_message_refused"]
    assert sorted(events) == [("heat", False), ("large-1", True), ("large-2", True)]
    assert it.sender.measures.dropped == 1
    with reopened(it) as ledger:
        assert [row.message.event_id for row in ledger.unsent()] == ["large-1", "large-2"]


def test_the_latest_revision_of_a_final_outlives_pruning_and_a_forgetful_broker(
    room: Rooms, mosquitto: Brokers, listen: Listeners
) -> None:
    """A corrected final is delivered after the one that it corrects; pruned, restarted, and with a broker that lost
    everything, the correction and no other is retained again, under its own event_id."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    first = room(broker.port)
    patch = CountedPatch(PatchKey("p", "a", 0, 50, 0), (1, 2), None)
    for revision in (1, 2):
        first.put(Record(PROFILE, (patch,), (message("slide/a/final", f"revision-{revision}"),)))
    wait_until(lambda: listener.event_ids("/final") == ["revision-1", "revision-2"], "both arrive, in order")
    first.end()
    broker.kill()
    with reopened(first) as ledger:
        assert ledger.prune(["p"]) == 1
    broker.start()
    second = room(broker.port)
    wait_until(lambda: second.session.reconnects == 0 and second.sender.measures.connected, "connected")
    late = listen(broker.port)
    wait_until(lambda: late.event_ids("/final"), "a final is retained")
    assert late.event_ids("/final") == ["revision-2"] and late.messages[0].retain
    second.end()


def test_the_next_start_sends_what_the_last_one_could_not(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """A room that ends without a broker keeps its messages, and the next one sends them with the same ids."""
    first = room(free_port(), flush_limit_s=0.5)
    first.put(*(final(number) for number in range(5)))
    first.end()
    broker = mosquitto().start()
    listener = listen(broker.port)
    second = room(broker.port)
    second.put(final(5))
    wait_until(lambda: "final-5" in listener.event_ids(), "everything arrives")
    assert listener.event_ids("/final") == names(6)
    second.end()


def test_an_end_at_once_leaves_the_will(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """When the process ends at once the room leaves with Cancelled and the broker says offline, not stopped."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    it = room(broker.port)
    wait_until(lambda: listener.event_ids() == ["online"], "online")
    it.token.cancel()
    it.end()
    assert isinstance(it.error, Cancelled)
    wait_until(lambda: listener.event_ids() == ["online", "offline"], "the will arrives")


def test_a_failing_ledger_ends_the_room(room: Rooms, mosquitto: Brokers, listen: Listeners) -> None:
    """When the ledger cannot be written, the room leaves with LedgerError and nothing of the record is sent."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    it = room(broker.port)
    wait_until(lambda: listener.event_ids() == ["online"], "online")
    it.ledger.close()
    it.put(final(1))
    wait_until(lambda: "offline" in listener.event_ids(), "the will arrives")
    it.end()
    assert isinstance(it.error, LedgerError)
    assert listener.event_ids("/final") == []


@pytest.mark.system
def test_a_killed_process_loses_nothing_that_was_committed(
    mosquitto: Brokers, listen: Listeners, room: Rooms, tmp_path: Path
) -> None:
    """A process killed (SIGKILL) mid-stream and started again: every final in the ledger is delivered."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from tests.agent.test_sender import Room, final
        room = Room(Path({str(tmp_path / "ledger.db")!r}), {broker.port})
        for number in range(100_000):
            room.put(final(number))
    """
    victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    wait_until(lambda: "final-60" in listener.event_ids(), "it is at work")
    victim.kill()
    victim.wait()
    wait_until(lambda: "offline" in listener.event_ids(), "the will arrives")
    before = listener.event_ids("/final")
    second = room(broker.port)
    wait_until(lambda: listener.event_ids("/status")[-1:] == ["online"], "the second run is connected")
    second.end()
    wait_until(lambda: "stopped" in listener.event_ids(), "the second run has flushed")
    delivered = set(listener.event_ids("/final"))
    assert delivered == set(names(len(delivered)))
    assert len(delivered) >= len(before) >= 60
    with reopened(second) as ledger:
        assert ledger.outbox_length() == 0
        assert {kept.event_id for kept in ledger.retained()} == set(names(len(delivered))[-1000:])


def test_counted_patches_are_in_the_ledger_before_the_wire(
    room: Rooms, mosquitto: Brokers, listen: Listeners
) -> None:
    """When a subscriber sees a result, the patches behind it are already counted."""
    broker = mosquitto().start()
    listener = listen(broker.port)
    it = room(broker.port)
    patch = CountedPatch(PatchKey("p", "s", 0, 50, 0), (1, 2), None)
    it.put(Record(PROFILE, (patch,), final(1).messages))
    wait_until(lambda: listener.event_ids("/final"), "the result arrives")
    it.end()
    with reopened(it) as ledger:
        assert list(ledger.patches.restore(PROFILE)) == [patch]


class reopened:  # noqa: N801 - used like a function
    """The ledger of a room that has ended."""

    def __init__(self, room: Room) -> None:
        """`room` must have ended."""
        self._path = room.ledger.path

    def __enter__(self) -> Ledger:
        self._ledger = Ledger.open(self._path)
        return self._ledger

    def __exit__(self, *_: object) -> None:
        self._ledger.close()
