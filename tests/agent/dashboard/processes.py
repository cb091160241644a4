"""The dashboard as a real process, a browser's view of its events, and an agent that speaks over a real broker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from agent.topics import Message
from tests.brokers import wait_until

ROOT = Path(__file__).resolve().parents[3]


class DashboardProcess:
    """`python -m agent dashboard` with a settings file of its own, on a free port."""

    def __init__(self, home: Path, broker_port: int, **mqtt: Any) -> None:
        """`mqtt` are further settings of that section."""
        self.home = home
        document = {
            "folder": str(home / "imager"),
            "state_dir": str(home / "state"),
            "profile": str(home / "profile"),
            "log": {"format": "json"},
            "mqtt": {"port": broker_port, **mqtt},
            "dashboard": {"port": 0, "names": ["theatre-3.example"]},
        }
        self.config = home / "dashboard.yaml"
        self.config.write_text(yaml.safe_dump(document))
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self, *words: str, environment: Mapping[str, str] | None = None) -> DashboardProcess:
        """Start it, and wait until it serves."""
        command = [sys.executable, "-m", "agent", "dashboard", "--config", str(self.config), *words]
        with (self.home / "dashboard.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("dashboard at http://"), (line, self.log())
        self.url = line.split()[2]
        return self

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it logged."""
        return (self.home / "dashboard.log").read_text(encoding="utf-8")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Logged events of that name."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of one request; `path` goes out as it is."""
        connection = self.connection()
        try:
            connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def connection(self) -> http.client.HTTPConnection:
        """A fresh connection to it."""
        where = urlsplit(self.url)
        return http.client.HTTPConnection(str(where.hostname), where.port, timeout=10)

    def rss_kib(self) -> int:
        """Its resident memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 10.0) -> int:
        """End it by a signal; returns the exit code."""
        assert self._process is not None and self._process.stdout is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(limit_s)
        finally:
            self._process.stdout.close()

    def kill(self) -> None:
        """End it without any farewell, should it still run."""
        if self._process is not None and self._process.stdout is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process.stdout.close()


class Events:
    """One browser: reads the dashboard's events on a thread of its own."""

    def __init__(self, dashboard: DashboardProcess) -> None:
        self.views: list[dict[str, Any]] = []
        self.patches: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self._connection = dashboard.connection()
        self._connection.request("GET", "/events", headers={"Accept": "text/event-stream"})
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()
        self.content_type = self._answer.getheader("content-type", "")
        self._sock = self._connection.sock
        self._thread = threading.Thread(target=self._read, name="browser")

    def __enter__(self) -> Events:
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._answer.close()
        self._connection.close()

    @property
    def view(self) -> dict[str, Any]:
        """The newest view; waits for the first."""
        wait_until(lambda: self.views, "a view arrives")
        return self.views[-1]

    def wait(self, what: str, limit_s: float = 20.0, **expected: Any) -> dict[str, Any]:
        """Wait for a view whose parts are as expected (`broker__state="lost"`), and return it."""

        def fits(view: dict[str, Any]) -> bool:
            return all(_part(view, path) == value for path, value in expected.items())

        wait_until(lambda: self.views and fits(self.views[-1]), what, limit_s)
        return next(view for view in reversed(self.views) if fits(view))

    def _read(self) -> None:
        name = ""
        with suppress(OSError, http.client.HTTPException, ValueError):
            while line := self._answer.readline():
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    (self.views if name == "view" else self.patches).append(json.loads(value))
        self.ended.set()


class Speaker:
    """A client that publishes what it is given; comes back by itself when the broker does."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.on_socket_open = _send_at_once
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def say(self, *messages: Message) -> None:
        """Publish; returns when the last one has left (QoS 0) or was acknowledged."""
        sent = [self._client.publish(m.topic, m.payload, m.qos, m.retain) for m in messages]
        wait_until(lambda: sent[-1].is_published(), "the broker has taken the message")

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def _send_at_once(_: object, __: object, sock: Any) -> None:
    """A small message must not wait for the acknowledgement of the one before."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _part(view: dict[str, Any], path: str) -> Any:
    found: Any = view
    for name in path.split("__"):
        found = None if found is None else found[name]
    return found
