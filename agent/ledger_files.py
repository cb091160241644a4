"""What was made of which file: read whole, refused, or kept in reserve. So that a restart need not look again, and so
that every result can be traced to the bytes it came from. Part of the ledger; knows files by pseudonym only.
"""

from __future__ import annotations

import sqlite3
from dataclasses import astuple
from pathlib import Path

from agent.ledger_file import explained
from agent.ledger_records import FileStanding, Record
from models.contract import SlideKey

_DOUBT = "UPDATE files SET outcome = 'changed' WHERE outcome = 'whole' AND patient = ? AND slide = ?"
_SETTLE = "DELETE FROM reopened WHERE profile_sha256 = ? AND patient = ? AND slide = ?"


class LedgerFiles:
    """See the module's docstring."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path = path
        self._db = database

    def note(self, record: Record) -> None:
        """Remember a record's files and reopened slides; runs in the transaction that appends the record."""
        sha256 = record.profile_sha256
        reopened = [(sha256, *slide) for slide in record.reopened]
        self._db.executemany("INSERT OR IGNORE INTO reopened VALUES (?, ?, ?)", reopened)
        self._db.executemany(_DOUBT, record.reopened)
        self._db.executemany(_SETTLE, [(sha256, *slide) for slide in record.closed])
        self._db.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [astuple(standing) for standing in record.files],
        )

    def reopened(self, profile_sha256: str) -> set[SlideKey]:
        """Slides that were being read again: a final of theirs does not mean that their files need no look."""
        query = "SELECT patient, slide FROM reopened WHERE profile_sha256 = ?"
        with explained(self._path):
            return {SlideKey(*row) for row in self._db.execute(query, (profile_sha256,))}

    def all(self) -> list[FileStanding]:
        """Every file, by its pseudonym."""
        with explained(self._path):
            return [FileStanding(*row) for row in self._db.execute("SELECT * FROM files ORDER BY file_id")]


def refused_in(database: sqlite3.Connection) -> list[FileStanding]:
    """The refused files of any ledger, or of a copy, longest ago first; none in one from before schema 4."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'files'").fetchone():
        return []
    query = "SELECT * FROM files WHERE outcome = 'refused' ORDER BY at, file_id"
    return [FileStanding(*row) for row in database.execute(query)]
