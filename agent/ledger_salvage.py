"""What of a damaged ledger can be taken over into a new one: row by row, each only if it makes sense by itself.

Patches are not taken over: the folder has them. Neither is anything that was only to save a second look at a file.
Part of the ledger; works on a copy.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from agent.audit_chain import read_line
from agent.ledger_copy import copy_parts
from agent.ledger_file import open_database, transaction
from agent.ledger_records import FileStanding, Outcome
from agent.ledger_wal import fault_of, mend
from agent.topics import ROUTES, final_event_id

PAGE_BYTES = 4096
HEAD_BYTES = 100
TABLE_LIMIT_S = 60.0
"""Longest time for one table: damaged pages may lead in circles."""
_ID = re.compile(r"[!-~]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}|")
_STATES = {"receiving", "seen", "complete", "stalled", "abandoned"}
_CUT_AUDIT = """
    DELETE FROM audit WHERE seq > (SELECT min(seq) FROM audit WHERE seq + 1 NOT IN (SELECT seq FROM audit))"""

Row = tuple[Any, ...]


class Salvaged(NamedTuple):
    """What was taken over."""

    rows: dict[str, int]
    """Table → rows; tables without any are left out."""
    outbox_is_whole: bool
    """Nothing that was unsent can be missing."""


def salvage(damaged: Path, into: sqlite3.Connection, scratch: Path) -> Salvaged:
    """Take over what can be read of a damaged ledger. Only `scratch` is written beside `into`.

    Raises OSError or sqlite3.Error when the new ledger or the scratch folder cannot be written.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    fresh = scratch / "fresh.sqlite"
    open_database(fresh).close()
    log = damaged.with_name(f"{damaged.name}-wal")
    # As it is; then with a head like every ledger's; then with a table of contents like a new one's.
    for borrowed in (0, HEAD_BYTES, PAGE_BYTES):
        copy = scratch / damaged.name
        copy_parts(damaged, copy)
        mend(copy.with_name(f"{copy.name}-wal"))
        if borrowed:
            _borrow_head(copy, fresh, borrowed)
        with transaction(into):
            rows, is_whole = _take_over(copy, into)
        if rows:
            break
    shutil.rmtree(scratch)
    return Salvaged(rows, is_whole and not borrowed and fault_of(log) is None)


def _borrow_head(copy: Path, fresh: Path, size: int) -> None:
    """Replace the beginning of the file by that of a new ledger, with this file's number of pages."""
    pages = copy.stat().st_size // PAGE_BYTES
    head = bytearray(fresh.read_bytes()[:size])
    head[28:40] = pages.to_bytes(4, "big") + bytes(8)  # no list of free pages
    with copy.open("r+b") as file:
        file.write(head)


def _take_over(copy: Path, into: sqlite3.Connection) -> Salvaged:
    taken, outbox_is_whole = {}, True
    with closing(sqlite3.connect(copy)) as database:
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        for table, (key, makes_sense) in _TABLES.items():
            width = len(into.execute(f"PRAGMA table_info({table})").fetchall())
            insert = f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * width)})"  # noqa: S608 - our own names
            count = 0
            for row in _rows(database, table, key):
                if row is not None and len(row) == width and _holds(makes_sense, row):
                    count += into.execute(insert, row).rowcount
                elif table == "outbox" and not (row is not None and _holds(_is_running_answer, row)):
                    outbox_is_whole = False
            if count:
                taken[table] = count
    into.execute(_CUT_AUDIT)
    return Salvaged(taken, outbox_is_whole)


def _rows(database: sqlite3.Connection, table: str, key: str) -> Iterator[Row | None]:
    """Every row that can be reached: from the front as far as it goes, there None, and then from behind."""
    deadline = time.monotonic() + TABLE_LIMIT_S
    database.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    for order in ("ASC", "DESC"):
        columns = ", ".join(f"{name} {order}" for name in key.split())
        with suppress(sqlite3.DatabaseError):
            yield from database.execute(f"SELECT * FROM {table} ORDER BY {columns}")  # noqa: S608
            return
        yield None


def _holds(makes_sense: Callable[..., bool], row: Row) -> bool:
    try:
        return makes_sense(*row)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return False


def _is_counter(name: str, value: int) -> bool:
    return _is_id(name) and 0 < value < 1 << 53


def _is_final(sha256: str, scope: str, patient: str, slide: str, revision: int, event_id: str, *rest: Any) -> bool:
    """The event_id is made of the fields before it: a changed one does not fit."""
    fingerprint, state, done, expected, unformed, tally, at = rest
    return (
        _SHA256.fullmatch(sha256) is not None
        and _is_id(patient, fingerprint)
        and scope in ("slide", "patient")
        and event_id in {final_event_id(sha256, scope, patient, slide, revision, said) for said in ("", fingerprint)}
        and state in _STATES
        and done >= 0
        and (expected is None or expected >= 0)
        and all(count > 0 for count in json.loads(unformed).values())
        and (tally == "" or _is_tally(json.loads(tally)))
        and 0 <= at < 1e11
    )


def _is_tally(tally: dict[str, Any]) -> bool:
    return (
        all(isinstance(total, int) for total in tally["sums"])
        and tally["used"] + sum(tally["rejected"].values()) >= 0
    )


def _is_message(seq: int, topic: str, payload: bytes, event_id: str, kind: str, *rest: Any) -> bool:
    """Only what would not be said again by itself: running answers are."""
    route, (qos, retain, coalesce, expires_at) = ROUTES[kind], rest
    if not route.durable or route.coalesce or (qos, retain, coalesce) != (route.qos, route.retain, route.coalesce):
        return False
    try:
        said = route.payload.model_validate_json(payload)
    except ValidationError:
        return False
    ends = route.topic.rsplit("/", 1)[-1]
    return seq > 0 and said.event_id == event_id and topic.endswith(f"/{ends}") and expires_at > 0


def _is_running_answer(*row: Any) -> bool:
    return ROUTES[row[4]].coalesce


def _is_said(event_id: str, at: float) -> bool:
    return _is_id(event_id) and 0 <= at < 1e11


def _is_file(*row: Any) -> bool:
    file = FileStanding(*row)
    return (
        _is_id(file.file_id)
        and file.size >= 0
        and file.outcome in get_args(Outcome)
        and _SHA256.fullmatch(file.sha256) is not None
        and isinstance(file.detail, str)
        and 0 <= file.at < 1e11
    )


def _is_due(seq: int, sha256: str, scope: str, patient: str, slide: str, event_id: str, *_: Any) -> bool:
    return seq > 0 and _is_id(event_id, patient) and scope in ("slide", "patient")


def _is_entry(seq: int, entry: str) -> bool:
    return read_line(entry.encode()).seq == seq


def _is_id(*names: str) -> bool:
    return all(_ID.fullmatch(name) is not None for name in names)


_TABLES: dict[str, tuple[str, Callable[..., bool]]] = {
    "counters": ("name", _is_counter),
    "finals": ("profile_sha256 scope patient slide", _is_final),
    "outbox": ("seq", _is_message),
    "retained": ("seq", _is_message),
    "alerts": ("event_id", _is_said),
    "studies": ("patient", _is_said),
    "results_due": ("seq", _is_due),
    "files": ("file_id", _is_file),
    "audit": ("seq", _is_entry),
}
"""Table → the columns of its key, and whether a row makes sense."""
