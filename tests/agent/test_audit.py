"""Promises of what the ledger enters into the audit log: with each record or not at all, once, whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.audit_chain import Entry
from agent.audit_check import check
from agent.audit_log import log_files
from agent.errors import LedgerError
from agent.ledger import CountedPatch, FileStanding, FinalRow, Ledger, Record
from agent.topics import Message
from models.contract import PatchKey, SlideKey
from tests.agent.test_ledger import tiny_disk

SHA = "ab" * 32
SLIDE = SlideKey("patient", "slide")
STANDING = FileStanding("file", 7, 8, "whole", *SLIDE, sha256="cd" * 32, at=5.0)
PAYLOAD = json.dumps(
    {
        "event_id": "event",
        "session_id": "session",
        "supersedes": None,
        "decision": "final",
        "predicted": "schwannoma",
        "confidence": 0.75,
        "counts": {"seen": 9, "used": 8},
    }
).encode()
MESSAGE = Message("t/slide/slide/final", PAYLOAD, "event", "slide.final", 1, True, False, True)
FINAL = FinalRow("slide", *SLIDE, 1, "event", "print", "complete", 2, 2, at=5.0)


def entries_in(folder: Path) -> list[Entry]:
    """Every entry of a log that is whole."""
    found: list[Entry] = []
    verdict = check(log_files(folder), found.append)
    assert verdict.fault is None, str(verdict.fault)
    return found


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger.open(tmp_path / "ledger.sqlite", clock=lambda: 1e9)
    yield opened
    opened.close()


def test_a_record_is_entered(ledger: Ledger) -> None:
    """Slides that are read again, files and finals, in this order, with all that identifies them."""
    ledger.append(Record(SHA, messages=(MESSAGE,), finals=(FINAL,), files=(STANDING,), reopened=(SLIDE,)))
    ledger.audit.export()
    reopened, file, final = entries_in(ledger.path.parent)
    assert (reopened.kind, reopened.facts) == ("reopened", {"patient": "patient", "slide": "slide"})
    assert (file.kind, file.time) == ("file", "2001-09-09T01:46:40.000Z")
    assert file.facts == {
        "file": "file",
        "outcome": "whole",
        "patient": "patient",
        "slide": "slide",
        "size": 7,
        "mtime_ns": 8,
        "sha256": "cd" * 32,
    }
    assert final.kind == "final"
    assert final.facts == {
        "event_id": "event",
        "scope": "slide",
        "patient": "patient",
        "slide": "slide",
        "revision": 1,
        "supersedes": None,
        "profile_sha256": SHA,
        "fingerprint": "print",
        "payload_sha256": hashlib.sha256(PAYLOAD).hexdigest(),
        "session_id": "session",
        "state": "complete",
        "parts": 2,
        "expected": 2,
        "decision": "final",
        "predicted": "schwannoma",
        "confidence": 0.75,
        "seen": 9,
        "used": 8,
    }


def test_a_refused_file_is_entered_with_its_reason(ledger: Ledger) -> None:
    """A file that belongs nowhere has no patient; one that was not read whole has no hash."""
    refused = FileStanding("f", 1, 2, "refused", reason="malformed", detail="the header ends early")
    ledger.append(Record(SHA, files=(refused,)))
    ledger.audit.export()
    (entry,) = entries_in(ledger.path.parent)
    wanted = {"reason": "malformed", "detail": "the header ends early"}
    assert entry.facts == {"file": "f", "outcome": "refused", "size": 1, "mtime_ns": 2, **wanted}


def test_a_file_that_stands_as_before_is_no_news(ledger: Ledger) -> None:
    """What was made of the same bytes is entered once, also over restarts; a change is entered again."""
    standings = (STANDING, replace(STANDING, at=9.0), replace(STANDING, mtime_ns=9), STANDING)
    for standing in standings:
        ledger.append(Record(SHA, files=(standing,)))
    ledger.append(Record(SHA, files=standings))
    ledger.audit.export()
    assert [entry.facts["mtime_ns"] for entry in entries_in(ledger.path.parent)] == [8, 9, 8, 9, 8]


def test_patches_and_running_answers_leave_no_entry(ledger: Ledger) -> None:
    """The log grows with files and finals only."""
    patch = CountedPatch(PatchKey(*SLIDE, 0, 0, 0), (1, 2), None)
    running = Message("t/slide/slide/posterior", b"{}", "1", "slide.posterior", 1, True, True, True)
    ledger.append(Record(SHA, patches=(patch,), messages=(running,)))
    ledger.audit.export()
    assert log_files(ledger.path.parent) == []


def test_a_record_that_makes_no_sense_leaves_no_entry(ledger: Ledger) -> None:
    """Entries are of the transaction: rolled back with it, and the next one takes their number."""
    wrong = CountedPatch(PatchKey(*SLIDE, 0, 0, 0), None, None)
    with pytest.raises(ValueError, match="either values or a reason"):
        ledger.append(Record(SHA, patches=(wrong,), files=(STANDING,)))
    ledger.audit.add("test", {})
    ledger.audit.export()
    (entry,) = entries_in(ledger.path.parent)
    assert (entry.seq, entry.kind) == (1, "test")


def test_a_final_without_its_message_is_entered_all_the_same(ledger: Ledger) -> None:
    """What is not known of it is null."""
    ledger.append(Record(SHA, finals=(FINAL,)))
    ledger.audit.export()
    (entry,) = entries_in(ledger.path.parent)
    assert (entry.facts["event_id"], entry.facts["payload_sha256"], entry.facts["used"]) == ("event", None, None)


def test_a_release_from_quarantine_is_entered(ledger: Ledger) -> None:
    """Somebody let the agent look at a file again; a file that was not refused leaves no entry."""
    ledger.append(Record(SHA, files=(FileStanding("file", 1, 2, "refused"),)))
    assert ledger.release("file") and not ledger.release("other")
    ledger.audit.export()
    assert [(e.kind, e.facts["file"]) for e in entries_in(ledger.path.parent)] == [
        ("file", "file"),
        ("released", "file"),
    ]


def test_the_head_is_that_of_the_files(ledger: Ledger) -> None:
    """What health publishes can be found in the log: entries that still wait are not yet part of it."""
    ledger.audit.add("test", {})
    assert ledger.audit.head.entries == 0
    ledger.audit.export()
    ledger.audit.add("test", {})
    (entry,) = entries_in(ledger.path.parent)
    assert (ledger.audit.head.entries, ledger.audit.head.head) == (1, entry.hash)


def test_the_chain_goes_on_over_restarts(tmp_path: Path) -> None:
    """Entries that were not exported before the end are exported by the next start, in order."""
    path = tmp_path / "ledger.sqlite"
    for number in range(4):
        ledger = Ledger.open(path)
        ledger.audit.add("test", {"number": number})
        if number % 2:
            ledger.audit.export()
        ledger.close()
    assert [entry.facts["number"] for entry in entries_in(tmp_path)] == [0, 1, 2, 3]


def test_the_ledger_keeps_no_more_than_it_must(ledger: Ledger) -> None:
    """Rows leave it when their entries are in the files, but for the last one."""
    for number in range(20):
        ledger.audit.add("test", {"number": number})
        ledger.audit.export()
    path = ledger.path
    ledger.close()
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT seq FROM audit ORDER BY seq").fetchall()
    assert rows == [(19,), (20,)]


@pytest.mark.parametrize("state", ["new", "older"])
def test_another_ledger_continues_the_log(tmp_path: Path, state: str) -> None:
    """A new ledger beside an old log, and one from a backup, go on behind the log's last entry."""
    path, backup = tmp_path / "ledger.sqlite", tmp_path / "backup"
    for number in range(3):
        ledger = Ledger.open(path)
        ledger.audit.add("test", {"number": number})
        ledger.audit.export()
        ledger.close()
        if number == 0:
            backup.write_bytes(path.read_bytes())
    path.unlink()
    if state == "older":
        backup.rename(path)
    with capture_logs() as logs:
        for number in (3, 4):
            ledger = Ledger.open(path)
            ledger.audit.add("test", {"number": number})
            ledger.audit.export()
            ledger.close()
    assert [entry.facts["number"] for entry in entries_in(tmp_path)] == [0, 1, 2, 3, 4]
    assert logs == []


