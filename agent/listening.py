"""Whether changes are heard: begins to listen, notices when events stop coming, and begins anew.

A thread of watchdog may live and be deaf. That shows only in what scans find: it is told here and judged here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import structlog

from agent.calls import asking
from agent.hints import Hints
from agent.mounts import file_system_of, is_network

RETRY_S = 60.0
"""Pause before events are tried again after the kernel refused them, or after they were lost again."""
HEARING_S = 1.0
"""Events may come so much later than a scan has found what they tell of."""
DEAF_SCANS = 3
"""Scans that found what no event told of even later, after which the threads that listen are taken for deaf."""


class Listening:
    """See the module's docstring. Belongs to the thread that polls the folder."""

    def __init__(self, folder: Path, mode: Literal["auto", "events", "scan"], hints: Hints) -> None:
        self.lost = 0
        """How often listening was begun anew, since events were lost or a thread had died."""
        self._folder = folder
        self._mode = mode
        self._hints = hints
        self._next_start = float("-inf")
        self._lost_at = float("-inf")
        self._told = ""
        """How changes are noticed, as it was last logged."""
        self._unannounced: set[str] = set()
        """What scans found from `_found_at` on and no event has told of since."""
        self._found_at = float("-inf")
        self._deaf_scans = 0
        self._log = structlog.get_logger("watch")

    @property
    def is_on(self) -> bool:
        """Whether events are listened for."""
        return self._hints.wanted

    def start(self) -> None:
        """Listen, where there are events and the folder is there."""
        kind = file_system_of(self._folder)
        if self._mode == "scan" or (self._mode == "auto" and is_network(kind)):
            self._next_start = time.monotonic() + RETRY_S  # something else may be mounted there by then
            self._tell("watching", by="scan", file_system=kind)
            return
        with asking():
            if not self._folder.is_dir():
                return  # the scan says so, and start is tried again
        try:
            self._hints.start(self._folder)
        except (OSError, RecursionError) as error:
            # No inotify watch or instance left: the scan carries on alone.
            self._next_start = time.monotonic() + RETRY_S
            detail = error.strerror if isinstance(error, OSError) else "the folders are nested too deep"
            self._tell("no_events", detail=detail)
            return
        self._deaf_scans, self._unannounced = 0, set()
        self._tell("watching", by="events and scan", file_system=kind)

    def stop(self) -> None:
        """Listen no more."""
        self._hints.stop()

    def supervise(self) -> None:
        """Begin when nobody listens: at first, after one of watchdog's threads has died or could not start."""
        if self._hints.alive:
            return
        if self._hints.wanted:
            self._lose("a thread that listens for events died")
        if time.monotonic() >= self._next_start:
            self.start()

    def hear(self, hinted: set[str], *, everything: bool) -> None:
        """Events told of these paths, or of more than can be named."""
        self._unannounced = set() if everything else self._unannounced - hinted

    def judge(self, alone: set[str]) -> None:
        """A scan found these, which no event has told of so far."""
        now = time.monotonic()
        if self._unannounced and now - self._found_at < HEARING_S:
            self._unannounced |= alone
            return
        self._deaf_scans += bool(self._unannounced)
        self._unannounced, self._found_at = alone, now
        if self._deaf_scans >= DEAF_SCANS:
            self._lose("scans found what no event had told of")

    def _lose(self, why: str) -> None:
        """Begin anew: at once, but not again and again where that does not help."""
        now = time.monotonic()
        self._next_start = now if now - self._lost_at > 10 * RETRY_S else now + RETRY_S
        self._lost_at = now
        self._deaf_scans, self._unannounced = 0, set()
        self.lost += 1
        self._told = ""
        self._log.warning("events_lost", detail=f"{why}; listening begins anew")
        self.stop()

    def _tell(self, event: str, **facts: object) -> None:
        """Log how changes are noticed, when that is something new."""
        if event != self._told:
            self._told = event
            (self._log.warning if event == "no_events" else self._log.info)(event, **facts)
