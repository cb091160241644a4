"""The agent as a real process, with its settings file, its log and what it tells the service manager."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from agent.identity import Pseudonyms, load_or_create_key
from models.contract import SlideKey
from tests.brokers import wait_until

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "configs" / "profiles" / "phantom"
START_S = 60.0


class AgentProcess:
    """`python -m agent run` on a folder of its own; the engine is eager, so that nothing has to be built."""

    def __init__(self, home: Path, port: int, **settings: Any) -> None:
        """`settings` are further top-level sections of the settings file; those of `mqtt` are added to the test's."""
        self.home = home
        self.folder, self.state = home / "imager", home / "state"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = home / "agent.yaml"
        document = {
            "folder": str(self.folder),
            "state_dir": str(self.state),
            "profile": str(PROFILE),
            "site": "test",
            "engine": {"order": ["eager"], "threads": 1},
            "log": {"format": "json"},
            "mqtt": {"port": port, "health_interval_s": 0.2, **settings.pop("mqtt", {})},
            "patient": {"quiet_s": 2.0},
            "watch": {"scan_interval_s": 0.5, "settle_s": 0.3},
            **settings,
        }
        self.config.write_text(yaml.safe_dump(document))
        self.process: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        self.notified: list[str] = []

    def start(
        self,
        *,
        ready: bool = True,
        environment: Mapping[str, str] | None = None,
        fsize: int = 0,
        inside: Sequence[str] = (),
    ) -> AgentProcess:
        """Start; with `ready`, wait until it says so. `fsize` limits the files that it may write, bytes.

        `inside` is a sandbox's command line, which the agent's follows.
        """
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = self.home / f"notify-{len(self.notified)}"
        address.unlink(missing_ok=True)
        self._notify.bind(str(address))
        self._notify.setblocking(False)
        self.notified = []
        limit: Callable[[], None] | None = None
        if fsize:
            limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (fsize, fsize))  # noqa: E731
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*inside, sys.executable, "-m", "agent", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": str(address), **(environment or {})},
                preexec_fn=limit,
            )
        if ready:
            wait_until(lambda: self.said("READY=1") or self.ended, "the agent is ready", START_S)
            assert not self.ended, self.log()
        return self

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process is None or self.process.poll() is not None

    def said(self, word: str) -> bool:
        """Whether the service manager has been told this."""
        assert self._notify is not None
        while True:
            try:
                self.notified.append(self._notify.recv(4096).decode())
            except BlockingIOError:
                return any(word in said for said in self.notified)

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, limit_s: float = 30.0) -> int:
        """The exit code, once it has ended."""
        wait_until(lambda: self.ended, "the agent ends", limit_s)
        assert self.process is not None
        if self._notify is not None:
            self.said("")
            self._notify.close()
            self._notify = None
        return int(self.process.returncode)

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if not self.ended:
            self.signal(signal.SIGTERM)
        return self.wait()

    def log(self) -> str:
        """Everything it has logged, over all starts."""
        return (self.home / "log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log events of one name."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def pseudonym(self, patient: str, slide: str) -> SlideKey:
        """How the agent calls a slide, by the key in its state folder."""
        naming = Pseudonyms(load_or_create_key(self.state / "identity.key"))
        return SlideKey(naming.of("patient", patient), naming.of("slide", patient, slide))


def command(*words: str | Path, limit_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=limit_s,
        check=False,
    )
