"""Real brokers and a real subscriber for tests: mosquitto as a process, paho as the other client."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

POLL_S = 0.01
DEADLINE_S = 20.0


def need(program: str, package: str) -> str:
    """The path of an external program; its absence fails in CI and skips elsewhere."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        message = f"{program} not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def wait_until(condition: Callable[[], object], what: str, limit_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds; fails the test with `what` when it does not in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {limit_s} s in vain: {what}")
        time.sleep(POLL_S)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Mosquitto:
    """One mosquitto on 127.0.0.1 that remembers nothing between starts."""

    def __init__(self, folder: Path, *settings: str, anonymous: bool = True) -> None:
        """`settings` are further lines of mosquitto.conf."""
        self._program = need("mosquitto", "mosquitto")
        self._folder = folder
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self.lines = ["persistence false", "user root", f"allow_anonymous {str(anonymous).lower()}", *settings]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Mosquitto:
        """Run until `kill`; returns when it listens."""
        config = self._folder / "mosquitto.conf"
        config.write_text("\n".join([f"listener {self.port} 127.0.0.1", *self.lines, ""]))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-v", "-c", str(config)], stderr=log, stdout=log)
        wait_until(lambda: self._ended() or _listens(self.port), "mosquitto listens")
        assert not self._ended(), self.log.read_text()
        return self

    def kill(self) -> None:
        """End it without any farewell."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send_signal(self, number: int) -> None:
        """SIGSTOP freezes it, SIGCONT lets it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


class Listener:
    """A subscriber of everything; comes back by itself when the broker does."""

    def __init__(self, port: int, **login: str) -> None:
        """`login` may give username and password."""
        self.messages: list[paho.MQTTMessage] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        if login:
            self._client.username_pw_set(login["username"], login["password"])
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _, __, message: self.messages.append(message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_until(self._subscribed.is_set, "the listener has subscribed")

    def bodies(self, topic_end: str = "") -> list[dict[str, Any]]:
        """What was received on topics with this ending, as parsed JSON, in the order of arrival."""
        return [json.loads(message.payload) for message in list(self.messages) if message.topic.endswith(topic_end)]

    def event_ids(self, topic_end: str = "") -> list[str]:
        """The event_ids received on topics with this ending, in the order of arrival."""
        return [str(body["event_id"]) for body in self.bodies(topic_end)]

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class listening:  # noqa: N801 - used like a function
    """A TCP server on 127.0.0.1 that is no broker: it does one thing with each connection and closes it."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        """`answer` runs on the server's thread."""
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="server")

    def __enter__(self) -> int:
        """Its port."""
        self._thread.start()
        return int(self._server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)
                connection.shutdown(socket.SHUT_WR)
