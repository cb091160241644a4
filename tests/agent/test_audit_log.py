"""Promises of the audit log's files: every row once and in order, however the writing of them was cut off."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.audit_chain import START, Link, seal
from agent.audit_check import check
from agent.audit_log import AuditLog, Row, last_entry, log_files


def rows_of(count: int, end: Link = START) -> list[Row]:
    """Rows that follow each other."""
    rows = []
    for number in range(count):
        line, end = seal(end, 1e9, "test", {"number": number})
        rows.append(Row(end.seq, line))
    return rows


ROWS = rows_of(8)


class Bench:
    """A folder with a log, and what its writer tells."""

    def __init__(self, folder: Path, largest_bytes: int = 1 << 20) -> None:
        self.folder = folder
        self.told: list[str] = []
        self._largest = largest_bytes
        self.restart()

    def restart(self) -> None:
        """A writer that knows nothing of the one before."""
        self.log = AuditLog(self.folder, self.told.append, self._largest)

    def content(self) -> bytes:
        """All files together."""
        return b"".join(path.read_bytes() for path in log_files(self.folder))

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether the log is exactly these rows."""
        return self.content() == b"".join(row.written for row in rows)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty folder."""
    return Bench(tmp_path)


def test_rows_become_lines(bench: Bench) -> None:
    """In their order, readable for nobody else, and the log is whole."""
    bench.log.write(ROWS[:3])
    bench.log.write(ROWS[2:5])
    assert bench.holds(ROWS[:5])
    (path,) = log_files(bench.folder)
    assert path.name == "audit-000000000001.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert check([path]).end.seq == 5
    assert bench.told == []


def test_rows_that_are_there_are_not_written_again(bench: Bench) -> None:
    """The same rows, with or without new ones, by the same writer and after a restart."""
    bench.log.write(ROWS[:3])
    bench.log.write(ROWS[:3])
    bench.restart()
    bench.log.write(ROWS[2:3])
    bench.log.write(ROWS[:4])
    bench.restart()
    bench.log.write(ROWS[:6])
    assert bench.holds(ROWS[:6])
    assert bench.told == []


@settings(deadline=None)
@given(done=st.integers(1, 6), data=st.data())
def test_a_cut_off_write_is_finished(
    tmp_path_factory: pytest.TempPathFactory, done: int, data: st.DataObject
) -> None:
    """Killed at any byte of a write: the next start writes what is missing and nothing twice."""
    bench = Bench(tmp_path_factory.mktemp("log"))
    bench.log.write(ROWS[:done])
    (path,) = log_files(bench.folder)
    safe = path.stat().st_size
    rest = b"".join(row.written for row in ROWS[done:])
    with path.open("ab") as file:
        file.write(rest[: data.draw(st.integers(0, len(rest)))])
    bench.restart()
    bench.log.write(ROWS[data.draw(st.integers(0, done - 1)) :])
    assert bench.holds(ROWS)
    assert bench.told == [] and path.stat().st_size > safe


@settings(deadline=None)
@given(done=st.integers(1, 6), data=st.data())
def test_holes_of_a_power_cut_are_filled(
    tmp_path_factory: pytest.TempPathFactory, done: int, data: st.DataObject
) -> None:
    """Of what was not yet synced any stretch may be zeros: it is written again, since the ledger still has it."""
    bench = Bench(tmp_path_factory.mktemp("log"))
    bench.log.write(ROWS)
    (path,) = log_files(bench.folder)
    safe = sum(len(row.written) for row in ROWS[:done])
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(safe, len(content)))
    end = data.draw(st.integers(start, len(content)))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    bench.restart()
    bench.log.write(ROWS[done - 1 :])
    assert bench.holds(ROWS)
    assert bench.told == []


def test_a_large_file_is_followed_by_a_new_one(tmp_path: Path) -> None:
    """Named by its first entry; the chain goes on from one to the next."""
    bench = Bench(tmp_path, largest_bytes=500)
    for number in range(8):
        bench.log.write(ROWS[max(0, number - 1) : number + 1])
    names = [path.name for path in log_files(tmp_path)]
    assert names == ["audit-000000000001.jsonl", "audit-000000000004.jsonl", "audit-000000000007.jsonl"]
    assert bench.holds(ROWS) and bench.told == []
    assert check(log_files(tmp_path)).end.seq == 8


@pytest.mark.parametrize("cut", ["not begun", "empty", "torn", "one line"])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_kill_at_a_change_of_files(tmp_path: Path, cut: str, kept: int) -> None:
    """Killed before, while or after the first line of a new file was written: nothing is lost or doubled."""
    bench = Bench(tmp_path, largest_bytes=500)
    bench.log.write(ROWS[:3])
    if cut != "not begun":
        line = ROWS[3].written
        beginning = {"empty": b"", "torn": line[:40], "one line": line}[cut]
        (tmp_path / "audit-000000000004.jsonl").write_bytes(beginning)
    bench.restart()
    bench.log.write(ROWS[3 - kept : 5])
    assert bench.holds(ROWS[:5]) and bench.told == []
    assert len(log_files(tmp_path)) == 2


def test_a_cut_log_is_told_and_shows_the_gap(bench: Bench) -> None:
    """Lines that somebody removed from the end are not passed over: it is said, and reading finds the gap."""
    bench.log.write(ROWS[:5])
    (path,) = log_files(bench.folder)
    path.write_bytes(b"".join(row.written for row in ROWS[:2]))
    bench.restart()
    bench.log.write(ROWS[4:7])
    assert bench.told == ["it ends with entry 2, and the ledger goes on with entry 5"]
    fault = check([path]).fault
    assert fault is not None and (fault.line, "entries 3 to 4 are missing" in fault.why) == (3, True)


def test_a_log_cut_under_a_running_agent_is_told(bench: Bench) -> None:
    """The writer compares what it left with what is there before each write."""
    bench.log.write(ROWS[:5])
    (path,) = log_files(bench.folder)
    path.write_bytes(path.read_bytes()[:-700])
    bench.log.write(ROWS[4:6])
    assert len(bench.told) == 1
    assert check([path]).fault is not None


def test_a_removed_log_is_told(bench: Bench) -> None:
    """Without any file the log begins where the ledger goes on, and reading says what is missing."""
    bench.log.write(ROWS[:5])
    log_files(bench.folder)[0].unlink()
    bench.log.write(ROWS[4:6])
    assert bench.told == ["it is not there, and the ledger goes on with entry 5"]
    (path,) = log_files(bench.folder)
    assert path.name == "audit-000000000005.jsonl"
    fault = check([path]).fault
    assert fault is not None and "entries 1 to 4 are missing" in fault.why


def test_a_forged_end_is_kept_as_it_is(bench: Bench) -> None:
    """Entries that the ledger did not write are evidence: they are told of, never cut off, and do not verify."""
    bench.log.write(ROWS[:3])
    (path,) = log_files(bench.folder)
    forged, _ = seal(Link(3, ROWS[2].entry.hash), 1e9, "test", {"forged": True})
    with path.open("ab") as file:
        file.write(forged.encode() + b"\n")
    bench.restart()
    bench.log.write(ROWS[2:5])
    assert bench.told == ["entries follow entry 3 that the ledger did not write"]
    assert forged.encode() in path.read_bytes()
    fault = check([path]).fault
    assert fault is not None and fault.line == 5


def test_an_edited_last_line_is_kept_as_it_is(bench: Bench) -> None:
    """Its neighbour goes on behind it, and reading finds the edited line itself."""
    bench.log.write(ROWS[:3])
    (path,) = log_files(bench.folder)
    path.write_bytes(path.read_bytes().replace(b'"number":2', b'"number":9'))
    bench.restart()
    bench.log.write(ROWS[2:5])
    assert bench.told == ["it ends with a damaged line, and the ledger goes on with entry 3"]
    fault = check([path]).fault
    assert fault is not None and (fault.line, fault.why) == (3, "it was changed after it was written")


def test_trouble_that_was_told_is_not_told_again(bench: Bench) -> None:
    """After it the log goes on: further rows, by the same writer or the next, say nothing more."""
    bench.log.write(ROWS[:3])
    log_files(bench.folder)[0].unlink()
    bench.log.write(ROWS[2:5])
    bench.log.write(ROWS[4:6])
    bench.restart()
    bench.log.write(ROWS[5:8])
    assert len(bench.told) == 1


def test_a_link_in_the_logs_place_is_refused(bench: Bench) -> None:
    """A symbolic link could lead the writing into any file: OSError, and the file behind it is not touched."""
    target = bench.folder / "precious"
    target.touch()
    (bench.folder / "audit-000000000001.jsonl").symlink_to(target)
    with pytest.raises(OSError):
        bench.log.write(ROWS[:1])
    assert target.read_bytes() == b""


def test_after_an_error_the_same_rows_may_be_given_again(bench: Bench) -> None:
    """What stood in the way is gone: everything is written, once."""
    bench.log.write(ROWS[:2])
    (path,) = log_files(bench.folder)
    aside = path.with_name("aside")
    path.rename(aside)
    path.mkdir()
    for _ in range(3):
        with pytest.raises(OSError):
            bench.log.write(ROWS[1:4])
    path.rmdir()
    aside.rename(path)
    bench.log.write(ROWS[1:5])
    assert bench.holds(ROWS[:5]) and bench.told == []


def test_the_last_entry_is_found_behind_damage(bench: Bench) -> None:
    """A new ledger goes on behind the last line that can be read, in whichever file that is."""
    assert last_entry(bench.folder) is None
    bench.log.write(ROWS[:3])
    (bench.folder / "audit-000000000004.jsonl").write_bytes(b"\x00" * 100 + b"\n" + ROWS[3].written[:50])
    entry = last_entry(bench.folder)
    assert entry is not None and entry.seq == 3


def test_no_descriptor_is_left_open(bench: Bench) -> None:
    """Each write closes what it opened."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for number in range(len(ROWS)):
        bench.log.write(ROWS[: number + 1])
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
