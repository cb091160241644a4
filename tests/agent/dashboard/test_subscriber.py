"""The dashboard's session at real brokers: when it counts as connected, how it comes back, what it says is wrong."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.dashboard.heard import MAX_BYTES, filters
from agent.dashboard.inbox import MAX_ITEMS, MAX_WAITING_BYTES, Arrived, Inbox, Item, Linked, Lost
from agent.dashboard.subscriber import Subscriber
from agent.demo_broker import EmbeddedBroker
from agent.errors import SettingsError
from agent.settings import MqttSettings
from agent.topics import DEFAULT_ROOT
from tests.agent.dashboard.processes import Speaker
from tests.agent.dashboard.sayings import TOPICS, Saying
from tests.brokers import Listener, Mosquitto, free_port, listening, need, wait_until

DYNAMIC_SECURITY = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")


class Session:
    """A subscriber and what it put into its inbox."""

    def __init__(self, port: int, **settings: Any) -> None:
        self.items: list[Item] = []
        self.inbox = Inbox()
        mqtt = MqttSettings(port=port, **settings)
        self.subscriber = Subscriber(mqtt, filters(TOPICS.base), self.inbox)
        self.subscriber.start()

    def take(self) -> list[Item]:
        """Everything so far."""
        self.items += self.inbox.take(10_000)
        return self.items

    def wait(self, kind: type[Item], number: int = 1, limit_s: float = 20.0) -> list[Any]:
        """Wait until so many of a kind have come, and return them."""

        def found() -> list[Item]:
            return [item for item in self.take() if isinstance(item, kind)]

        wait_until(lambda: len(found()) >= number, f"{number} × {kind.__name__}", limit_s)
        return found()


@pytest.fixture
def session() -> Iterator[Callable[..., Session]]:
    """Starts sessions and ends them."""
    begun: list[Session] = []

    def start(port: int, **settings: Any) -> Session:
        begun.append(Session(port, **settings))
        return begun[-1]

    yield start
    for one in begun:
        one.subscriber.stop(5)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers and ends them."""
    brokers: list[Mosquitto] = []

    def start(*lines: str, anonymous: bool = True) -> Mosquitto:
        brokers.append(Mosquitto(tmp_path, *lines, anonymous=anonymous))
        return brokers[-1].start()

    yield start
    for broker in brokers:
        broker.kill()


def test_commands_and_replies_are_not_subscribed_to() -> None:
    """What others ask of the agent is none of a screen's business."""
    assert sorted(filters("b")) == sorted(
        [
            "b/status",
            "b/health",
            "b/current",
            "b/alert",
            "b/slide/+/posterior",
            "b/slide/+/final",
            "b/slide/+/patches",
            "b/patient/+/posterior",
            "b/patient/+/final",
        ]
    )


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_kept_and_live_messages_arrive(
    session: Callable[..., Session], mosquitto: Callable[..., Mosquitto], protocol: str
) -> None:
    """Whatever the protocol: what the broker kept is marked as such, what is said now is not."""
    broker = mosquitto()
    speaker, agent = Speaker(broker.port), Saying()
    speaker.say(agent.patient("p"))
    seen = session(broker.port, protocol=protocol)
    (kept,) = seen.wait(Arrived)
    speaker.say(agent.slide("p", "s"))
    live = seen.wait(Arrived, 2)[1]
    speaker.close()
    assert isinstance(seen.items[0], Linked)
    assert (kept.topic, kept.retained) == (f"{TOPICS.base}/patient/p/posterior", True)
    assert (live.topic, live.retained) == (f"{TOPICS.base}/slide/s/posterior", False)


def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(session: Callable[..., Session]) -> None:
    """The demo's embedded broker knows 3.1.1 only."""
    port = free_port()
    with EmbeddedBroker(port):
        seen = session(port)
        assert seen.wait(Linked, limit_s=30)
        seen.subscriber.stop(5)


