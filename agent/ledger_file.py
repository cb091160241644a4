"""The SQLite file under the ledger: making, opening, locking, schema, transactions, what its errors mean to a person.

Damage is marked by a file beside it, whoever finds it: the next start sets the ledger aside (agent.ledger_rescue).
Knows no patch and no message.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import LedgerDamaged, LedgerError
from agent.ledger_copy import lock_holder
from agent.ledger_marker import mark_damaged, sync_folder
from agent.ledger_wal import fault_of

LOCK_WAIT_S = 0.5
APPLICATION_ID = 0x53524831
"""Tells a ledger from other programs' SQLite files, since schema 4 ("SRH1")."""
LOG_KEPT_BYTES = 16 << 20
"""A write-ahead log that one large transaction made longer is cut back to this."""
LATEST_VERSION = 1000
"""No schema will ever have a higher number: it is damage."""
PARTS = ("", "-wal", "-shm")
"""What SQLite keeps beside each other, by the endings of their names."""

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
    (
        "ALTER TABLE patches ADD COLUMN pixels INTEGER",
        "CREATE TABLE files (file_id TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
        " outcome TEXT NOT NULL, patient TEXT NOT NULL, slide TEXT NOT NULL, sha256 TEXT NOT NULL,"
        " reason TEXT NOT NULL, detail TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
        "CREATE TABLE reopened (profile_sha256 TEXT NOT NULL, patient TEXT NOT NULL, slide TEXT NOT NULL,"
        " PRIMARY KEY (profile_sha256, patient, slide)) WITHOUT ROWID",
        "CREATE TABLE alerts (event_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID",
        # Entries that are not yet in the audit log, in its order (agent.audit).
        "CREATE TABLE audit (seq INTEGER PRIMARY KEY AUTOINCREMENT, entry TEXT NOT NULL)",
        # Patches of a pruned slide are not kept any more: its finals hold what they amounted to.
        "CREATE INDEX outbox_kind ON outbox (kind)",
        "ALTER TABLE slides ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
)
"""Statements that lead from schema version n to n + 1. Never edit one that was released: append."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the file, take its lock until close, check it and bring its schema up to date.

    Raises LedgerError, saying what to do; LedgerDamaged when its bytes are not what was written.
    """
    with explained(path):
        wal = path.with_name(f"{path.name}-wal")
        if not path.exists() and not wal.exists():
            _create(path)
        if path.exists() and not path.is_file():
            raise LedgerError(f"ledger {path}: something else than a file is in its place: move it away")
        if not path.exists() or path.stat().st_size == 0:
            # A new one is made under another name: this one had something in it.
            raise LedgerDamaged(path, "it is empty" if path.exists() else "its log is there without it")
        # Before SQLite sees it: that would take what is whole of the log into the file, and remove the rest.
        if lock_holder(path) is None and (fault := fault_of(wal)) is not None:
            raise LedgerDamaged(path, fault)
        return _opened(path, new=False)


def _create(path: Path) -> None:
    """Make it whole under another name first, so that a kill in between never leaves half a ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    for part in PARTS:
        new.with_name(f"{new.name}{part}").unlink(missing_ok=True)
    _opened(new, new=True).close()
    new.rename(path)
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)


def _opened(path: Path, *, new: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        # EXCLUSIVE before WAL: the lock is then held by this process alone and released by the kernel with it,
        # however it ends.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        if new:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
        else:
            _check_ours(database, path)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            database.execute(f"PRAGMA {pragma}")
        database.execute(f"PRAGMA journal_size_limit={LOG_KEPT_BYTES}")
        with transaction(database):
            _migrate(database, path)
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise LedgerDamaged(path, verdict.splitlines()[-1])  # before it: which database
        _make_shrinkable(database)
    except BaseException:
        database.close()
        raise
    return database


def _check_ours(database: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not damaged but not ours to write either. Only reads."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not {"counters", "outbox"} <= tables:
        raise LedgerError(f"ledger {path} is a SQLite file of another program: move it away")
    if application not in (0, APPLICATION_ID) or not 0 <= version <= LATEST_VERSION or (tables and not version):
        raise LedgerDamaged(path, "its head says neither which program nor which schema it is of")
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"ledger {path} was written by a newer version (schema {version}, this one knows {len(MIGRATIONS)}):"
            " install that version again, or move the file away to start a new ledger"
        )


def _make_shrinkable(database: sqlite3.Connection) -> None:
    """Once, for a ledger from before schema 4: such a file never gives back what pruning freed."""
    (mode,) = database.execute("PRAGMA auto_vacuum").fetchone()
    if mode != 2:
        database.execute("PRAGMA auto_vacuum=INCREMENTAL")
        database.execute("VACUUM")


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
    """Turn what SQLite and the file system raise into one line that says what to do; mark a damaged ledger."""
    try:
        yield
    except LedgerDamaged as damage:
        mark_damaged(path, damage.detail)
        raise
    except sqlite3.Error as error:
        # The primary result code is the low byte of the extended one.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            mark_damaged(path, str(error))
            raise LedgerDamaged(path, str(error)) from error
        raise _explain(path, error, code) from error
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error.strerror or error}") from error


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            try:
                database.execute(statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # e.g. the table is there already
                    raise LedgerDamaged(path, f"it is not of schema {version}: {error}") from error
                raise
    if version < len(MIGRATIONS):
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _explain(path: Path, error: sqlite3.Error, code: int) -> LedgerError:
    advice = {
        sqlite3.SQLITE_BUSY: "it is in use by another process: is the agent already running?",
        sqlite3.SQLITE_FULL: "the disk is full: free some space and start again; nothing that was counted is lost",
        sqlite3.SQLITE_READONLY: "it is not writable: check its owner and mode, and those of its folder",
        sqlite3.SQLITE_PERM: "it is not writable: check its owner and mode, and those of its folder",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened or created: check that it is a file in a writable folder",
        sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk and its free space",
    }.get(code)
    return LedgerError(f"ledger {path}: {advice} ({error})" if advice else f"ledger {path}: {error}")
