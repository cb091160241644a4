"""A look into a ledger that may be in use: a copy of it is opened, since SQLite locks what it opens.

Decides who holds a ledger and when a copy is of one moment. Changes nothing beside the ledger. Knows no table.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agent.errors import LedgerError

TRIES = 20
_SHARED_LOCK = (0x40000002, 510)
"""Bytes of the file on which SQLite's shared and exclusive locks lie (its documentation, "File Locking")."""
_FLOCK = "hhqqi4x"  # struct flock of a 64-bit Linux
_LOG_HEAD_BYTES = 32


def lock_holder(path: Path) -> int | None:
    """The process that holds the ledger for itself; None when nobody does. Not for the process that holds it."""
    start, length = _SHARED_LOCK
    asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, start, length, 0)
    with path.open("rb") as file:
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


@contextmanager
def opened_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a copy of the ledger as it stood at one moment, with everything that was committed by then.

    Raises LedgerError when the ledger never holds still, OSError when it cannot be read or copied.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        copy = Path(folder, path.name)
        for _ in range(TRIES):
            before = _moment(path)
            copy_parts(path, copy)
            # What is appended to the log meanwhile is cut off by its checksums; only when pages move from the log
            # into the file, or the log begins anew, the two copies do not belong together.
            if _moment(path) == before:
                break
        else:
            raise LedgerError(f"ledger {path} is being written so busily that it cannot be copied: try again later")
        with closing(sqlite3.connect(copy)) as database:
            yield database


def copy_parts(path: Path, copy: Path) -> None:
    """Copy the file and its log, where there is one."""
    shutil.copyfile(path, copy)
    log, log_copy = (each.with_name(f"{each.name}-wal") for each in (path, copy))
    try:
        shutil.copyfile(log, log_copy)
    except FileNotFoundError:
        log_copy.unlink(missing_ok=True)


def _moment(path: Path) -> tuple[int, int, int, bytes]:
    status = path.stat()
    try:
        with path.with_name(f"{path.name}-wal").open("rb") as file:
            head = file.read(_LOG_HEAD_BYTES)
    except FileNotFoundError:
        head = b""
    return status.st_ino, status.st_size, status.st_mtime_ns, head
