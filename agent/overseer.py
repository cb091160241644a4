"""Runs the rooms on a thread each, feeds the service manager's watchdog, takes settings over, ends in time.

A room that dies ends the process. Knows no room's work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from agent import host
from agent.errors import AgentError
from agent.handover import Cancelled, CancelToken
from agent.health import Pulse
from agent.reload import LiveSettings

log = structlog.get_logger("agent")
LOOK_S = 0.01


def oversee(
    rooms: Mapping[str, Callable[[], None]],
    token: CancelToken,
    pulse: Pulse,
    live: LiveSettings,
    has_looked: Callable[[], bool] = lambda: True,
) -> None:
    """Start every room and stay until all have ended; `token` tells how.

    READY waits for `has_looked`: what lay in the folder has been listed, so that whatever comes later is new.
    """
    threads = [threading.Thread(target=_room, args=(*item, token), name=item[0]) for item in rooms.items()]
    for thread in threads:
        thread.start()
    try:
        while not has_looked() and not token.stopping.wait(LOOK_S):
            pass
        if not token.stopping.is_set():
            host.notify(f"READY=1\nSTATUS=watching {live.now.folder}")
            log.info("ready", folder=str(live.now.folder))
        _watch_over(threads, token, pulse, live)
    except OSError as error:
        # It would end us for our silence: better to say why.
        reason = f"the service manager cannot be told anything (NOTIFY_SOCKET): {error.strerror or error}"
        token.fail("overseer", AgentError(reason))
    for thread in threads:
        thread.join()


def _watch_over(threads: list[threading.Thread], token: CancelToken, pulse: Pulse, live: LiveSettings) -> None:
    interval_s = host.watchdog_interval_s()
    deadline = None
    while any(thread.is_alive() for thread in threads):
        if interval_s is not None and pulse.is_healthy(2 * interval_s):
            host.notify("WATCHDOG=1")
        if token.stopping.is_set() and deadline is None:
            limit_s = live.now.pipeline.stop_limit_s
            deadline = time.monotonic() + limit_s
            host.notify("STOPPING=1")
            log.info("stopping", limit_s=limit_s)
        if deadline is not None and time.monotonic() >= deadline:
            token.cancel()
        if token.stopping.is_set():
            for thread in threads:
                thread.join(0.05)
        else:
            live.turn()
            token.stopping.wait(min(interval_s or 1.0, 1.0))


def _room(name: str, run: Callable[[], None], token: CancelToken) -> None:
    try:
        run()
    except Cancelled:
        log.debug("room_cancelled", room=name)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename2 = None  # a path names a patient
        log.error("room_failed", room=name, exc_info=not isinstance(error, AgentError), error=str(error))
        token.fail(name, error)