def test_entries_that_hang_on_nothing_are_dropped(tmp_path: Path) -> None:
    """A ledger that was damaged may lack rows in between: what can be continued is, and the log stays whole."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(path)
    for number in range(5):
        ledger.audit.add("test", {"number": number})
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DELETE FROM audit WHERE seq = 3")
    ledger = Ledger.open(path)
    ledger.audit.add("test", {"number": 9})
    ledger.audit.export()
    ledger.close()
    assert [entry.facts["number"] for entry in entries_in(tmp_path)] == [0, 1, 9]


@pytest.mark.parametrize("lines", [1, 4])
def test_a_cut_log_is_mended_or_told(tmp_path: Path, lines: int) -> None:
    """The ledger knows how the log must end: a few lines that are missing it writes again, more it tells of."""
    path = tmp_path / "ledger.sqlite"
    with capture_logs() as logs:
        for start in range(3):
            ledger = Ledger.open(path)
            for number in range(3):
                ledger.audit.add("test", {"number": 3 * start + number})
                ledger.audit.export()
            ledger.close()
            if start == 1:
                (file,) = log_files(tmp_path)
                file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-lines]))
    if lines == 1:
        assert logs == []
        assert [entry.facts["number"] for entry in entries_in(tmp_path)] == list(range(9))
    else:
        assert [log["event"] for log in logs] == ["audit_broken"]
        assert "it ends with entry 2, and the ledger goes on with entry 5" in logs[0]["detail"]
        assert check(log_files(tmp_path)).end.seq == 2


def test_a_log_that_cannot_be_written_stops_nothing(ledger: Ledger) -> None:
    """Told once, tried again, nothing lost: entries wait in the ledger."""
    in_the_way = ledger.path.parent / "audit-000000000001.jsonl"
    in_the_way.mkdir()
    ledger.audit.retry_s = 0.0
    with capture_logs() as logs:
        for number in range(5):
            ledger.audit.add("test", {"number": number})
            ledger.audit.export()
    assert [log["event"] for log in logs] == ["audit_waits_in_the_ledger"]
    in_the_way.rmdir()
    ledger.audit.export()
    assert [entry.facts["number"] for entry in entries_in(ledger.path.parent)] == [0, 1, 2, 3, 4]


def test_it_is_not_tried_all_the_time(ledger: Ledger) -> None:
    """After a failure there is a pause, so that a full disk does not cost time with each message."""
    in_the_way = ledger.path.parent / "audit-000000000001.jsonl"
    in_the_way.mkdir()
    ledger.audit.add("test", {})
    with capture_logs():
        ledger.audit.export()
    in_the_way.rmdir()
    ledger.audit.export()
    assert log_files(ledger.path.parent) == []


def test_a_full_disk_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The log's disk fills in the middle of a line: what was confirmed is there once when there is room again."""
    with tiny_disk(tmp_path / "disk", "2m") as disk:
        ledger = Ledger.open(disk / "ledger.sqlite")
        ledger.audit.retry_s = 0.0
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        said: list[int] = []
        with capture_logs() as logs:
            for number in range(2000):
                try:
                    ledger.audit.add("test", {"number": number, "text": "x" * 1000})
                except LedgerError:
                    break
                said.append(number)
                ledger.audit.export()
            assert 50 < len(said) < 2000
            ballast.unlink()
            ledger.audit.add("test", {"number": -1})
            ledger.audit.export()
        assert {log["event"] for log in logs} <= {"audit_waits_in_the_ledger"}
        assert [entry.facts["number"] for entry in entries_in(disk)] == [*said, -1]
        ledger.close()


