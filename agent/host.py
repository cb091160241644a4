"""What the agent tells the machine it runs on: readiness and watchdog to systemd, logs to stderr, its memory; and
how it hears signals.

Knows nothing of slides or messages.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import structlog
from structlog.typing import Processor

from agent import discretion

_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""syslog priorities (sd-daemon(3)) by log level."""


def notify(state: str) -> bool:
    """Send `READY=1`, `WATCHDOG=1`, `STOPPING=1`, `STATUS=...` to the service manager, see sd_notify(3).

    True when it was sent; False without a service manager. A manager that cannot be reached raises OSError, so
    that a service that would be killed for its silence says why.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        raise OSError(f"NOTIFY_SOCKET={address!r} is neither a path nor an abstract socket")
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.sendall(state.encode())
    return True


@contextmanager
def on_signals(calls: Mapping[int, Callable[[], None]]) -> Iterator[None]:
    """While this lasts, each of these signals makes its call, on another thread. Old handlers come back.

    A handler interrupts the main thread anywhere, in the middle of waiting for the Event that it would set, too, and
    then both wait for ever. So it only fills a queue, whose `put` may interrupt anything.
    """
    came: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def obey() -> None:
        while (number := came.get()) is not None:
            calls[number]()

    thread = threading.Thread(target=obey, name="signals", daemon=True)
    thread.start()
    old = {number: signal.signal(number, lambda number, _: came.put(number)) for number in calls}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        came.put(None)
        thread.join()


def watchdog_interval_s() -> float | None:
    """How often to send `WATCHDOG=1`: half of what systemd allows; None when it does not watch this process."""
    pid = os.environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    try:
        allowed_us = int(os.environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return allowed_us / 2e6 if allowed_us > 0 else None


def rss_bytes() -> int:
    """Resident memory of this process, bytes (proc_pid_statm(5))."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def configure_logging(level: str = "info", fmt: Literal["json", "console", "auto"] = "auto") -> None:
    """Send every log event of this process, ours and the libraries', to stderr through one renderer.

    stdout belongs to what commands print. `auto` writes text on a terminal and JSON lines elsewhere. When stderr
    goes to the journal, each line starts with its `<priority>`. Tracebacks show neither values nor local
    variables: these hold identifiers (agent.discretion).
    """
    as_json = fmt == "json" or (fmt == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    handler = logging.StreamHandler(sys.stderr)
    formatter = _JournalFormatter if _stderr_is_journal(os.environ) else structlog.stdlib.ProcessorFormatter
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        formatter(foreign_pre_chain=shared, processors=[remove_meta, *(_json() if as_json else _console())])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    _quiet_libraries()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def set_level(level: str) -> None:
    """From now on, log what is at least this severe."""
    logging.getLogger().setLevel(level.upper())


def _quiet_libraries() -> None:
    logging.captureWarnings(True)
    # File names and DICOM values hold identities: watchdog logs every path, pydicom quotes what it doubts.
    for name in ("watchdog", "amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def _json() -> list[Processor]:
    return [
        structlog.processors.ExceptionRenderer(discretion.anatomy),
        structlog.processors.JSONRenderer(sort_keys=False, default=str),
    ]


def _console() -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=discretion.write_anatomy)]


class _JournalFormatter(structlog.stdlib.ProcessorFormatter):
    """Puts the journal's `<priority>` in front of every line."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelname.lower(), 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _stderr_is_journal(environment: Mapping[str, str]) -> bool:
    """Whether stderr is the stream that systemd connected to the journal.

    JOURNAL_STREAM names its device and inode (systemd.exec(5)). INVOCATION_ID would not do: every shell of a
    desktop session inherits it.
    """
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