def test_a_password_file_is_used_and_a_refusal_is_told(
    session: Callable[..., Session], mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """With the right password it connects; a wrong one is a reason in words."""
    passwords = tmp_path / "passwords"
    subprocess.run([need("mosquitto_passwd", "mosquitto"), "-b", "-c", passwords, "screen", "right"], check=True)
    broker = mosquitto(f"password_file {passwords}", anonymous=False)
    for word in ("right", "wrong"):
        (tmp_path / word).write_text(f"{word}\n")
    session(broker.port, username="screen", password_file=tmp_path / "right").wait(Linked)
    refused = session(broker.port, username="screen", password_file=tmp_path / "wrong")
    assert "refuses the connection: Not authorized" in refused.wait(Lost)[0].reason


def test_a_missing_password_file_is_a_setting_error(tmp_path: Path) -> None:
    """It is told at the start, not for ever in the log."""
    settings = MqttSettings(username="screen", password_file=tmp_path / "none")
    with pytest.raises(SettingsError, match=r"mqtt\.password_file"):
        Subscriber(settings, filters(DEFAULT_ROOT), Inbox())


def test_a_subscription_that_is_refused_is_not_a_connection(
    session: Callable[..., Session], mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A SUBACK that refuses: the reason names the user and the topics, and it never counts as connected."""
    if not DYNAMIC_SECURITY.exists():
        pytest.skip("mosquitto's dynamic security plug-in is not installed")
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    rules = tmp_path / "dynamic-security.json"
    rules.write_text(json.dumps({"defaultACLAccess": access, "clients": [], "groups": [], "roles": []}))
    broker = mosquitto(f"plugin {DYNAMIC_SECURITY}", f"plugin_opt_config_file {rules}")
    seen = session(broker.port)
    reason = seen.wait(Lost)[0].reason
    assert "does not let an anonymous user read" in reason and f"{TOPICS.base}/status" in reason
    assert not [item for item in seen.take() if isinstance(item, Linked)]


def test_it_comes_back_after_a_restart(session: Callable[..., Session], mosquitto: Callable[..., Mosquitto]) -> None:
    """The end of the broker is told at once, its return within two seconds and a connection's time."""
    broker = mosquitto()
    seen = session(broker.port)
    seen.wait(Linked)
    broker.kill()
    assert seen.wait(Lost, limit_s=1.0)
    seen.wait(Lost, 5)  # the backoff has reached its longest pause
    broker.start()
    seen.wait(Linked, 2, limit_s=4.0)


def test_a_frozen_broker_is_noticed(session: Callable[..., Session], mosquitto: Callable[..., Mosquitto]) -> None:
    """A broker that stands still closes no connection: the keepalive tells, and it comes back when that goes on."""
    broker = mosquitto()
    seen = session(broker.port)
    seen.wait(Linked)
    broker.send_signal(signal.SIGSTOP)
    try:
        assert seen.wait(Lost, limit_s=8.0)
    finally:
        broker.send_signal(signal.SIGCONT)
    seen.wait(Linked, 2, limit_s=8.0)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\xff\xff\xff\xff\xff", b"\x00" * 64]
)
def test_what_is_no_broker_is_a_reason_and_not_the_end(session: Callable[..., Session], answer: bytes) -> None:
    """Garbage, silence and closed doors end the attempt, and the next one follows."""

    def say(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(answer)

    with listening(say) as port:
        seen = session(port)
        assert all(item.reason for item in seen.wait(Lost, 3))
        seen.subscriber.stop(5)


def test_nobody_there_is_a_reason(session: Callable[..., Session]) -> None:
    """The operating system's own words."""
    assert "refused" in session(free_port()).wait(Lost)[0].reason


def test_a_stop_does_not_wait_for_a_broker(session: Callable[..., Session]) -> None:
    """While it waits between attempts, and while a broker says nothing."""
    hold = threading.Event()

    def say_nothing(_: socket.socket) -> None:
        hold.wait(10)

    with listening(say_nothing) as port:
        seen = session(port)
        seen.subscriber.stop(1)
        assert not seen.subscriber._thread.is_alive()
        hold.set()


def test_a_command_is_published_and_a_resync_brings_all_again(
    session: Callable[..., Session], mosquitto: Callable[..., Mosquitto]
) -> None:
    """What is asked goes out on its topic; what the broker keeps comes a second time on request."""
    broker = mosquitto()
    speaker, listener = Speaker(broker.port), Listener(broker.port)
    speaker.say(Saying().patient("p"))
    seen = session(broker.port)
    seen.wait(Arrived)
    seen.subscriber.ask(TOPICS.command("replay-state"), b'{"request_id":"1"}')
    wait_until(lambda: listener.bodies("cmd/replay-state") == [{"request_id": "1"}], "the command")
    seen.subscriber.resync()
    assert [item.retained for item in seen.wait(Arrived, 2)] == [True, True]
    speaker.close()
    listener.close()


def test_the_inbox_is_bounded_in_number_and_in_bytes() -> None:
    """Nothing grows while nobody takes; what found no room is counted, connection news always finds some."""
    inbox = Inbox()
    for _ in range(MAX_ITEMS + 7):
        inbox.arrive(Arrived("t", b"", False))
    inbox.tell(Lost("gone"))
    assert inbox.lost == 7
    assert len(list(inbox.take(MAX_ITEMS * 2))) == MAX_ITEMS + 1 and inbox.is_empty
    for _ in range(MAX_WAITING_BYTES // MAX_BYTES + 3):
        inbox.arrive(Arrived("t", b" " * MAX_BYTES, False))
    inbox.arrive(Arrived("t", b" " * (MAX_BYTES + 1), False))
    assert inbox.lost == 7 + 3 + 1
    list(inbox.take(1))
    inbox.arrive(Arrived("t", b"there is room again", False))
    assert inbox.lost == 11