WRITER = """
    import sys
    from pathlib import Path
    from agent.ledger import Ledger, Record
    from tests.agent.test_audit import SHA, standing
    ledger = Ledger.open(Path(sys.argv[1]))
    number = int(sys.argv[2])
    while True:
        ledger.append(Record(SHA, files=tuple(standing(10 * number + k) for k in range(10))))
        print(number, flush=True)
        if number % 3:
            ledger.audit.export()
        number += 1
"""


def standing(number: int) -> FileStanding:
    """A file of its own, whose line takes some room."""
    return replace(STANDING, file_id=str(number), detail="x" * 900)


@contextmanager
def writer(path: Path, first: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that appends records for ever and tells each that was confirmed."""
    words = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(first)]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": root}) as process:
        yield process
        process.kill()


@pytest.mark.system
def test_kills_at_any_moment_leave_every_entry_once(tmp_path: Path) -> None:
    """SIGKILL again and again, over a change of files: every confirmed entry is in the log once, and it is whole."""
    path, chance, number = tmp_path / "ledger.sqlite", random.Random(4), 0
    # A first file that is nearly full, so that the killed ones begin the second.
    ledger = Ledger.open(path)
    ledger.audit.add("test", {"text": "x" * ((8 << 20) - 300_000)})
    ledger.audit.export()
    ledger.close()
    for _ in range(8):
        with writer(path, number) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 12)):
                number = int(process.stdout.readline()) + 1
            process.kill()
            process.wait()
            rest = process.stdout.read().split()
            number = int(rest[-1]) + 1 if rest else number
        number += 1  # the one that was killed may have been written, and is not appended again
    ledger = Ledger.open(path)
    ledger.audit.add("end", {})
    ledger.audit.export()
    held = {row.file_id for row in ledger.files.all()}
    ledger.close()
    files = [entry.facts["file"] for entry in entries_in(tmp_path) if entry.kind == "file"]
    assert len(files) == len(set(files)) and set(files) == held
    assert len(log_files(tmp_path)) == 2


def test_a_damaged_row_is_not_believed(tmp_path: Path) -> None:
    """Every line in the ledger is checked before anything hangs on it."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(path)
    ledger.audit.add("test", {"number": 1})
    ledger.audit.add("test", {"number": 2})
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE audit SET entry = replace(entry, '\"number\":2', '\"number\":3') WHERE seq = 2")
    ledger = Ledger.open(path)
    ledger.audit.add("test", {"number": 4})
    ledger.audit.export()
    ledger.close()
    assert [entry.facts["number"] for entry in entries_in(tmp_path)] == [1, 4]
