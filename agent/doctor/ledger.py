"""The ledger's file: in use, readable, whole, how much waits in it? A running agent is never disturbed.

SQLite locks what it opens and may create files beside it, so a copy is examined; its lock tells that an agent runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.finding import Finding, is_there
from agent.ledger_file import MIGRATIONS
from agent.settings import Settings

LARGE_WAL_BYTES = 64 << 20
COPY_LIMIT_BYTES = 512 << 20
MANY_UNSENT = 10_000
_SHARED_LOCK = (0x40000002, 510)
"""Bytes of the file on which SQLite's shared and exclusive locks lie (its documentation, "File Locking")."""
_FLOCK = "hhqqi4x"  # struct flock of a 64-bit Linux


def look_at_ledger(settings: Settings) -> Iterator[Finding]:
    """Presence, size, who uses it, and, when nobody does, integrity, schema and what is unsent."""
    path = settings.state_dir / "ledger.sqlite"
    if not is_there(path):
        yield Finding("ledger", "ok", f"{path} will be made at the first start")
        return
    wal = path.with_name(f"{path.name}-wal")
    try:
        path.open("rb").close()
    except OSError as error:
        why = "the agent does not start without it"
        mend = f"run doctor as the service's user; if it is: chown spinextract: {path}*"
        yield Finding("ledger", "fail", f"{path}: {error.strerror}", why, mend)
        return
    size, waiting = path.stat().st_size, wal.stat().st_size if wal.exists() else 0
    found = f"{size / 2**20:.1f} MiB, write-ahead log {waiting / 2**20:.1f} MiB"
    if waiting > LARGE_WAL_BYTES:
        why = "the log is written back now and then; one that only grows fills the disk"
        yield Finding("ledger_log", "warn", found, why, "systemctl restart spinextract-agent")
    pid = lock_holder(path)
    if pid is not None:
        told = "in use by the running agent" + (f" (process {pid})" if pid > 0 else "")
        yield Finding("ledger", "ok", f"{told}: {found}; what is unsent is in `health`")
    elif size + waiting > COPY_LIMIT_BYTES:
        yield Finding(
            "ledger", "ok", f"{found}: too large to be copied and examined here; the agent does at its start"
        )
    else:
        yield from _examine_copy(path, wal, found)


def lock_holder(path: Path) -> int | None:
    """The process that holds the ledger for itself; None when nobody does."""
    start, length = _SHARED_LOCK
    asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, start, length, 0)
    with path.open("rb") as file:
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _examine_copy(path: Path, wal: Path, found: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        if wal.exists():
            shutil.copyfile(wal, copy.with_name(wal.name))
        if lock_holder(path) is not None:
            yield Finding("ledger", "ok", f"in use by an agent that has just started: {found}")
            return
        try:
            yield from _judge(*_read(copy), path, found)
        except sqlite3.DatabaseError as error:
            yield _damaged(path, str(error))


def _read(copy: Path) -> tuple[str, int, int]:
    """SQLite's verdict, the schema's version, and how many messages are unsent."""
    database = sqlite3.connect(copy)
    try:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        unsent = database.execute("SELECT count(*) FROM outbox").fetchone()[0] if version else 0
    finally:
        database.close()
    return str(verdict), int(version), int(unsent)


def _judge(verdict: str, version: int, unsent: int, path: Path, found: str) -> Iterator[Finding]:
    if verdict != "ok":
        yield _damaged(path, verdict)
        return
    if version > len(MIGRATIONS):
        why = "this version cannot read it and refuses to start"
        mend = "install the newer version again, or move the ledger away to begin anew"
        told = f"written by a newer version (schema {version}, this one knows {len(MIGRATIONS)})"
        yield Finding("ledger", "fail", told, why, mend)
        return
    old = (
        f"schema {version}"
        if version == len(MIGRATIONS)
        else f"schema {version}, brought up to date at the next start"
    )
    if unsent > MANY_UNSENT:
        why = "nobody has received these results yet; they are sent as soon as the broker takes them"
        mend = "see the findings about the broker"
        yield Finding("ledger", "warn", f"{unsent} messages unsent; {found}, {old}", why, mend)
    else:
        yield Finding("ledger", "ok", f"whole, {unsent} messages unsent; {found}, {old}")


def _damaged(path: Path, detail: str) -> Finding:
    why = "the agent refuses to start on a ledger that it cannot trust"
    mend = f"systemctl stop spinextract-agent && mv {path} {path}.damaged && rm -f {path}-wal {path}-shm"
    return Finding("ledger", "fail", f"{path} is damaged: {detail.splitlines()[0]}", why, mend)
