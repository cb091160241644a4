"""The demo's processes: the agent and the dashboard, started as anybody would start them, and ended with the demo."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PAGE_LIMIT_S = 30.0
END_LIMIT_S = 20.0


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While this lasts, SIGTERM unwinds the demo as Ctrl-C does: nothing that it started outlives it."""

    def unwind(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


@contextlib.contextmanager
def agent_process(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m agent run`; what it says goes to the log."""
    with log.open("ab") as sink:
        agent = subprocess.Popen(_words("run", config), stdout=sink, stderr=sink)
    try:
        yield agent
    finally:
        _end(agent)


class DashboardProcess:
    """A context manager: `python -m agent dashboard` on a free port. The demo goes on without it, and says why."""

    def __init__(self, config: Path, home: Path, *, open_page: bool) -> None:
        """`open_page` shows the page in this machine's browser."""
        self._words = [*_words("dashboard", config), "--port", "0", *(["--open"] if open_page else [])]
        self._said, self._log = home / "dashboard.out", home / "dashboard.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> DashboardProcess:
        with self._said.open("wb") as said, self._log.open("wb") as log:
            self._process = subprocess.Popen(self._words, stdout=said, stderr=log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            _end(self._process)

    def announcement(self) -> str:
        """Where the page is, once it is there, or why there is none."""
        assert self._process is not None
        deadline, pause = time.monotonic() + PAGE_LIMIT_S, threading.Event()
        while not (found := re.search(r"http://\S+", self._said.read_text(encoding="utf-8"))):
            if self._process.poll() is not None:
                return f"no dashboard: {last_line(self._log)}"
            if time.monotonic() > deadline:
                return f"no dashboard within {PAGE_LIMIT_S:.0f} s; see {self._log}"
            pause.wait(0.05)
        self.url = found.group()
        return f"dashboard {self.url}"


def last_line(log: Path) -> str:
    """What a process said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _words(command: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "agent", command, "--config", str(config)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
