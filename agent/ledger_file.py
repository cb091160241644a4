"""The SQLite file under the ledger: opening, locking, schema, transactions, and what its errors mean to a person.

Knows no patch and no message.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import LedgerError

LOCK_WAIT_S = 0.5

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE slides (slide_id INTEGER PRIMARY KEY, profile_sha256 TEXT NOT NULL, patient TEXT NOT NULL,"
        " slide TEXT NOT NULL, UNIQUE (profile_sha256, patient, slide))",
        "CREATE TABLE patches (slide_id INTEGER NOT NULL REFERENCES slides, strip INTEGER NOT NULL,"
        " x INTEGER NOT NULL, y INTEGER NOT NULL, outcome BLOB NOT NULL,"
        " PRIMARY KEY (slide_id, strip, x, y)) WITHOUT ROWID",
        "CREATE TABLE finals (profile_sha256 TEXT NOT NULL, scope TEXT NOT NULL, patient TEXT NOT NULL,"
        " slide TEXT NOT NULL, revision INTEGER NOT NULL, event_id TEXT NOT NULL, fingerprint TEXT NOT NULL,"
        " state TEXT NOT NULL, done INTEGER NOT NULL, expected INTEGER, unformed TEXT NOT NULL,"
        " tally TEXT NOT NULL, at REAL NOT NULL,"
        " PRIMARY KEY (profile_sha256, scope, patient, slide)) WITHOUT ROWID",
        # AUTOINCREMENT: a seq is never used twice, so a late PUBACK cannot remove another message.
        *(
            f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL{unique},"
            " payload BLOB NOT NULL, event_id TEXT NOT NULL, kind TEXT NOT NULL, qos INTEGER NOT NULL,"
            " retain INTEGER NOT NULL, coalesce INTEGER NOT NULL, expires_at REAL NOT NULL)"
            for table, unique in (("outbox", ""), ("retained", " UNIQUE"))
        ),
        "CREATE INDEX outbox_topic ON outbox (topic)",
    ),
    (),  # Outcomes of judged patches begin with `j`, which schema 1 cannot read; older outcomes stay as they are.
    (
        "CREATE TABLE results_due (seq INTEGER PRIMARY KEY AUTOINCREMENT, profile_sha256 TEXT NOT NULL,"
        " scope TEXT NOT NULL, patient TEXT NOT NULL, slide TEXT NOT NULL, event_id TEXT NOT NULL UNIQUE,"
        " origin TEXT NOT NULL, payload BLOB NOT NULL)",
        "CREATE TABLE studies (patient TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID",
    ),
)
"""Statements that lead from schema version n to n + 1. Never edit one that was released: append."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the file, take its lock until close, check it and bring its schema up to date.

    Raises LedgerError, saying what to do.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            # EXCLUSIVE before WAL: the lock is then held by this process alone and released by the kernel
            # with it, however it ends.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                database.execute(f"PRAGMA {pragma}")
            with transaction(database):
                _migrate(database, path)
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _damaged(path, verdict)
        except BaseException:
            database.close()
            raise
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # SQLite rolls back by itself on some errors (a full disk among them).
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into one line that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error.strerror or error}") from error


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"ledger {path} was written by a newer version (schema {version}, this one knows {len(MIGRATIONS)}):"
            " install that version again, or move the file away to start a new ledger"
        )
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            database.execute(statement)
    if version < len(MIGRATIONS):
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _damaged(path: Path, detail: str) -> LedgerError:
    return LedgerError(
        f"ledger {path} is damaged ({detail.splitlines()[0]}): stop the agent, move the file away with its -wal"
        " beside it, and start again; what the folder still holds is then read and counted anew"
    )


def _explain(path: Path, error: sqlite3.Error) -> LedgerError:
    # The primary result code is the low byte of the extended one.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    advice = {
        sqlite3.SQLITE_BUSY: "it is in use by another process: is the agent already running?",
        sqlite3.SQLITE_FULL: "the disk is full: free some space and start again; nothing that was counted is lost",
        sqlite3.SQLITE_READONLY: "it is not writable: check its owner and mode, and those of its folder",
        sqlite3.SQLITE_PERM: "it is not writable: check its owner and mode, and those of its folder",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened or created: check that it is a file in a writable folder",
        sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk and its free space",
    }.get(code)
    return LedgerError(f"ledger {path}: {advice} ({error})" if advice else f"ledger {path}: {error}")
