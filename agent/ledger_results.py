"""Finals on their way out of the ledger as files: noted in the transaction that says them, crossed out afterwards.

Like the outbox for the broker, but for what `dicom-out` takes. Part of the ledger; knows no file but the ledger's.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal, NamedTuple

from agent.ledger_file import explained, transaction
from agent.ledger_records import Record

_NOTE = """
    INSERT OR REPLACE INTO results_due (profile_sha256, scope, patient, slide, event_id, origin, payload)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_DUE = """
    SELECT seq, profile_sha256, scope, patient, slide, event_id, origin, payload, at
    FROM results_due JOIN studies USING (patient) ORDER BY seq LIMIT ?"""


class DueResult(NamedTuple):
    """A final that nobody has put into the spool yet."""

    seq: int
    profile_sha256: str
    scope: Literal["slide", "patient"]
    patient: str
    slide: str
    """Empty for a patient."""
    event_id: str
    origin: str
    """JSON, as it was when the final was said."""
    payload: bytes
    """The final, UTF-8 JSON."""
    study_at: float
    """When the patient's first final was said, seconds since the epoch."""


class LedgerResults:
    """The finals that are due; nothing is noted before `origin` is set."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.origin: str | None = None
        """JSON that says who computes; None while nobody wants results as files."""
        self._path = path
        self._db = database

    def note(self, record: Record) -> None:
        """Remember a record's finals; runs in the transaction that appends the record."""
        if self.origin is None:
            return
        said = {message.event_id: message.payload for message in record.messages}
        for row in record.finals:
            self._db.execute("INSERT OR IGNORE INTO studies VALUES (?, ?)", (row.patient, row.at))
            of = (record.profile_sha256, row.scope, row.patient, row.slide, row.event_id)
            self._db.execute(_NOTE, (*of, self.origin, said[row.event_id]))

    def due(self, limit: int) -> list[DueResult]:
        """The oldest finals that are due, in the order in which they were said."""
        with explained(self._path):
            return [DueResult(*row) for row in self._db.execute(_DUE, (limit,))]

    def done(self, seq: int) -> None:
        """This one is in the spool."""
        with explained(self._path), transaction(self._db):
            self._db.execute("DELETE FROM results_due WHERE seq = ?", (seq,))
