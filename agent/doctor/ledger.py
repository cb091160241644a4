"""The ledger's file: in use, readable, whole, how much waits in it, was one set aside? A running agent is never
disturbed: a copy is examined, and only when the lock tells that nobody uses the ledger.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.finding import Finding, is_there
from agent.ledger_copy import lock_holder, opened_copy
from agent.ledger_file import MIGRATIONS, PARTS
from agent.ledger_marker import marker_of, read_marker
from agent.ledger_wal import fault_of
from agent.settings import Settings

LARGE_WAL_BYTES = 64 << 20
COPY_LIMIT_BYTES = 512 << 20
MANY_UNSENT = 10_000


def look_at_ledger(settings: Settings) -> Iterator[Finding]:
    """Presence, size, who uses it, and, when nobody does, integrity, schema and what is unsent."""
    path = settings.state_dir / "ledger.sqlite"
    if os.access(path.parent, os.R_OK | os.X_OK):
        yield from _set_aside(path)
        if marker_of(path).exists():
            yield _damaged(path, (read_marker(path) or {}).get("why", "its marker cannot be read"))
            return
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


def _set_aside(path: Path) -> Iterator[Finding]:
    """Ledgers that were damaged. They are never removed by the agent."""
    for aside in sorted(path.parent.glob(f"{path.name}.damaged-*Z")):
        parts = [aside.with_name(f"{aside.name}{part}") for part in PARTS]
        size = sum(part.stat().st_size for part in parts if part.exists())
        found = f"{aside} was damaged and set aside ({size / 2**20:.1f} MiB); a new ledger took its place"
        why = "a disk or memory that changes bytes may do it again; finals that it held are in the new ledger or not"
        mend = f"smartctl -a and `journalctl -k` tell about the disk; then: rm {aside}*"
        yield Finding("ledger_set_aside", "warn", found, why, mend)


def _examine_copy(path: Path, wal: Path, found: str) -> Iterator[Finding]:
    fault, read = fault_of(wal), ("", 0, 0)
    try:
        with opened_copy(path) as database:
            read = _read(database)
    except sqlite3.DatabaseError as error:
        fault = fault or str(error)
    if lock_holder(path) is not None:
        yield Finding("ledger", "ok", f"in use by an agent that has just started: {found}")
    elif fault is not None:
        yield _damaged(path, fault)
    else:
        yield from _judge(*read, path, found)


def _read(database: sqlite3.Connection) -> tuple[str, int, int]:
    """SQLite's verdict, the schema's version, and how many messages are unsent."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    unsent = database.execute("SELECT count(*) FROM outbox").fetchone()[0] if version else 0
    return str(verdict), int(version), int(unsent)


def _judge(verdict: str, version: int, unsent: int, path: Path, found: str) -> Iterator[Finding]:
    if verdict != "ok" or not version:
        yield _damaged(path, verdict if version else "it is empty")
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
    why = "the next start sets it aside, takes over what can be read of it, and counts the folder's patches anew"
    mend = "look at the disk first (smartctl -a, journalctl -k), then: systemctl restart spinextract-agent"
    return Finding("ledger", "fail", f"{path} is damaged: {detail.splitlines()[-1]}", why, mend)
