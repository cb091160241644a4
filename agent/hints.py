"""File system events of a folder as hints where to look, on watchdog's threads. It decides nothing.

watchdog's reading thread can die, and its queue overflow, without a word: who uses this must not rely on it.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path

from watchdog.events import DirCreatedEvent, DirMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, EventEmitter

from agent.calls import answer_within, asking

MAX_HINTS = 65_536
"""Paths remembered from events; beyond it a scan looks at everything instead."""
STOP_LIMIT_S = 5.0
"""Longest wait for watchdog's threads to end: they, too, may stand in a call that never returns."""
TOLD = {"created", "modified", "attrib", "moved", "deleted", "closed"}
"""Kinds of events that matter. Our own reads raise others: opened, and closed without a write."""


class Hints(FileSystemEventHandler):
    """Paths that events have named since the last `take`. `wake` is called (on another thread) when one comes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._paths: deque[str | None] = deque(maxlen=MAX_HINTS)
        """None: more than one path, a scan must look."""
        self._observer: BaseObserver | None = None
        self._prefix = ""

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def wanted(self) -> bool:
        """Whether somebody listens, or did before its threads died."""
        return self._observer is not None

    @property
    def alive(self) -> bool:
        """Whether its visible threads live. The observer outlives its emitter, which ends with the folder."""
        observer = self._observer
        return observer is not None and observer.is_alive() and all(e.is_alive() for e in observer.emitters)

    def start(self, folder: Path) -> None:
        """Begin to listen. Raises OSError when the kernel gives no watch, RecursionError for too deep a tree."""
        # watchdog warns with the paths of the folder in it: identities, which must not reach the log.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
        emitters: list[EventEmitter] = []
        with asking():
            # A link in place of the folder would be watched itself, and nothing that happens behind it.
            real = os.path.realpath(folder)
            observer = Observer()
            try:
                observer.name = "watch-events"
                observer.schedule(self, real, recursive=True)
                emitters = list(observer.emitters)
                observer.start()
            except (OSError, RecursionError):
                for emitter in emitters:
                    emitter.stop()  # or each attempt would keep its descriptors
                observer.stop()
                raise
        self._observer, self._prefix = observer, real.rstrip("/") + os.sep

    def stop(self) -> None:
        """Stop listening; what was heard before is kept."""
        observer, self._observer = self._observer, None
        if observer is None:
            return

        def end() -> None:
            observer.stop()
            if observer.is_alive():
                observer.join()

        with asking():
            answer_within(STOP_LIMIT_S, end)

    def take(self) -> tuple[set[str], bool]:
        """The paths (relative, POSIX style), and whether a scan must look at everything; then they are forgotten."""
        is_whole = len(self._paths) == MAX_HINTS
        taken: set[str] = set()
        while self._paths:
            path = self._paths.popleft()
            if path is None:
                is_whole = True
            elif path.startswith(self._prefix):
                taken.add(path[len(self._prefix) :])
        return taken, is_whole

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Remember where to look and wake; called by watchdog."""
        if event.event_type not in TOLD:
            return
        if event.is_directory:
            if event.event_type == "modified":
                return
            # Files that are already inside a new directory raise no event of their own, and those of a directory
            # that may be entered again none either.
            whole = isinstance(event, DirCreatedEvent | DirMovedEvent) or event.event_type in ("deleted", "attrib")
            self._paths.append(None if whole else os.fsdecode(event.src_path))
        else:
            self._paths.append(os.fsdecode(event.src_path))
            if event.dest_path:
                self._paths.append(os.fsdecode(event.dest_path))
        self._wake()
