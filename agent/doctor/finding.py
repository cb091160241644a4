"""What a check finds, and how long it may take: a share that hangs must not hang the doctor."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from agent.errors import AgentError
from agent.settings import Settings

Verdict = Literal["ok", "warn", "fail"]
LIMIT_S = 5.0
_FAILURES = (OSError, ValueError, LookupError, RuntimeError, AgentError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Finding:
    """One line of the examination. It names no file of the watched folder: such names are identities."""

    check: str
    """A stable word."""
    verdict: Verdict
    found: str
    """What is there."""
    why: str = ""
    """Why it matters; empty when nothing is wrong."""
    mend: str = ""
    """What to do about it, a command where there is one; empty when nothing is wrong."""


@dataclass(frozen=True)
class Check:
    """Something to look at, and what it means when no answer comes."""

    name: str
    run: Callable[[Settings], Iterator[Finding]]
    limit_s: float = LIMIT_S
    late_why: str = "the agent would wait for it, too"
    late_mend: str = "find out what hangs: `dmesg | tail` and `mount` often tell"

    def findings(self, settings: Settings) -> Iterator[Finding]:
        """What it finds within its limit."""
        return limited(self.name, partial(self.run, settings), self.limit_s, self.late_why, self.late_mend)


def limited(
    name: str, run: Callable[[], Iterator[Finding]], limit_s: float, late_why: str, late_mend: str
) -> Iterator[Finding]:
    """The findings of a check as they come; one that says so when it fails or does not answer in time.

    It runs on a thread of its own, which is left behind when it hangs.
    """
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for finding in run():
                found.put(finding)
        except _FAILURES as error:
            why = "this could not be examined, which says nothing about the agent itself"
            found.put(Finding(name, "warn", f"the check itself failed: {_said(error)}", why, "look at it by hand"))
        finally:
            found.put(None)

    threading.Thread(target=work, name=f"doctor-{name}", daemon=True).start()
    deadline = time.monotonic() + limit_s
    while True:
        try:
            finding = found.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield Finding(name, "fail", f"no answer within {limit_s:g} s", late_why, late_mend)
            return
        if finding is None:
            return
        yield finding


def _said(error: BaseException) -> str:
    """What an error says, without the path of an OSError: it may be a patient's."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join((text or "").split()) or type(error).__name__


def is_there(path: Path) -> bool:
    """Whether a path exists, as far as this user may know: one that may not be looked at is taken to exist."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
