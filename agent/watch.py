"""What changed in the watched folder: a scan decides, file system events only make it look sooner.

It never writes to the folder and knows nothing of what the files mean. Network mounts are only scanned, since
nothing that another host writes there raises an event.
"""

from __future__ import annotations

import os
import stat
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog
from watchdog.events import DirCreatedEvent, DirMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, EventEmitter

from agent.mounts import file_system_of, is_network

Stamp = tuple[int, int, int, int]
"""(inode, size, mtime and ctime in ns): what a scan compares. A mended permission shows in ctime only."""
EVENTS_RETRY_S = 60.0
"""Pause before events are tried again after the kernel refused them."""
MAX_HINTS = 65_536
"""Paths remembered from events; beyond it a scan looks at everything instead."""


@dataclass
class Changes:
    """Paths relative to the folder, POSIX style, sorted."""

    touched: list[str] = field(default_factory=list)
    """New, grown or rewritten."""
    removed: list[str] = field(default_factory=list)
    scan_only: int = 0
    """How many of the touched ones no event had announced (0 where there are no events)."""
    unavailable: str | None = None
    """Why the folder itself could not be read; None when it could."""


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Hints(FileSystemEventHandler):
    """Runs on watchdog's thread: only remembers and wakes."""

    def __init__(self, hints: deque[str | None], wake: Callable[[], None]) -> None:
        self._hints = hints
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Our own reads raise opened and closed-without-write events.
        if event.event_type not in ("created", "modified", "moved", "deleted", "closed"):
            return
        if event.is_directory:
            if event.event_type == "modified":
                return
            # Files that are already inside a new directory raise no event of their own.
            whole = isinstance(event, DirCreatedEvent | DirMovedEvent) or event.event_type == "deleted"
            self._hints.append(None if whole else os.fsdecode(event.src_path))
        else:
            self._hints.append(os.fsdecode(event.src_path))
            if event.dest_path:
                self._hints.append(os.fsdecode(event.dest_path))
        self._wake()


