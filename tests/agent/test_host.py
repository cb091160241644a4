"""What the agent tells the machine: readiness, watchdog, logs, memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent.host import notify, rss_bytes, watchdog_interval_s

ROOT = Path(__file__).parents[2]


def test_a_signal_while_the_main_thread_waits_hangs_nothing() -> None:
    """Signals that come in the middle of waiting for the Event that they set, thousands of times; in a handler, that
    would wait for ever sooner or later. Afterwards the old handler is back.
    """
    code = """
    import os, signal, threading
    from agent.host import on_signals
    for _ in range(1500):
        came = threading.Event()
        with on_signals({signal.SIGTERM: came.set}):
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM)).start()
            while not came.is_set():
                came.wait(1e-5)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """A datagram with the state arrives at $NOTIFY_SOCKET, be it a path or (leading @) an abstract socket."""
    name = f"@spinextract-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1")
        assert notify("WATCHDOG=1\nSTATUS=imaging")
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"WATCHDOG=1\nSTATUS=imaging"]


def test_notify_without_a_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand, nothing is sent; a socket that is not there is an error, not silence."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    with pytest.raises(FileNotFoundError):
        notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    with pytest.raises(OSError, match="vsock"):
        notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("30000000", None, 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", None),
        (None, None, None),
        ("0", None, None),
    ],
)
def test_the_watchdog_is_fed_twice_per_limit(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, interval_s: float | None
) -> None:
    """Half of $WATCHDOG_USEC, unless systemd watches another process or none."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval_s


def test_rss_agrees_with_the_kernels_other_account() -> None:
    """Resident memory is what /proc/self/status says, within what changes between two looks."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (said,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    assert rss_bytes() == pytest.approx(said, rel=0.1)


LOGGER = """
    import logging, os, sys, warnings
    import structlog
    from agent.host import configure_logging
    journal = os.fstat(2)
    if {journal}:
        os.environ["JOURNAL_STREAM"] = f"{{journal.st_dev}}:{{journal.st_ino}}"
    configure_logging("info", {fmt!r})
    log = structlog.get_logger("agent.test")
    log.debug("hidden")
    log.info("slide_complete", slide="abc", patches=360, path=__import__("pathlib").Path("x"))
    logging.getLogger("some.library").warning("library says %s", "hello")
    logging.getLogger("watchdog.observers").info("/imager/Jane_Doe/strip.dcm")
    logging.getLogger("pydicom").error("Invalid value 'Jane Doe'")
    warnings.warn("a warning", stacklevel=1)
    secret = "Jane Doe"
    try:
        {{}}["missing"]
    except KeyError:
        log.exception("room_failed")
    print("output")
"""


def logged(fmt: str, journal: bool = False) -> tuple[str, list[str]]:
    """stdout and the lines of stderr of a process that logs."""
    script = textwrap.dedent(LOGGER.format(fmt=fmt, journal=journal))
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    return done.stdout, done.stderr.splitlines()


def test_logs_are_json_lines_on_stderr_where_nobody_reads_along() -> None:
    """`auto` without a terminal: one JSON object per event, ours and the libraries', and stdout is free."""
    out, lines = logged("auto")
    events = [json.loads(line) for line in lines]
    assert out == "output\n"
    assert [event["event"] for event in events[:2]] == ["slide_complete", "library says hello"]
    first = events[0]
    assert (first["level"], first["logger"], first["slide"], first["patches"]) == ("info", "agent.test", "abc", 360)
    assert first["timestamp"].endswith("Z")
    assert "a warning" in events[2]["event"]
    assert events[3]["exception"][0]["exc_type"] == "KeyError"
    assert len(events) == 4


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_identity_leaks_through_tracebacks_or_libraries(fmt: str) -> None:
    """Local variables, watched paths and quoted DICOM values stay out of the log in every format."""
    _, lines = logged(fmt)
    text = "\n".join(lines)
    assert "room_failed" in text and "KeyError" in text
    assert "Jane" not in text


def test_the_journal_gets_a_priority_on_every_line() -> None:
    """When stderr is the journal's stream, each line starts with <6>, <4> or <3> as its level says."""
    _, lines = logged("json", journal=True)
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<4>", "<3>"]
    assert json.loads(lines[0][3:])["event"] == "slide_complete"
    _, lines = logged("console", journal=True)
    assert all(line[:1] == "<" and line[2:3] == ">" for line in lines)
