"""Runs the rooms on a thread each, feeds the service manager's watchdog, takes settings over, ends in time.

A room that dies ends the process. Knows no room's work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from agent import host
from agent.calls import asked_s, longest_s
from agent.discretion import told
from agent.errors import AgentError
from agent.handover import Cancelled, CancelToken
from agent.pulse import Pulse
from agent.reload import LiveSettings

log = structlog.get_logger("agent")
LOOK_S = 0.01
JOIN_S = 0.05
LEAVE_S = 1.0
"""When all shall leave at once, a file system has so long to answer."""


def oversee(
    rooms: Mapping[str, Callable[[], None]],
    token: CancelToken,
    pulse: Pulse,
    live: LiveSettings,
    *,
    has_looked: Callable[[], bool] = lambda: True,
    give_up: Callable[[], None] = lambda: None,
) -> bool:
    """Start every room and stay until all have ended; `token` tells how.

    READY waits for `has_looked`: what lay in the folder has been listed, so that whatever comes later is new; but not
    for a folder that does not answer. At the end a room that stands in such a call is left behind: `give_up` ends the
    hand-over behind it, so that the others finish. Returns False when there was one.
    """
    # Daemon threads, for the sake of the one that is left behind: the interpreter would wait for it at its own end.
    threads = [
        threading.Thread(target=_room, args=(*item, token), name=item[0], daemon=True) for item in rooms.items()
    ]
    for thread in threads:
        thread.start()
    try:
        while not has_looked() and not _hangs(live) and not token.stopping.wait(LOOK_S):
            pass
        if not token.stopping.is_set():
            host.notify(f"READY=1\nSTATUS=watching {live.now.folder}")
            log.info("ready", folder=str(live.now.folder))
        _watch_over(threads, token, pulse, live)
    except OSError as error:
        # It would end us for our silence: better to say why.
        reason = f"the service manager cannot be told anything (NOTIFY_SOCKET): {error.strerror or error}"
        token.fail("overseer", AgentError(reason))
    return _see_out(threads, token, pulse, live.now.pipeline.stop_limit_s, give_up)


def _hangs(live: LiveSettings) -> bool:
    return (longest_s() or 0.0) >= live.now.watch.answer_limit_s


def _watch_over(threads: list[threading.Thread], token: CancelToken, pulse: Pulse, live: LiveSettings) -> None:
    """Until the process shall stop."""
    interval_s = host.watchdog_interval_s()
    while not token.stopping.is_set() and any(thread.is_alive() for thread in threads):
        _feed(pulse, interval_s)
        live.turn()
        token.stopping.wait(min(interval_s or 1.0, 1.0))
    if token.stopping.is_set():
        host.notify("STOPPING=1")
        log.info("stopping", limit_s=live.now.pipeline.stop_limit_s)


def _see_out(
    threads: list[threading.Thread], token: CancelToken, pulse: Pulse, limit_s: float, give_up: Callable[[], None]
) -> bool:
    """Until every room has ended, but for one that a file system keeps; after `limit_s` they are told to leave."""
    interval_s = host.watchdog_interval_s()
    deadline = time.monotonic() + limit_s
    left: list[threading.Thread] = []
    while living := [thread for thread in threads if thread.is_alive() and thread not in left]:
        if time.monotonic() >= deadline:
            token.cancel()
        # Half of the time is for the rooms behind it.
        patience_s = LEAVE_S if token.cancelled.is_set() else limit_s / 2
        kept = [thread for thread in living if (asked_s(thread.ident) or 0.0) > patience_s]
        if kept:
            left += kept
            log.error(
                "left_behind", room=kept[0].name, detail="the folder does not answer; what it keeps is read later"
            )
            give_up()
        with suppress(OSError):
            _feed(pulse, interval_s)
        living[0].join(JOIN_S)
    return not left


def _feed(pulse: Pulse, interval_s: float | None) -> None:
    if interval_s is not None and pulse.is_healthy(2 * interval_s):
        host.notify("WATCHDOG=1")


def _room(name: str, run: Callable[[], None], token: CancelToken) -> None:
    try:
        run()
    except Cancelled:
        log.debug("room_cancelled", room=name)
    except BaseException as error:
        log.error("room_failed", room=name, exc_info=not isinstance(error, AgentError), error=told(error))
        token.fail(name, error)