class Watch:
    """The folder's changes, one `poll` at a time. `wake` is called (on another thread) when a poll would pay."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["auto", "events", "scan"] = "auto",
        scan_interval_s: float = 2.0,
        follow_symlinks: bool = False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.unavailable: str | None = None
        """Why the folder could not be read at the last scan; None when it could."""
        self.scan_only_finds = 0
        self._events = mode == "events" or (mode == "auto" and not is_network(file_system_of(folder)))
        self.scan_interval_s = scan_interval_s
        self._follow = follow_symlinks
        self._known: dict[str, Stamp] = {}
        self._hints: deque[str | None] = deque(maxlen=MAX_HINTS)
        self._wake = wake
        self._observer: BaseObserver | None = None
        self._next_scan = float("-inf")
        self.scanned_once = False
        self._told_no_events = False
        self._next_start = float("-inf")
        self._told_forbidden: set[str] = set()
        self._root: tuple[int, int] | None = None
        """Device and inode of the folder at the last scan."""
        self._log = structlog.get_logger("watch")

    def start(self) -> None:
        """Begin to listen for events, where there are any."""
        if not self._events:
            self._log.info("watching", by="scan", file_system=file_system_of(self.folder))
            return
        if not self.folder.is_dir():
            return  # the scan says so, and start is tried again
        # watchdog warns with the paths of the folder in it: identities, which must not reach the log.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
        emitters: list[EventEmitter] = []
        try:
            observer = Observer()
            observer.name = "watch-events"
            observer.schedule(_Hints(self._hints, self._wake), str(self.folder), recursive=True)
            emitters = list(observer.emitters)
            observer.start()
        except OSError as error:
            # No inotify watch or instance left: the scan carries on alone, and start is tried again in a while.
            for emitter in emitters:
                emitter.stop()  # or each attempt would keep its descriptors
            self._next_start = time.monotonic() + EVENTS_RETRY_S
            if not self._told_no_events:
                self._log.warning("no_events", detail=error.strerror)
            self._told_no_events = True
            return
        self._observer, self._told_no_events = observer, False
        self._log.info("watching", by="events and scan", file_system=file_system_of(self.folder))

    def stop(self) -> None:
        """Stop listening."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def wait_s(self, now: float) -> float:
        """Seconds until the next scan is due."""
        return 0.0 if self._hints else max(0.0, self._next_scan - now)

    def poll(self, now: float) -> Changes:
        """What changed since the last poll: what events hinted at, and everything when a scan is due."""
        hinted, whole = self._drain()
        touched = {path for path in hinted if self._look(path)}
        if not whole and now < self._next_scan:
            removed = [path for path in hinted if path in self._known and self._is_gone(path)]
            for path in removed:
                del self._known[path]
            return Changes(sorted(touched), sorted(removed), unavailable=self.unavailable)
        self._supervise()
        found = self._scan()
        self._next_scan = now + self.scan_interval_s
        if found is None:
            return Changes(sorted(touched), unavailable=self.unavailable)
        found_by_scan = {path for path, stamp in found.items() if self._known.get(path) != stamp}
        # What another folder under this name (an unmounted share's empty mount point) lacks was not removed.
        removed = [] if self.unavailable else [path for path in self._known if path not in found]
        self._known = found
        alone = len(found_by_scan - touched) if self._observer is not None and self.scanned_once and not whole else 0
        self.scan_only_finds += alone
        self.scanned_once = True
        return Changes(sorted(touched | found_by_scan), sorted(removed), alone, self.unavailable)

    def _drain(self) -> tuple[set[str], bool]:
        whole = len(self._hints) == MAX_HINTS
        hinted: set[str] = set()
        prefix = str(self.folder) + os.sep
        while self._hints:
            path = self._hints.popleft()
            if path is None:
                whole = True
            elif path.startswith(prefix):
                hinted.add(path[len(prefix) :])
        return hinted, whole

    def _look(self, path: str) -> bool:
        """Whether one hinted file is new or changed; remembers it."""
        try:
            status = (self.folder / path).stat(follow_symlinks=self._follow)
        except OSError:
            return False
        stamp = _stamp(status)
        if not stat.S_ISREG(status.st_mode) or self._known.get(path) == stamp:
            return False
        self._known[path] = stamp
        return True

    def _scan(self) -> dict[str, Stamp] | None:
        try:
            status = self.folder.stat()
            found = dict(self._walk(str(self.folder), ""))
        except OSError as error:
            # Not "everything was removed": an unmounted share says nothing about its files.
            self.unavailable = error.strerror or str(error)
            return None
        self.unavailable = None
        if self._root not in (None, (status.st_dev, status.st_ino)):
            self.unavailable = "another folder has taken its place (was a share unmounted?)"
            self.stop()
            self.start()
        self._root = (status.st_dev, status.st_ino)
        return found

    def _is_gone(self, path: str) -> bool:
        try:
            (self.folder / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # cannot be told now: the scan will
        return False

    def _walk(self, folder: str, prefix: str) -> Iterator[tuple[str, Stamp]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=self._follow):
                        yield from self._walk(entry.path, f"{prefix}{entry.name}/")
                    elif entry.is_file(follow_symlinks=self._follow):
                        status = entry.stat(follow_symlinks=self._follow)
                        yield f"{prefix}{entry.name}", _stamp(status)
                except FileNotFoundError:
                    continue  # vanished between listing and looking
                except PermissionError:
                    # Its files are not gone, they only cannot be seen now.
                    inside = f"{prefix}{entry.name}"
                    yield from ((p, s) for p, s in self._known.items() if p == inside or p.startswith(f"{inside}/"))
                    if inside not in self._told_forbidden:
                        self._told_forbidden.add(inside)
                        self._log.warning("not_permitted", detail="a folder or file cannot be looked at")

    def _supervise(self) -> None:
        """Start listening again when one of watchdog's threads has died or could not start."""
        if not self._events or self._listens():
            return
        if self._observer is not None:
            self._log.warning("events_lost", detail="the event thread died; it is started again")
            self.stop()
        if self.scanned_once and time.monotonic() >= self._next_start:
            self.start()

    def _listens(self) -> bool:
        """Whether events can come. The observer outlives its emitter, which ends when the folder is deleted."""
        observer = self._observer
        return observer is not None and observer.is_alive() and all(e.is_alive() for e in observer.emitters)
