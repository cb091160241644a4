"""Which alerts have been said, and how many may wait unsent: beyond that they are counted, and told as a sum.

Part of the ledger; runs inside its transactions.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from agent.ledger_file import explained
from agent.topics import Message

MOST_UNSENT = 1000
"""Alerts that wait for the broker one by one: more than anybody would read, and half a megabyte."""
_WITHHELD = "withheld:"
_COUNT = """
    INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"""


class LedgerAlerts:
    """See the module's docstring."""

    def __init__(self, path: Path, database: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._path = path
        self._db = database
        self._clock = clock

    def admit(self, alert: Message) -> bool:
        """Whether an alert is news and may wait for the broker; runs in the transaction that appends it."""
        said = self._db.execute("INSERT OR IGNORE INTO alerts VALUES (?, ?)", (alert.event_id, self._clock()))
        if not said.rowcount or self._waiting() < MOST_UNSENT:
            return said.rowcount > 0
        self._db.execute(_COUNT, (f"{_WITHHELD}{json.loads(alert.payload)['reason']}",))
        return False

    def due(self) -> dict[str, int]:
        """Reason → alerts that were withheld; empty while there is no room for the one that tells of them."""
        query = "SELECT substr(name, ?), value FROM counters WHERE name GLOB ? ORDER BY name"
        with explained(self._path):
            withheld = dict(self._db.execute(query, (len(_WITHHELD) + 1, f"{_WITHHELD}*")).fetchall())
            return withheld if withheld and self._waiting() < MOST_UNSENT else {}

    def forget_withheld(self) -> None:
        """They are told; runs in the transaction that appends the sum."""
        self._db.execute("DELETE FROM counters WHERE name GLOB ?", (f"{_WITHHELD}*",))

    def _waiting(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM outbox WHERE kind = 'alert'").fetchone()[0])
