"""Decides what survives a crash: which patches are counted, what was said as final, what is not yet delivered.

SQLite in WAL mode with synchronous=FULL: when `append` returns, the record is on the disk even if the power fails
next. NORMAL would be faster but may lose the last transactions, and a final that was acknowledged by the broker
could then be said again with another revision. One process at a time (locking_mode=EXCLUSIVE), and one thread at
a time: the thread that opens it restores from it, then hands it to the SENDER room for good. Knows no MQTT session.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from agent.audit import LedgerAudit
from agent.ledger_alerts import LedgerAlerts
from agent.ledger_file import explained, open_database, transaction
from agent.ledger_files import LedgerFiles
from agent.ledger_patches import LedgerPatches
from agent.ledger_records import CountedPatch, FileStanding, FinalRow, OutboxRow, Record
from agent.ledger_results import LedgerResults
from agent.ledger_retention import LedgerRetention
from agent.topics import Message

_UNSENT = """
    SELECT seq, topic, payload, event_id, kind, qos, retain, coalesce, expires_at FROM outbox
    WHERE seq > ? AND (expires_at > ? OR NOT coalesce) ORDER BY seq LIMIT ?"""
_RETAINED = """
    SELECT topic, payload, event_id, kind, qos, retain, coalesce, expires_at FROM retained
    WHERE expires_at > ? AND (? OR topic NOT IN (SELECT topic FROM outbox)) ORDER BY seq"""
_INSERT = {
    "outbox": """
    INSERT INTO outbox (topic, payload, event_id, kind, qos, retain, coalesce, expires_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
    "retained": """
    INSERT INTO retained (topic, payload, event_id, kind, qos, retain, coalesce, expires_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
}
_FORGET_OLD_RETAINED = """
    DELETE FROM retained WHERE seq IN (SELECT seq FROM retained ORDER BY seq DESC LIMIT -1 OFFSET ?)"""
__all__ = ["CountedPatch", "FileStanding", "FinalRow", "Ledger", "OutboxRow", "Record"]

RETAINED_KEPT = 1000
"""Latest retained topics that are published again on a connect; older ones are the broker's to keep."""
LATE_S = 86_400
"""A final that could only be sent after its time stays at the broker for so long."""


class Ledger:
    """See the module's docstring; every method raises LedgerError when the disk or the file refuses."""

    def __init__(self, path: Path, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        """Use `Ledger.open`."""
        self.path = path
        self._db = connection
        self._clock = clock
        self.patches = LedgerPatches(path, connection)
        """The counted ones."""
        self.files = LedgerFiles(path, connection)
        """What was made of which file."""
        self.results = LedgerResults(path, connection)
        """Finals that are due as files."""
        self.audit = LedgerAudit(path, connection, clock)
        """What can be traced later."""
        self.alerts = LedgerAlerts(path, connection, clock)
        """Those that have been said, and those that must wait."""
        self.retention = LedgerRetention(path, connection, clock)
        """What may go."""

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = time.time) -> Ledger:
        """Open or create the ledger and bring its schema up to date.

        Raises LedgerError, saying what to do, when it is damaged, not writable, in use, newer than this program,
        or the disk is full. `clock` gives seconds since the epoch and only serves message expiry.
        """
        return cls(path, open_database(path), clock)

    def close(self) -> None:
        """Write the WAL back and give the file free."""
        with explained(self.path):
            self._db.close()

    def next_boot(self) -> int:
        """Count this start of the agent, from 1."""
        with self._write():
            rows = self._db.execute(
                "INSERT INTO counters VALUES ('boot_seq', 1)"
                " ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
            ).fetchall()
        return int(rows[0][0])

    def finals(self, profile_sha256: str, patient: str | None = None) -> list[FinalRow]:
        """The latest final of every slide and patient under this profile, or of one patient."""
        query = (
            "SELECT scope, patient, slide, revision, event_id, fingerprint, state, done, expected, unformed, tally,"
            " at FROM finals WHERE profile_sha256 = ?1 AND (?2 IS NULL OR patient = ?2)"
            " ORDER BY scope, patient, slide"
        )
        with explained(self.path):
            return [FinalRow(*row) for row in self._db.execute(query, (profile_sha256, patient))]

    def append(self, record: Record) -> None:
        """Write a record in one transaction: all of it or nothing.

        A patch that is already counted stays as it is, unless its pixels changed; an alert that was said is not said
        again.
        """
        with self._write():
            self.audit.note(record)
            self.patches.put(record.profile_sha256, record.patches)
            for read in record.settled:
                self.patches.settle(record.profile_sha256, read)
            self.files.note(record)
            self.results.note(record)
            for message in record.messages:
                if message.durable and (message.kind != "alert" or self.alerts.admit(message)):
                    self._enqueue(message)
            self._db.execute(_FORGET_OLD_RETAINED, (RETAINED_KEPT,))
            self._db.executemany(
                "INSERT OR REPLACE INTO finals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(record.profile_sha256, *astuple(row)) for row in record.finals],
            )

    def sum_up(self, alert: Message) -> None:
        """Append the alert that tells of those that were withheld, in their place."""
        with self._write():
            self.alerts.forget_withheld()
            self._enqueue(alert)

    def release(self, file_id: str) -> bool:
        """Forget that a file was refused, so that the next start looks at it again; False when it was not."""
        query = "DELETE FROM files WHERE file_id = ? AND outcome = 'refused'"
        with self._write():
            was_refused = self._db.execute(query, (file_id,)).rowcount > 0
            if was_refused:
                self.audit.enter(("released", {"file": file_id}))
        return was_refused

    def unsent(self, after_seq: int = 0, limit: int = 16) -> list[OutboxRow]:
        """The oldest unacknowledged messages with seq > after_seq, in the order in which they were appended.

        State that expired while waiting is left out (and removed by the next `forget_expired`); a final waits for as
        long as it takes.
        """
        with explained(self.path):
            rows = self._db.execute(_UNSENT, (after_seq, self._clock(), limit)).fetchall()
        return [OutboxRow(row[0], self._message(row[1:])) for row in rows]

    def forget(self, seqs: Iterable[int]) -> None:
        """The broker has acknowledged these; a seq that was coalesced away meanwhile is ignored."""
        with self._write():
            self._db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in seqs])

    def forget_expired(self) -> None:
        """Remove state whose time is over."""
        with self._write():
            self._db.execute("DELETE FROM outbox WHERE expires_at <= ? AND coalesce", (self._clock(),))
            self._db.execute("DELETE FROM retained WHERE expires_at <= ?", (self._clock(),))

    def retained(self, *, waiting: bool = False) -> list[Message]:
        """The latest message of every retained topic, oldest first; topics that wait in the outbox if `waiting`."""
        with explained(self.path):
            return [self._message(row) for row in self._db.execute(_RETAINED, (self._clock(), waiting))]

    def outbox_length(self) -> int:
        """Messages not yet acknowledged."""
        with explained(self.path):
            return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def prune(self, patients: Iterable[str]) -> int:
        """Drop the patches of these patients under every profile, for good, and return how many went.

        Their finals stay: should their files be read again, the same answer makes no new revision.
        """
        with self._write():
            return self.patches.drop(patients)

    def _enqueue(self, message: Message) -> None:
        expires_at = math.inf if message.expiry_s is None else self._clock() + message.expiry_s
        if message.coalesce:
            self._db.execute("DELETE FROM outbox WHERE topic = ? AND coalesce", (message.topic,))
        said = (message.topic, message.payload, message.event_id, message.kind, message.qos)
        row = (*said, message.retain, message.coalesce, expires_at)
        self._db.execute(_INSERT["outbox"], row)
        if message.retain:
            self._db.execute("DELETE FROM retained WHERE topic = ?", (message.topic,))
            self._db.execute(_INSERT["retained"], row)

    @contextmanager
    def _write(self) -> Iterator[None]:
        with explained(self.path), transaction(self._db):
            yield

    def _message(self, row: Sequence[Any]) -> Message:
        topic, payload, event_id, kind, qos, retain, coalesce, expires_at = row
        # What is left of its time, at least a second: the broker takes whole seconds, and 0 would be odd.
        least_s = 1 if coalesce else LATE_S
        expiry_s = None if math.isinf(expires_at) else max(least_s, math.ceil(expires_at - self._clock()))
        return Message(topic, payload, event_id, kind, qos, bool(retain), bool(coalesce), True, expiry_s)
