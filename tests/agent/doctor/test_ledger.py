"""Promises of doctor about the ledger: a running agent is left alone, damage is found, nothing is changed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.doctor.ledger import COPY_LIMIT_BYTES, LARGE_WAL_BYTES, MANY_UNSENT, look_at_ledger
from agent.ledger import Ledger, Record
from agent.ledger_copy import lock_holder
from agent.ledger_marker import mark_damaged
from agent.topics import Message
from tests.agent.doctor.site import Site, only

HOLDER = """
import sys
from pathlib import Path
from agent.ledger import Ledger, Record
from agent.topics import Message
ledger = Ledger.open(Path(sys.argv[1]))
ledger.append(Record("sha", messages=(Message("t/final", b"{}", "later", "slide.final", 1, False, False, True),)))
print("open", flush=True)
sys.stdin.read()
"""


def message(number: int) -> Message:
    """A final."""
    return Message("t/final", b"{}", str(number), "slide.final", 1, False, False, True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine with its state folder."""
    site = Site(tmp_path)
    site.state.mkdir(mode=0o700)
    return site


@pytest.fixture
def ledger(site: Site) -> Path:
    """A ledger that nobody uses, with three unsent messages."""
    path = site.state / "ledger.sqlite"
    opened = Ledger.open(path)
    opened.append(Record("sha", messages=tuple(message(number) for number in range(3))))
    opened.close()
    return path


@pytest.fixture
def holder(ledger: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the ledger, as the agent does."""
    words = [sys.executable, "-c", HOLDER, str(ledger)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
        process.kill()


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of a folder: inode, mtime, content."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


def test_before_the_first_start_there_is_none(site: Site) -> None:
    """It is made by the agent, not by doctor."""
    assert "first start" in only(site.look(look_at_ledger), "ledger").found
    assert list(site.state.iterdir()) == []


def test_a_whole_ledger_is_told_with_what_is_unsent(site: Site, ledger: Path) -> None:
    """Verdict, unsent messages, size and schema; not a byte and not a file is changed."""
    before = state_of(site.state)
    finding = only(site.look(look_at_ledger), "ledger")
    assert finding.verdict == "ok"
    assert finding.found.startswith("whole, 3 messages unsent; ")
    assert state_of(site.state) == before


def test_a_log_that_was_not_written_back_counts(site: Site, ledger: Path, holder: subprocess.Popen[str]) -> None:
    """After kill -9 the last messages are only in the write-ahead log: they are counted, and the log stays."""
    holder.kill()
    holder.wait()
    assert ledger.with_name("ledger.sqlite-wal").stat().st_size
    before = state_of(site.state)
    assert "4 messages unsent" in only(site.look(look_at_ledger), "ledger").found
    assert state_of(site.state) == before


def test_a_running_agent_is_left_alone(site: Site, ledger: Path, holder: subprocess.Popen[str]) -> None:
    """The process that holds the ledger is told by its number, and it can still write afterwards."""
    before = state_of(site.state)
    finding = only(site.look(look_at_ledger), "ledger")
    assert finding.verdict == "ok"
    assert f"in use by the running agent (process {holder.pid})" in finding.found
    assert state_of(site.state) == before
    assert lock_holder(ledger) == holder.pid
    assert holder.stdin is not None
    holder.stdin.close()
    assert holder.wait() == 0
    assert lock_holder(ledger) is None


def test_a_damaged_ledger_fails(site: Site, ledger: Path) -> None:
    """Pages full of nonsense: what the next start does about it is said."""
    content = bytearray(ledger.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    ledger.write_bytes(content)
    finding = only(site.look(look_at_ledger), "ledger")
    assert finding.verdict == "fail"
    assert "damaged" in finding.found and "sets it aside" in finding.why


def test_a_hole_in_the_log_fails(site: Site, ledger: Path, holder: subprocess.Popen[str]) -> None:
    """Also where SQLite would read on as if nothing had been there."""
    holder.kill()
    holder.wait()
    with ledger.with_name("ledger.sqlite-wal").open("r+b") as log:
        log.write(bytes(32))
    assert "head of its log" in only(site.look(look_at_ledger), "ledger").found


def test_a_ledger_that_is_marked_fails(site: Site, ledger: Path) -> None:
    """However well it looks by now."""
    mark_damaged(ledger, "page 7 is not what it was")
    finding = only(site.look(look_at_ledger), "ledger")
    assert finding.verdict == "fail" and "page 7" in finding.found


def test_what_was_set_aside_is_named(site: Site, ledger: Path) -> None:
    """Each with its size and the command that removes it, beside what is said of the ledger itself."""
    for stamp in ("20260101T000000.000001Z", "20260301T000000.000001Z"):
        aside = ledger.with_name(f"ledger.sqlite.damaged-{stamp}")
        aside.write_bytes(bytes(3 << 20))
    found = site.look(look_at_ledger)
    asides = found["ledger_set_aside"]
    assert [finding.verdict for finding in asides] == ["warn", "warn"]
    assert "20260101" in asides[0].found and "3.0 MiB" in asides[0].found and "rm " in asides[1].mend
    assert only(found, "ledger").verdict == "ok"


def test_something_else_under_its_name_fails(site: Site) -> None:
    """A text file is no ledger."""
    (site.state / "ledger.sqlite").write_text("not a database, but long enough to be looked at" * 50)
    assert only(site.look(look_at_ledger), "ledger").verdict == "fail"


def test_a_newer_schema_and_an_empty_file_fail(site: Site, ledger: Path) -> None:
    """A ledger of a later version cannot be read; an empty file was a ledger once."""
    database = sqlite3.connect(ledger)
    database.execute("PRAGMA user_version = 999")
    database.commit()
    database.close()
    finding = only(site.look(look_at_ledger), "ledger")
    assert finding.verdict == "fail" and "newer version (schema 999" in finding.found
    ledger.write_bytes(b"")
    assert "it is empty" in only(site.look(look_at_ledger), "ledger").found


def test_many_unsent_messages_warn(site: Site, ledger: Path) -> None:
    """Results that nobody has received for long are a reason to look at the broker."""
    opened = Ledger.open(ledger)
    opened.append(Record("sha", messages=tuple(message(number) for number in range(MANY_UNSENT))))
    opened.close()
    finding = only(site.look(look_at_ledger), "ledger")
    assert finding.verdict == "warn" and f"{MANY_UNSENT + 3} messages unsent" in finding.found


def test_a_huge_ledger_is_not_copied(site: Site, ledger: Path) -> None:
    """Too large for a copy: its size is told, and a log that grew is a warning of its own."""
    with ledger.open("r+b") as file:
        file.truncate(COPY_LIMIT_BYTES + 1)
    with ledger.with_name("ledger.sqlite-wal").open("wb") as file:
        file.truncate(LARGE_WAL_BYTES + 1)
    found = site.look(look_at_ledger)
    assert "too large to be copied" in only(found, "ledger").found
    assert only(found, "ledger_log").verdict == "warn"
