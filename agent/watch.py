"""What changed in the watched folder: a scan decides, file system events only make it look sooner.

It never writes to the folder and knows nothing of what the files mean. Network mounts are only scanned, since
nothing that another host writes there raises an event.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from agent.calls import asking, kept_s
from agent.hints import Hints
from agent.listening import Listening
from agent.walk import Found, Stamp, stamp_of, walk

SCAN_REST = 4
"""A scan is followed by so many times its own length without one: a large folder must not keep the reader busy."""


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
    away_s: float = field(default=0.0, compare=False)
    """Seconds since the last poll with an available folder in which it was not, or did not answer: no silence."""


class Watch:
    """The folder's changes, one `poll` at a time. `wake` is called (on another thread) when a poll would pay.

    Whatever asks the folder runs on the thread that polls, and is marked in agent.calls: the folder may not answer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["auto", "events", "scan"] = "auto",
        scan_interval_s: float = 2.0,
        follow_symlinks: Iterable[Path] = (),
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`follow_symlinks`: folders into which symbolic links may lead; see agent.walk."""
        self.folder = folder
        self.unavailable: str | None = None
        """Why the folder could not be read at the last scan; None when it could."""
        self.scan_only_finds = 0
        self.scan_interval_s = scan_interval_s
        self.scanned_once = False
        self._link_targets = tuple(follow_symlinks)
        self._known: dict[str, Stamp] = {}
        self._hints = Hints(wake)
        self._listening = Listening(folder, mode, self._hints)
        self._is_whole_wanted = False
        """Something was heard that only a scan can tell."""
        self._kept_s: float | None = None
        """Seconds that slow calls had kept the thread at the last poll with an available folder; None before it."""
        self._missed_at: float | None = None
        """Monotonic seconds at which the folder became unavailable."""
        self._next_scan = float("-inf")
        self._rests_until = float("-inf")
        self._closed: dict[str, str] = {}
        """What could not be looked at in the last scan."""
        self._root: tuple[int, int] | None = None
        """Device and inode of the folder at the last scan."""
        self._log = structlog.get_logger("watch")

    def start(self) -> None:
        """Begin to listen for events, where there are any; the first `poll` does it, too."""
        self._listening.start()

    def stop(self) -> None:
        """Stop listening."""
        self._listening.stop()

    @property
    def events_lost(self) -> int:
        """How often listening was begun anew, since events were lost."""
        return self._listening.lost

    def wait_s(self, now: float) -> float:
        """Seconds until a poll would find something, as far as can be known now."""
        wait_s = max(0.0, self._next_scan - now)
        if self._is_whole_wanted:
            wait_s = min(wait_s, max(0.0, self._rests_until - time.monotonic()))
        return 0.0 if len(self._hints) else wait_s

    def modified_ns(self, path: str) -> int | None:
        """When a file was last modified by its file system's clock, as of the last look; None for an unknown path."""
        stamp = self._known.get(path)
        return None if stamp is None else stamp[2]

    def poll(self, now: float) -> Changes:
        """What changed since the last poll: what events hinted at, and everything when a scan is due."""
        changes = self._poll(now)
        if changes.unavailable is None:
            missed_s = 0.0 if self._missed_at is None else time.monotonic() - self._missed_at
            kept = kept_s()
            changes.away_s = max(missed_s, 0.0 if self._kept_s is None else kept - self._kept_s)
            self._kept_s, self._missed_at = kept, None
        elif self._missed_at is None:
            self._missed_at = time.monotonic()
        return changes

    def _poll(self, now: float) -> Changes:
        hinted, is_whole = self._hints.take()
        self._is_whole_wanted |= is_whole
        self._listening.hear(hinted, everything=is_whole)
        with asking() as again:
            touched = {path for path in hinted if self._look(path, again)}
            if now < self._next_scan and not (self._is_whole_wanted and time.monotonic() >= self._rests_until):
                removed = [path for path in hinted if path in self._known and self._is_gone(path, again)]
                for path in removed:
                    del self._known[path]
                return Changes(sorted(touched), sorted(removed), unavailable=self.unavailable)
        return self._poll_whole(now, touched)

    def _poll_whole(self, now: float, touched: set[str]) -> Changes:
        was_heard, self._is_whole_wanted = self._is_whole_wanted, False
        if self.unavailable is None:
            self._listening.supervise()
        begun, root = time.monotonic(), self._root
        found = self._scan()
        busy_s = (1 + SCAN_REST) * (time.monotonic() - begun)
        self._rests_until = begun + busy_s
        self._next_scan = now + max(self.scan_interval_s, busy_s)
        if found is None:
            return Changes(sorted(touched), unavailable=self.unavailable)
        found_by_scan = {path for path, stamp in found.files.items() if self._known.get(path) != stamp}
        # What another folder under this name lacks was not removed.
        removed = [] if self.unavailable else [path for path in self._known if path not in found.files]
        self._known = found.files
        alone: set[str] = set()
        if self._listening.is_on and self._root == root and not was_heard:
            alone = found_by_scan - touched - found.behind_links
        self.scan_only_finds += len(alone)
        self._listening.judge(alone)
        self.scanned_once = True
        return Changes(sorted(touched | found_by_scan), sorted(removed), len(alone), self.unavailable)

    def _look(self, path: str, again: Callable[[], None]) -> bool:
        """Whether one hinted file is new or changed; remembers it."""
        again()
        try:
            status = (self.folder / path).lstat()
        except OSError:
            return False
        stamp = stamp_of(status)
        if not stat.S_ISREG(status.st_mode) or self._known.get(path) == stamp:
            return False
        self._known[path] = stamp
        return True

    def _is_gone(self, path: str, again: Callable[[], None]) -> bool:
        again()
        try:
            (self.folder / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # cannot be told now: the scan will
        return False

    def _scan(self) -> Found | None:
        """Everything in the folder; None when it says nothing about the files that are known."""
        try:
            with asking():
                status = self.folder.stat()
            found = walk(self.folder, self._link_targets)
        except OSError as error:
            # Not "everything was removed": an unmounted share says nothing about its files.
            self._miss(error.strerror or str(error))
            return None
        root, before = (status.st_dev, status.st_ino), self._root
        self.unavailable = None
        if before is not None and root != before:
            if self._known and root[0] != before[0] and not found.files and not found.closed:
                self._miss("it is empty and on another file system than before (was a share unmounted?)")
                return None
            if self._known:
                self.unavailable = "another folder has taken its place (was a share unmounted?)"
            self.stop()
            self.start()
        self._root = root
        self._keep_closed(found)
        return found

    def _miss(self, why: str) -> None:
        """The folder is away. Whatever comes in its place, be it itself, is listened to anew."""
        self.unavailable = why
        self.stop()

    def _keep_closed(self, found: Found) -> None:
        """What cannot be seen now is not gone: it stays as it was known."""
        if found.closed:
            found.files.update({p: s for p, s in self._known.items() if p not in found.files and found.is_closed(p)})
        for why in sorted({why for path, why in found.closed.items() if path not in self._closed}):
            self._log.warning("not_permitted", detail=f"a folder or file inside cannot be looked at: {why}")
        self._closed = found.closed
