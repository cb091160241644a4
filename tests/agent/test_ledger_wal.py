"""The write-ahead log as bytes: damage is told from what a power failure leaves, and whole frames are not lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.ledger_wal import FRAME_HEADER_BYTES, HEADER_BYTES, fault_of, mend

ROWS = 40
FRAME = FRAME_HEADER_BYTES + 4096


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of which nothing but its empty table is outside the log: one row, larger than a page, a commit."""
    folder = tmp_path_factory.mktemp("log")
    database = sqlite3.connect(folder / "a", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filling BLOB)")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(ROWS):
        database.execute("INSERT INTO t VALUES (?, zeroblob(5000))", (number,))
    for part in ("", "-wal"):
        shutil.copyfile(folder / f"a{part}", folder / f"b{part}")
    database.close()
    return folder / "b"


@pytest.fixture
def log(crashed: Path, tmp_path: Path) -> Iterator[Path]:
    """A log of its own for a test."""
    for part in ("", "-wal"):
        shutil.copyfile(f"{crashed}{part}", tmp_path / f"b{part}")
    yield tmp_path / "b-wal"


def rows(log: Path) -> list[int]:
    """What SQLite reads with this log."""
    with closing(sqlite3.connect(log.with_name("b"))) as database:
        found = []
        try:
            for (number,) in database.execute("SELECT n FROM t"):
                found.append(number)
        except sqlite3.DatabaseError:
            pass
        return found


def change(log: Path, place: int) -> None:
    """Another byte."""
    with log.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x55]))


def test_a_whole_log_is_whole(log: Path, tmp_path: Path) -> None:
    """Nothing is found in a log as SQLite left it, in an empty one, or where there is none."""
    assert fault_of(log) is None
    assert fault_of(tmp_path / "none") is None
    log.write_bytes(b"")
    assert fault_of(log) is None
    log.write_bytes(bytes(10_000))
    assert fault_of(log) is None


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_log_that_was_cut_anywhere_is_not_damaged(crashed: Path, data: st.DataObject) -> None:
    """A power failure ends the log at any byte, with zeros or with other bytes in place of its last transaction."""
    log = crashed.with_name("cut-wal")
    content = crashed.with_name("b-wal").read_bytes()
    cut = data.draw(st.integers(HEADER_BYTES, len(content)))
    log.write_bytes(content[:cut] + data.draw(st.sampled_from([b"", bytes(3 * FRAME), b"\xee" * 2 * FRAME])))
    assert fault_of(log) is None


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_changed_byte_before_the_last_transactions_is_found(crashed: Path, data: st.DataObject) -> None:
    """Header, frame headers or pages: SQLite would end the log there without a word."""
    log = crashed.with_name("changed-wal")
    shutil.copyfile(crashed.with_name("b-wal"), log)
    place = data.draw(st.integers(0, log.stat().st_size - 8 * FRAME))
    change(log, place)
    assert fault_of(log) is not None


@pytest.mark.parametrize("place", [3, 13, 17, 25, HEADER_BYTES + 2, HEADER_BYTES + 9, HEADER_BYTES + 18, 9 * FRAME])
def test_mending_keeps_what_is_whole(log: Path, place: int) -> None:
    """Behind the damage all is read again, where SQLite alone stops; at most what the frame held is missing."""
    change(log, place)
    broken = log.with_name("broken")
    broken.mkdir()
    for part in ("b", "b-wal"):
        shutil.copyfile(log.with_name(part), broken / part)
    assert len(rows(broken / "b-wal")) < ROWS // 2
    mend(log)
    found = rows(log)
    assert len(found) >= ROWS - 4 and found[-1] == ROWS - 1


def test_frames_of_an_earlier_round_are_not_read(tmp_path: Path) -> None:
    """A log that began anew is followed by older frames: they are neither damage nor content."""
    with closing(sqlite3.connect(tmp_path / "a", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filling BLOB)")
        for number in range(ROWS):
            database.execute("INSERT INTO t VALUES (?, zeroblob(5000))", (number,))
        database.execute("PRAGMA wal_checkpoint(RESTART)")
        database.execute("INSERT INTO t VALUES (99, 'new')")
        for part in ("", "-wal"):
            shutil.copyfile(tmp_path / f"a{part}", tmp_path / f"b{part}")
    log = tmp_path / "b-wal"
    assert log.stat().st_size > 50 * FRAME and fault_of(log) is None
    mend(log)
    assert log.stat().st_size < 10 * FRAME
    assert rows(log) == [*range(ROWS), 99]
