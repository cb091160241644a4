"""One file that may still be growing: its identity, its size so far, and its bytes by pread.

It knows nothing of formats. The file is opened read-only for each visit, so that no number of silent files holds
descriptors, and an unmounted share is not kept busy. Each call is marked (agent.calls): a share may not answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from agent.calls import asking

NOWHERE = (-1, -1)
"""Stamp of a file that is gone."""
RACY_S = 3.0
"""A file system may round times to two seconds: another change this soon after the last may not show in them."""


class Change(Enum):
    """What a visit found since the one before."""

    SAME = "same"
    GREW = "grew"
    REWRITTEN = "rewritten"
    """Another inode under this name, or fewer bytes than before: read again from the start."""
    GONE = "gone"


@dataclass(frozen=True)
class OpenWindow:
    """`agent.formats.Window` over an open descriptor; `size` is fixed for the visit."""

    descriptor: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; OSError when the file shrank under us."""
        with asking() as again:
            data = os.pread(self.descriptor, length, offset)
            while len(data) < length:
                again()
                more = os.pread(self.descriptor, length - len(data), offset + len(data))
                if not more:
                    raise OSError(f"the file ended at byte {offset + len(data)} while it was read")
                data += more
        return data


class Tail:
    """Follows one path. `now` is monotonic seconds, given by the caller."""

    def __init__(self, path: Path, now: float) -> None:
        self.path = path
        self.size = 0
        self.changed_at = now
        """When a visit last saw the file change."""
        self.mtime_ns = -1
        self.shows_changes = False
        """The last change was so long before the last visit that any later one has another time."""
        self._identity: tuple[int, int] | None = None

    @contextmanager
    def visit(self, now: float) -> Iterator[tuple[Change, OpenWindow | None]]:
        """What changed, and a window that is valid inside the block (None when the file is gone).

        OSErrors other than a missing file pass through (permission, an unreachable share).
        """
        try:
            with asking():
                # O_NONBLOCK: a pipe that somebody put into the folder must not hang the reader.
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            yield Change.GONE, None
            return
        try:
            with asking():
                status = os.fstat(descriptor)
            yield self._compare(status, now), OpenWindow(descriptor, status.st_size)
        finally:
            with asking():
                os.close(descriptor)

    @property
    def seen(self) -> tuple[int, int, int, int]:
        """(device, inode, size, mtime in ns) at the last visit."""
        return (*(self._identity or (-1, -1)), self.size, self.mtime_ns)

    def stands(self) -> tuple[int, int, int, int] | None:
        """What `seen` would be after a visit now; None when the file is gone. Raises OSError."""
        try:
            with asking():
                status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def stamp(self, now: float) -> tuple[int, int]:
        """(size, mtime in ns) as they are now; NOWHERE when the file is gone."""
        with self.visit(now) as (_, window):
            return NOWHERE if window is None else (self.size, self.mtime_ns)

    def forget(self) -> None:
        """Whatever the next visit finds is news."""
        self._identity, self.size, self.mtime_ns = None, 0, -1

    def quiet_s(self, now: float) -> float:
        """Seconds since the file last changed, as far as visits saw."""
        return now - self.changed_at

    def _compare(self, status: os.stat_result, now: float) -> Change:
        identity = (status.st_dev, status.st_ino)
        if self._identity is not None and (identity != self._identity or status.st_size < self.size):
            change = Change.REWRITTEN
        elif status.st_size != self.size or status.st_mtime_ns != self.mtime_ns:
            change = Change.GREW
        else:
            change = Change.SAME
        if change is not Change.SAME:
            self.changed_at = now
        self.shows_changes = time.time() - max(status.st_mtime, status.st_ctime) > RACY_S
        self._identity, self.size, self.mtime_ns = identity, status.st_size, status.st_mtime_ns
        return change
