"""Promises of agent.discretion: whatever goes wrong, no value of an unforeseen error is told, and nothing is left."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from agent.discretion import discreet, told
from agent.errors import FormatError, LedgerError

ROOT = Path(__file__).parents[2]
NAME = "Erika_Mustermann"

CRASHES = {
    "main": "raise KeyError(NAME)",
    "cause": """
        try:
            open("/imager/" + NAME)
        except OSError as error:
            raise ValueError(NAME) from error
    """,
    "thread": """
        thread = threading.Thread(target={}.__getitem__, args=(NAME,), name="watcher")
        thread.start()
        thread.join()
    """,
    "logged": """
        try:
            [].index(NAME)
        except ValueError:
            logging.getLogger("lib").exception("failed")
    """,
    "cleaning": "type('Bad', (), {'__del__': lambda self: {}[NAME]})()",
    "notes": "error = RuntimeError('x'); error.add_note(NAME); raise error",
}


@pytest.mark.parametrize("fmt", ["json", "console"])
@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_names_nobody(crash: str, fmt: str) -> None:
    """An error that nobody foresaw, anywhere: its kind and its lines of code are told, the value that it quotes is
    not."""
    code = f"""
import logging, threading
from agent.discretion import discreet
from agent.host import configure_logging
configure_logging("debug", {fmt!r})
NAME = "".join(map(chr, {[*NAME.encode()]}))
with discreet():
{textwrap.indent(textwrap.dedent(CRASHES[crash]), "    ")}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == int(crash in ("main", "cause", "notes")), done.stderr
    assert "Error" in done.stderr and ("<string>" in done.stderr or crash == "thread")
    assert NAME not in done.stdout + done.stderr
    if fmt == "json":
        (event,) = map(json.loads, done.stderr.splitlines())
        assert event["event"] == ("failed" if crash == "logged" else "crashed")
        assert event["exception"][0]["frames"]


def test_an_abort_leaves_no_core(tmp_path: Path) -> None:
    """SIGABRT in a process that could dump its memory, with names and pixels in it: nothing is written."""
    code = """
    import os
    from agent.discretion import discreet
    with discreet():
        os.abort()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2
        ),
    )
    assert done.returncode < 0
    assert list(tmp_path.iterdir()) == []


def test_files_are_made_for_nobody_else(tmp_path: Path) -> None:
    """Within, files are 0600 and folders 0700 (0640 and 0750 where a group reads along); a stricter umask stays."""
    old = os.umask(0o022)
    try:
        for umask, file_mode, folder_mode in ((0o077, 0o600, 0o700), (0o027, 0o640, 0o750)):
            with discreet(umask):
                (tmp_path / f"{umask}").touch()
                (tmp_path / f"{umask}d").mkdir()
            assert (tmp_path / f"{umask}").stat().st_mode & 0o777 == file_mode
            assert (tmp_path / f"{umask}d").stat().st_mode & 0o777 == folder_mode
        os.umask(0o077)
        with discreet(0o027):
            (tmp_path / "strict").touch()
        assert (tmp_path / "strict").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


def test_everything_is_as_before_afterwards() -> None:
    """Umask, limits and hooks come back, and our own errors pass as they are."""
    before = (resource.getrlimit(resource.RLIMIT_CORE), threading.excepthook, sys.unraisablehook)
    with pytest.raises(LedgerError, match="the disk is full"), discreet():
        raise LedgerError("the disk is full")
    assert before == (resource.getrlimit(resource.RLIMIT_CORE), threading.excepthook, sys.unraisablehook)


def test_what_is_told_of_an_error() -> None:
    """Our own words in full; the kernel's without the path; of anything else the kind."""
    assert told(FormatError("limits", "65536 px")) == "limits: 65536 px"
    assert told(PermissionError(13, "Permission denied", f"/imager/{NAME}")) == "PermissionError: Permission denied"
    assert told(KeyError(NAME)) == "KeyError"
