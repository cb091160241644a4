"""How long things stay in the ledger and how large its file may be: what can go, and giving the room back.

Finals never go, and unsent ones least of all. Part of the ledger; decides no date and no limit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from agent.ledger_file import explained, transaction

MOST_REFUSED = 10_000
"""Refused files that are remembered; beyond that the oldest are forgotten, and looked at again after a restart."""
# Neither what `dicom-out` still has to get, nor what has gone already.
_MAY_GO = """
    patient IN (SELECT patient FROM slides WHERE NOT pruned) AND patient NOT IN (SELECT patient FROM results_due)"""
_SILENT = f"""
    SELECT patient FROM finals WHERE {_MAY_GO} GROUP BY patient HAVING max(at) < ? ORDER BY max(at)"""  # noqa: S608
_ENDED = f"""
    SELECT patient FROM finals WHERE {_MAY_GO} GROUP BY patient
    HAVING max(at) = max(CASE scope WHEN 'patient' THEN at END) ORDER BY max(at)"""  # noqa: S608
_FORGET = (
    "DELETE FROM alerts WHERE at < ?",
    "DELETE FROM files WHERE at < ? AND outcome <> 'refused' AND (slide = '' OR EXISTS"
    " (SELECT 1 FROM slides WHERE slides.patient = files.patient AND slides.slide = files.slide AND pruned))",
)
_FORGET_REFUSED = """
    DELETE FROM files WHERE file_id IN
    (SELECT file_id FROM files WHERE outcome = 'refused' ORDER BY at DESC LIMIT -1 OFFSET ?)"""


class LedgerRetention:
    """See the module's docstring. Every method raises LedgerError."""

    def __init__(self, path: Path, database: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._path = path
        self._db = database
        self._clock = clock

    def silent(self, days: float) -> list[str]:
        """Patients of whom patches are kept although their last final is older than this, oldest first."""
        with explained(self._path):
            return [patient for (patient,) in self._db.execute(_SILENT, (self._ago(days),))]

    def ended(self) -> list[str]:
        """Patients of whom patches are kept although they have ended, oldest first."""
        with explained(self._path):
            return [patient for (patient,) in self._db.execute(_ENDED)]

    def forget(self, days: float) -> None:
        """What only saved a second look or a second word, so long ago that either would do no harm."""
        with explained(self._path), transaction(self._db):
            for statement in _FORGET:
                self._db.execute(statement, (self._ago(days),))
            self._db.execute(_FORGET_REFUSED, (MOST_REFUSED,))

    def file_bytes(self) -> int:
        """Size of the file once its log is written back."""
        return self._pragma("page_count") * self._pragma("page_size")

    def free_bytes(self) -> int:
        """Room in the file that nothing uses."""
        return self._pragma("freelist_count") * self._pragma("page_size")

    def give_back(self, size: int) -> None:
        """Make the file smaller by up to so many bytes of its free room: a step that takes milliseconds."""
        pages = max(1, size // self._pragma("page_size"))
        with explained(self._path):
            # Not `execute`: that would take the one step for all of it, and free a single page.
            self._db.executescript(f"PRAGMA incremental_vacuum({pages})")

    def _ago(self, days: float) -> float:
        return self._clock() - 86_400 * days

    def _pragma(self, name: str) -> int:
        with explained(self._path):
            return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
