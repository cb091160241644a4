"""What a process that meets identities must not leave behind: open files, core dumps, values in tracebacks.

An exception that nobody foresaw quotes whatever it met (a path, a DICOM value), which may be somebody's name. So of
such a one only its kind and its place are told; our own errors, whose words were chosen, are told in full.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

import structlog

from agent.errors import AgentError

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


@contextmanager
def discreet(umask: int = 0o077) -> Iterator[None]:
    """While this lasts, files are made for nobody else, no core is dumped, and what crashes is told without values.

    An error that nobody foresaw ends the process with code 1; those of ours pass. Usable as a decorator.
    """
    hooks, limits = (threading.excepthook, sys.unraisablehook), resource.getrlimit(resource.RLIMIT_CORE)
    old = os.umask(0o077)
    os.umask(old | umask)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    try:
        threading.excepthook = lambda crash: _crashed(crash.exc_value, crash.thread.name if crash.thread else "")
        sys.unraisablehook = lambda lost: _crashed(lost.exc_value, "")
        yield
    except AgentError:
        raise
    except Exception as error:  # noqa: BLE001 - the last place where it can be told without its values
        _crashed(error, "main")
        raise SystemExit(1) from None
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        resource.setrlimit(resource.RLIMIT_CORE, limits)
        os.umask(old)


def told(error: BaseException) -> str:
    """What may be said of an error: our own words, what the kernel says, or the kind alone."""
    if isinstance(error, AgentError):
        return str(error)
    said = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def anatomy(exc_info: ExcInfo) -> list[dict[str, Any]]:
    """For JSON logs: the kinds of an exception and of those behind it, and the lines of code where each happened."""
    return [
        {
            "exc_type": type(error).__name__,
            "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in _frames(error)],
        }
        for error in _chain(exc_info[1])
    ]


def write_anatomy(sio: TextIO, exc_info: ExcInfo) -> None:
    """The same for people."""
    for error in _chain(exc_info[1]):
        sio.write("\n" + "".join(traceback.format_list(_frames(error))) + told(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)


def _crashed(error: BaseException | None, where: str) -> None:
    if error is not None and not isinstance(error, SystemExit):
        structlog.get_logger("agent").error("crashed", thread=where, error=told(error), exc_info=error)
