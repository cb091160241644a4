"""What happens to a damaged ledger: set aside (never deleted), a new one made of what can be read, and told.

Each step can be cut off by a kill and is finished by the next start; the marker says how far it has come. Patches are
counted anew from the folder, so slides that were still open, or ended lately, are read again. Knows no table's rows.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.errors import LedgerDamaged, LedgerError
from agent.ledger import Ledger
from agent.ledger_file import PARTS, explained, open_database, transaction
from agent.ledger_marker import mark_damaged, marker_of, read_marker, remove_marker, sync_folder, write_marker
from agent.ledger_salvage import salvage

_NAMES = {
    "finals": "finals",
    "outbox": "unsent messages",
    "alerts": "alerts that were said",
    "files": "files that were looked at",
    "audit": "entries on their way to the audit log",
}
"""Table → how people call what it holds."""
_LATELY = "CREATE TEMP TABLE lately AS SELECT patient FROM finals GROUP BY patient HAVING max(at) >= ?"
_READ_AGAIN = (
    # What is due as a file needs its patches: another revision will be due when they are there.
    "UPDATE finals SET fingerprint = '' WHERE event_id IN (SELECT event_id FROM results_due)"
    " AND patient IN (SELECT patient FROM lately)",
    "DELETE FROM results_due WHERE patient IN (SELECT patient FROM lately)",
    "UPDATE finals SET state = 'stalled', done = 0, unformed = '{}',"
    """ tally = '{"sums": [], "used": 0, "rejected": {}}' WHERE scope = 'slide'"""
    " AND patient IN (SELECT patient FROM lately)",
    "INSERT OR IGNORE INTO alerts SELECT event_id, CAST(strftime('%s', 'now') AS REAL) FROM outbox"
    " WHERE kind = 'alert'",
)
_SAY_AGAIN = (
    # Not known to wait, and not said again on each connect anyway: whether anybody has it cannot be known.
    "UPDATE finals SET fingerprint = '' WHERE event_id NOT IN"
    " (SELECT event_id FROM outbox UNION SELECT event_id FROM retained)",
    "DELETE FROM alerts WHERE event_id NOT IN (SELECT event_id FROM outbox)",
    "DELETE FROM files WHERE outcome = 'refused'",
)
"""When unsent messages may be missing: what nobody may have got is said again, finals as the next revision."""

log = structlog.get_logger("agent.ledger")


@dataclass(frozen=True)
class Rescue:
    """A ledger that was set aside, until that has been told."""

    path: Path
    """The ledger's."""
    aside: str
    """Name of the file that was set aside."""
    words: str
    """What happened, for people."""

    def done(self) -> None:
        """It has been told."""
        with explained(self.path):
            remove_marker(self.path)


def open_ledger(path: Path, keep_days: float, clock: Callable[[], float] = time.time) -> tuple[Ledger, Rescue | None]:
    """Open the ledger, or set it aside and begin a new one when it is damaged.

    Patients who ended within `keep_days` are counted anew then; those before keep what their finals say. Raises
    LedgerError for whatever else is wrong.
    """
    path = path.resolve()
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        rescue = _finish(path, clock() - 86_400 * keep_days)
        try:
            return Ledger.open(path, clock), rescue
        except LedgerDamaged as damage:
            log.error("ledger_damaged", detail=damage.detail)
        rescue = _finish(path, clock() - 86_400 * keep_days)
        return Ledger.open(path, clock), rescue


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two agents that start at once must not both set it aside; SQLite's own lock lies in the file that moves."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LedgerError(f"ledger {path}: another agent is just starting on it") from error
    finally:
        os.close(descriptor)


def _finish(path: Path, oldest: float) -> Rescue | None:
    """Do what the marker asks for, from wherever it was cut off; None when there is none."""
    if not marker_of(path).exists():
        return None
    with explained(path):
        marker = read_marker(path)
        if marker is None:
            mark_damaged(path, "the note about its damage was damaged, too")
            marker = read_marker(path) or {}
        aside = path.with_name(marker["aside"])
        _set_aside(path, aside)
        if not path.exists():
            why = marker.get("why", "")
            marker["words"] = _words(_rebuild(path, aside, oldest), aside, why)
            write_marker(path, marker)
            _new(path).rename(path)
            sync_folder(path.parent)
            log.error("ledger_rebuilt", detail=marker["words"], aside=aside.name)
    return Rescue(path, aside.name, marker.get("words", ""))


def _set_aside(path: Path, aside: Path) -> None:
    """The file first: a log without its file is never taken for a ledger, a file without its log might be."""
    if not aside.exists():
        if path.exists():
            path.rename(aside)
        else:
            aside.touch()
    if not path.exists():
        for part in PARTS[1:]:
            beside = path.with_name(f"{path.name}{part}")
            if beside.exists():
                beside.rename(aside.with_name(f"{aside.name}{part}"))
        sync_folder(path.parent)


def _rebuild(path: Path, aside: Path, oldest: float) -> dict[str, int]:
    """Make the new ledger whole under another name."""
    new = _new(path)
    for part in PARTS:
        new.with_name(f"{new.name}{part}").unlink(missing_ok=True)
    with closing(open_database(new)) as database:
        salvaged = salvage(aside, database, path.with_name(f"{path.name}.salvage"))
        doubts = () if salvaged.outbox_is_whole else _SAY_AGAIN
        with transaction(database):
            database.execute(_LATELY, (oldest,))
            for statement in (*_READ_AGAIN, *doubts):
                database.execute(statement)
    return salvaged.rows


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilt")


def _words(taken: dict[str, int], aside: Path, why: str) -> str:
    found = [f"{taken[table]} {name}" for table, name in _NAMES.items() if table in taken]
    saved = "Taken over: " + ", ".join(found) if found else "Nothing of it could be read"
    return (
        f"the ledger was damaged ({why}) and is set aside as {aside.name}. {saved}. Patches are counted anew from the"
        " folder; a corrected final follows where that makes a difference"
    )
