"""What is entered into the audit log: files, results and what happened to the agent itself. Part of the ledger.

Entries are made in the transaction that they speak of and wait in the ledger until they are in the log's files, so
that neither a kill nor a full disk can lose one or write one twice. Pseudonyms only.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from agent.audit_chain import START, Link, seal
from agent.audit_log import AuditLog, Row, last_entry
from agent.ledger_file import explained, transaction
from agent.ledger_records import FileStanding, FinalRow, Record
from agent.messages import AuditHead

RETRY_S = 30.0
"""Pause after the log could not be written."""
MOST_AT_ONCE = 5000
"""Entries that are written in one go: a few megabytes. Messages wait meanwhile."""
Facts = Mapping[str, Any]


class LedgerAudit:
    """See the module's docstring. `note` runs in the transaction that appends a record."""

    def __init__(self, path: Path, database: sqlite3.Connection, wall: Callable[[], float]) -> None:
        """The log's files lie beside the ledger."""
        self.head = AuditHead(entries=START.seq, head=START.hash)
        """The last entry that is in the log's files; may be read on any thread."""
        self.retry_s = RETRY_S
        """May be replaced."""
        self._path = path
        self._db = database
        self._wall = wall
        self._log = AuditLog(path.parent, self._tell_broken)
        self._found: Link | None = None
        """Where the files ended when they were first looked at; None before."""
        self._written = 0
        """Number of the last entry that is certainly in the files."""
        self._waits = True
        self._retry_at = float("-inf")
        self._told = ""
        self._logger = structlog.get_logger("agent.audit")

    def note(self, record: Record) -> None:
        """Enter what a record does: slides that are read again, files, finals. Call it before the files are noted:
        a file that stands as it is known to stand is no news.
        """
        standings = (standing for standing in record.files if standing.outcome != "changed")
        self.enter(*_entries(record, self._news_of(standings)))

    def add(self, kind: str, facts: Facts) -> None:
        """Enter something in a transaction of its own. Raises LedgerError."""
        with explained(self._path), transaction(self._db):
            self.enter((kind, facts))

    def enter(self, *entries: tuple[str, Facts]) -> None:
        """Enter these in the transaction that is open."""
        if not entries:
            return
        end = self._end()
        # The last one that is in the files stays: by it the next start sees whether somebody has cut the log.
        self._db.execute("DELETE FROM audit WHERE seq < ?", (self._written,))
        for kind, facts in entries:
            line, end = seal(end, self._wall(), kind, facts)
            self._db.execute("INSERT INTO audit VALUES (?, ?)", (end.seq, line))
        self._waits = True

    def export(self) -> None:
        """Write what waits into the log's files; cheap when nothing does. Raises LedgerError.

        What cannot be written now stays in the ledger, is told once, and is tried again.
        """
        if not self._waits or time.monotonic() < self._retry_at:
            return
        query = "SELECT seq, entry FROM audit WHERE seq >= ? ORDER BY seq LIMIT ?"
        with explained(self._path):
            rows = [Row(*row) for row in self._db.execute(query, (self._written, MOST_AT_ONCE))]
        try:
            if rows:
                self._log.write(rows)
        except OSError as error:
            self._retry_at = time.monotonic() + self.retry_s
            self._tell_waiting(error.strerror or str(error))
            return
        if rows:
            self._written = rows[-1].seq
            self.head = AuditHead(entries=self._written, head=rows[-1].entry.hash)
        self._waits = len(rows) == MOST_AT_ONCE
        self._told = ""

    def _news_of(self, files: Iterable[FileStanding]) -> Iterator[FileStanding]:
        known: dict[str, FileStanding | None] = {}
        for standing in files:
            before = known.get(standing.file_id) or self._standing(standing.file_id)
            if before is None or replace(before, at=standing.at) != standing:
                yield standing
            known[standing.file_id] = standing

    def _standing(self, file_id: str) -> FileStanding | None:
        row = self._db.execute("SELECT * FROM files WHERE file_id = ?", (file_id,)).fetchone()
        return FileStanding(*row) if row else None

    def _end(self) -> Link:
        """What the next entry hangs on. A new ledger, or one from a backup, goes on where the files end."""
        if self._found is None:
            self._drop_what_hangs_on_nothing()
            self._found = self._look()
            self.head = AuditHead(entries=self._found.seq, head=self._found.hash)
        row = self._db.execute("SELECT seq, entry FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
        end = Row(*row).entry.link if row else START
        if self._found.seq > end.seq:
            self._db.execute("DELETE FROM audit")
            return self._found
        return end

    def _look(self) -> Link:
        try:
            entry = last_entry(self._path.parent)
        except OSError:
            return START  # the export will say why; the ledger's own rows go on
        return entry.link if entry else START

    def _drop_what_hangs_on_nothing(self) -> None:
        """Of a ledger that was damaged, entries may be missing: what was to follow them can no more be in the log."""
        end: Link | None = None
        with suppress(ValueError):
            for row in map(Row._make, self._db.execute("SELECT seq, entry FROM audit ORDER BY seq")):
                entry = row.entry
                if end is not None and entry.before != end:
                    break
                end = entry.link
        self._db.execute("DELETE FROM audit WHERE seq > ?", (end.seq if end else 0,))

    def _tell_waiting(self, reason: str) -> None:
        if reason != self._told:
            self._logger.error("audit_waits_in_the_ledger", reason=reason, retry_s=self.retry_s)
        self._told = reason

    def _tell_broken(self, detail: str) -> None:
        self._logger.error("audit_broken", detail=f"the audit log is not as the agent left it: {detail}")


def _entries(record: Record, files: Iterable[FileStanding]) -> Iterator[tuple[str, Facts]]:
    for slide in record.reopened:
        yield "reopened", {"patient": slide.patient, "slide": slide.slide}
    for standing in files:
        yield "file", _of_file(standing)
    payloads = {message.event_id: message.payload for message in record.messages} if record.finals else {}
    for row in record.finals:
        yield "final", _of_final(record.profile_sha256, row, payloads.get(row.event_id))


def _of_file(standing: FileStanding) -> Facts:
    """What is known of it: an empty field is left out."""
    facts = {
        "file": standing.file_id,
        "outcome": standing.outcome,
        "patient": standing.patient,
        "slide": standing.slide,
        "size": standing.size,
        "mtime_ns": standing.mtime_ns,
        "sha256": standing.sha256,
        "reason": standing.reason,
        "detail": standing.detail,
    }
    return {name: value for name, value in facts.items() if value != ""}


def _of_final(profile_sha256: str, row: FinalRow, payload: bytes | None) -> Facts:
    """What identifies a final, and its answer in short. The payload itself is known by its hash."""
    said = json.loads(payload) if payload is not None else {}
    counts = said.get("counts") or {}
    return {
        "event_id": row.event_id,
        "scope": row.scope,
        "patient": row.patient,
        **({"slide": row.slide} if row.slide else {}),
        "revision": row.revision,
        "supersedes": said.get("supersedes"),
        "profile_sha256": profile_sha256,
        "fingerprint": row.fingerprint,
        "payload_sha256": None if payload is None else hashlib.sha256(payload).hexdigest(),
        "session_id": said.get("session_id"),
        "state": row.state,
        "parts": row.done,
        "expected": row.expected,
        "decision": said.get("decision"),
        "predicted": said.get("predicted"),
        "confidence": said.get("confidence"),
        "seen": counts.get("seen"),
        "used": counts.get("used"),
    }
