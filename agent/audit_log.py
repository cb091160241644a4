"""The files of the audit log: where a line comes to lie, and that it lies there once, whoever is killed when.

The ledger's rows say how the log must end (agent.audit); this makes the files agree with them. It cuts off only what
was never finished or what a row can write again: a log that somebody changed is told of, and kept as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.audit_chain import START, Entry, read_line

LARGEST_BYTES = 8 << 20
"""A file that has grown to this is followed by a new one."""


class Row(NamedTuple):
    """An entry that the ledger holds."""

    seq: int
    line: str

    @property
    def written(self) -> bytes:
        """As it stands in the log."""
        return self.line.encode() + b"\n"

    @property
    def entry(self) -> Entry:
        """What it says."""
        return read_line(self.line.encode())


def log_files(folder: Path) -> list[Path]:
    """The files of the log in their order: each is named by the number of its first entry."""
    return sorted(folder.glob("audit-*.jsonl"))


def last_entry(folder: Path) -> Entry | None:
    """The newest entry that can be read; None without any. Raises OSError."""
    for path in reversed(log_files(folder)):
        for line in reversed(path.read_bytes().split(b"\n")):
            entry = _entry(line)
            if entry is not None:
                return entry
    return None


class AuditLog:
    """The writing end; one process at a time, the one that holds the ledger."""

    def __init__(self, folder: Path, tell: Callable[[str], None], largest_bytes: int = LARGEST_BYTES) -> None:
        """`tell` is given a sentence when the log is not as it was left."""
        self.folder = folder
        self._tell = tell
        self._largest = largest_bytes
        self._left: tuple[Path, int, int] | None = None
        """The newest file, its inode and its size as we left them; None when that is not known."""
        self._written = 0
        """Number of the last entry that is in the log."""

    def write(self, rows: Sequence[Row]) -> None:
        """Make these rows, at least one, each the next of the one before, the end of the log. Raises OSError.

        Those that are there already are not written again, so that after an error the same rows may be given again.
        """
        if self._left is not None and self._left == self._standing():
            lacking: Sequence[Row] = [row for row in rows if row.seq > self._written]
        else:
            lacking = self._mend(rows)
        self._left = None
        if lacking:
            self._append(lacking)
        self._left, self._written = self._standing(), rows[-1].seq

    def _mend(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Look how the log ends, cut off what was not finished, and return the rows that it lacks."""
        files = log_files(self.folder)
        content, before = files[-1].read_bytes() if files else b"", 0
        if len(files) > 1 and rows[0].written not in content:
            # A new file may have been begun since that row was written.
            earlier = files[-2].read_bytes()
            content, before = earlier + content, len(earlier)
        keep, lacking, strange = _compare(content, rows)
        if strange:
            self._tell(strange)
        if keep < len(content):
            with _opened(files[-1], os.O_WRONLY) as file:
                os.ftruncate(file, max(0, keep - before))
                os.fsync(file)
        return lacking

    def _append(self, rows: Sequence[Row]) -> None:
        files = log_files(self.folder)
        is_new = not files or files[-1].stat().st_size >= self._largest
        path = self.folder / f"audit-{rows[0].seq:012}.jsonl" if is_new else files[-1]
        with _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            content = memoryview(b"".join(row.written for row in rows))
            while content:
                content = content[os.write(file, content) :]
            os.fsync(file)
        if is_new:
            with _opened(self.folder, os.O_RDONLY | os.O_DIRECTORY) as folder:
                os.fsync(folder)

    def _standing(self) -> tuple[Path, int, int] | None:
        files = log_files(self.folder)
        if not files:
            return None
        status = files[-1].stat()
        return files[-1], status.st_ino, status.st_size


def _compare(content: bytes, rows: Sequence[Row]) -> tuple[int, Sequence[Row], str]:
    """How many bytes of the log to keep, the rows that it lacks then, and what is strange about it (or "")."""
    finished = content.rfind(b"\n") + 1
    place = content.rfind(rows[0].written)
    if place < 0:
        return finished, rows, _gap(content[:finished], rows[0])
    keep, lacking = place, rows
    while lacking and content.startswith(lacking[0].written, keep):
        keep += len(lacking[0].written)
        lacking = lacking[1:]
    # What follows was being written when the power went: rows, perhaps with holes between them.
    known = {row.line.encode() for row in lacking}
    if all(line in known or _entry(line) is None for line in content[keep:finished].split(b"\n")):
        return keep, lacking, ""
    return finished, lacking, f"entries follow entry {rows[0].seq} that the ledger did not write"


def _gap(log: bytes, row: Row) -> str:
    """What is strange about a log that this row is to follow; empty when the row continues it."""
    *_, last, _ = [b"", *log.split(b"\n")]
    entry = _entry(last)
    end = entry.link if entry else START
    if row.entry.before == end and (entry or not log):
        return ""
    ends = f"ends with entry {end.seq}" if entry else "ends with a damaged line" if log else "is not there"
    return f"it {ends}, and the ledger goes on with entry {row.seq}"


def _entry(line: bytes) -> Entry | None:
    try:
        return read_line(line)
    except ValueError:
        return None


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor. A symbolic link in the log's place is refused: it could lead our writing elsewhere."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
