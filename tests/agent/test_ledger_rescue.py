"""Damaged ledgers: noticed wherever the damage lies, set aside and never deleted, salvaged without being trusted."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.errors import LedgerDamaged, LedgerError
from agent.ledger import Ledger, Record
from agent.ledger_marker import mark_damaged, marker_of, read_marker
from agent.ledger_rescue import Rescue, open_ledger
from tests.agent.ledger_cases import (
    NOW,
    PROFILE,
    TALLY,
    alert,
    crash,
    dies_at,
    fill,
    final,
    overwrite,
    patches,
    snapshot,
)

KEEP_DAYS = 30.0
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of four patients that was closed."""
    path = tmp_path / "state" / "ledger.sqlite"
    ledger = Ledger.open(path, lambda: NOW)
    for _ in range(3):
        ledger.next_boot()
    fill(ledger)
    ledger.close()
    return path


@pytest.fixture
def crashed(path: Path, tmp_path: Path) -> Path:
    """The same, killed with everything still in its log."""
    other = tmp_path / "crashed" / "ledger.sqlite"
    other.parent.mkdir()
    ledger = Ledger.open(path, lambda: NOW)
    fill(ledger, patients=8)
    crash(ledger, other)
    ledger.close()
    return other


def opened(path: Path) -> tuple[Ledger, Rescue | None]:
    """As the daemon opens it."""
    return open_ledger(path, KEEP_DAYS, lambda: NOW + 60)


def asides(path: Path) -> list[Path]:
    """Files that were set aside, without their logs."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*Z"))


def pages_of(path: Path, table: str) -> list[int]:
    """Numbers of the pages that hold a table, its root first."""
    with closing(sqlite3.connect(path)) as database:
        try:
            rows = database.execute("SELECT pageno FROM dbstat WHERE name = ? ORDER BY path", (table,)).fetchall()
        except sqlite3.OperationalError:
            rows = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    return [number for (number,) in rows]


def test_a_whole_ledger_is_just_opened(path: Path) -> None:
    """Nothing is set aside, marked or left behind; after kill -9, too."""
    for _ in range(2):
        ledger, rescue = opened(path)
        assert rescue is None and ledger.next_boot() > 3
        ledger.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


TABLES = ("patches", "finals", "outbox", "counters", "files", "alerts", "slides", "sqlite_master", "retained")


@pytest.mark.parametrize("table", TABLES)
def test_damage_in_any_table_is_survived(path: Path, table: str) -> None:
    """Every page of one table overwritten: set aside byte for byte, and what other tables held is taken over."""
    before = Ledger.open(path, lambda: NOW)
    known = snapshot(before)
    before.close()
    numbers = [1] if table == "sqlite_master" else pages_of(path, table)
    for number in numbers:
        overwrite(path, (number - 1) * PAGE + (100 if number == 1 else 0), PAGE - 100)
    damaged = path.read_bytes()
    ledger, rescue = opened(path)
    assert rescue is not None
    (aside,) = asides(path)
    assert aside.read_bytes() == damaged and aside.name == rescue.aside and aside.name in rescue.words
    found = snapshot(ledger)
    expected = {what: set(of) for what, of in known.items()}
    if table in ("outbox", "sqlite_master"):  # refused files are looked at again, since their alerts may be lost
        expected["files"] = {name for name in expected["files"] if not name.startswith("refused")}
    for what, of in (("finals", "finals"), ("unsent", "outbox"), ("files", "files")):
        assert set(found[what]) == (set() if table == of else expected[what]), what
    assert all(found["unsent"][event_id] == known["unsent"][event_id] for event_id in found["unsent"])
    assert ledger.next_boot() == (1 if table == "counters" else 4)
    assert list(ledger.patches.restore(PROFILE)) == []
    ledger.append(Record(PROFILE, messages=(alert(f"{0:032x}"),)))
    assert ledger.outbox_length() == len(found["unsent"]) + (table == "outbox"), "what waits is not said twice"
    ledger.close()


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def _foreign_text(path: Path) -> None:
    path.write_text("These are the minutes of the last meeting. " * 500)


def _lone_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").write_bytes(b"w" * 10_000)
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: overwrite(path, 0, 100),
        lambda path: overwrite(path, 0, PAGE),
        lambda path: overwrite(path, 18, 2),
        lambda path: overwrite(path, 60, 12),
        lambda path: overwrite(path, 0, path.stat().st_size),
        _cut,
        lambda path: path.write_bytes(b""),
        _foreign_text,
        _lone_log,
    ],
    ids=["head", "first page", "format", "version", "everything", "cut", "empty", "text", "lone log"],
)
def test_damage_to_the_whole_file_is_survived(path: Path, damage: Callable[[Path], None]) -> None:
    """A new ledger that works, the old file kept, and revisions that go on wherever they could be read."""
    damage(path)
    ledger, rescue = opened(path)
    assert rescue is not None and len(asides(path)) == 1
    ledger.append(Record(PROFILE, patches("p", "s", 3)))
    readable = len(ledger.finals(PROFILE))
    assert readable in (0, 16) or damage is _cut
    ledger.close()
    rescue.done()
    ledger, again = opened(path)
    assert again is None and len(list(ledger.patches.restore(PROFILE))) == 3
    assert len(ledger.finals(PROFILE)) == readable
    ledger.close()


@pytest.mark.parametrize("size", [100, PAGE], ids=["head", "first page"])
def test_a_lost_head_loses_nothing_behind_it(path: Path, size: int) -> None:
    """With the head of a new ledger in its place everything is read: finals, unsent messages, boots."""
    before = Ledger.open(path, lambda: NOW)
    known = snapshot(before)
    before.close()
    overwrite(path, 0, size)
    ledger, _ = opened(path)
    found = snapshot(ledger)
    assert (found["finals"], found["unsent"]) == (known["finals"], known["unsent"])
    assert {name for name in known["files"] if name.startswith("file")} == found["files"]
    assert ledger.next_boot() == 4
    ledger.close()


@pytest.mark.parametrize("place", ["head of the log", "early frame", "frame head"])
def test_damage_in_the_log_is_noticed_and_what_follows_is_read(crashed: Path, place: str) -> None:
    """SQLite would silently end the log there; finals and messages behind the damage are taken over all the same."""
    whole = crashed.with_name("whole.sqlite")
    for part in ("", "-wal"):
        shutil.copyfile(f"{crashed}{part}", f"{whole}{part}")
    intact = Ledger.open(whole, lambda: NOW)
    known = snapshot(intact)
    intact.close()
    log = crashed.with_name(f"{crashed.name}-wal")
    start = {"head of the log": 0, "early frame": 32 + 24 + 500, "frame head": 32 + 4120}[place]
    overwrite(log, start, 24)
    ledger, rescue = opened(crashed)
    assert rescue is not None and "log" in rescue.words
    found = snapshot(ledger)
    assert set(found["finals"]) == set(known["finals"]) and set(found["unsent"]) == set(known["unsent"])
    assert asides(crashed)[0].with_name(f"{asides(crashed)[0].name}-wal").exists()
    ledger.close()


def test_a_log_that_power_cut_off_is_no_damage(crashed: Path) -> None:
    """Half of the last transaction on the disk is what a power failure leaves: nothing is set aside."""
    log = crashed.with_name(f"{crashed.name}-wal")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 5000)
    ledger, rescue = opened(crashed)
    assert rescue is None and len(ledger.finals(PROFILE)) in (31, 32)
    ledger.close()


def test_rows_that_make_no_sense_are_left_behind(path: Path) -> None:
    """Whatever a damaged page may say: only rows that agree with themselves are taken over."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE finals SET revision = 9 WHERE scope = 'patient'")
        raw.execute("UPDATE finals SET tally = '{' WHERE revision = 2 AND scope = 'slide'")
        raw.execute("UPDATE finals SET state = 'finished' WHERE revision = 3")
        raw.execute("UPDATE outbox SET payload = substr(payload, 1, 200) WHERE kind = 'patient.final'")
        raw.execute("UPDATE outbox SET event_id = 'other' WHERE kind = 'slide.final'")
        raw.execute("UPDATE outbox SET topic = 'somewhere/else' WHERE kind = 'alert' AND seq % 2")
        raw.execute("UPDATE files SET outcome = 'lost' WHERE outcome = 'refused'")
        raw.execute("UPDATE counters SET value = -5")
        raw.execute("INSERT INTO outbox VALUES (999, 't/current', '{}', 'e', 'current', 1, 1, 1, 9e99)")
        raw.execute("INSERT INTO audit VALUES (9999, '{\"seq\": 9999}')")
    raw.close()
    mark_damaged(path, "somebody says so")
    ledger, rescue = opened(path)
    assert rescue is not None
    assert {row.revision for row in ledger.finals(PROFILE)} == {1}
    assert {row.message.kind for row in ledger.unsent(0, 1000)} <= {"alert"}
    assert {each.outcome for each in ledger.files.all()} == {"whole"}
    assert ledger.next_boot() == 1
    ledger.close()


def test_slides_of_late_patients_are_read_again_and_old_ones_keep_their_sums(path: Path) -> None:
    """Within keep_days the folder decides; of those who ended before, the exact tally is all that there is."""
    ledger = Ledger.open(path, lambda: NOW)
    said, row = final("oldpatient", "oldslide", at=NOW - 40 * 86_400)
    ended, last = final("oldpatient", "", at=NOW - 40 * 86_400)
    ledger.append(Record(PROFILE, (), (said, ended), (row, last)))
    ledger.close()
    mark_damaged(path, "somebody says so")
    ledger, _ = opened(path)
    slides = {row.slide: row for row in ledger.finals(PROFILE) if row.scope == "slide"}
    old = slides.pop("oldslide")
    assert old.tally == TALLY and old.is_finished_slide
    assert not any(row.is_finished_slide for row in slides.values())
    assert {row.tally for row in slides.values()} == {'{"sums": [], "used": 0, "rejected": {}}'}
    assert {row.fingerprint for row in slides.values()} == {f"{revision:064x}" for revision in (1, 2, 3)}
    ledger.close()


def test_a_final_that_may_be_lost_is_said_again(path: Path) -> None:
    """The outbox cannot be read: what is not retained either comes as the next revision, and alerts come again."""
    ledger = Ledger.open(path, lambda: NOW)
    lost = final("patient000000000", "slide00000000000")[1].event_id
    ledger._db.execute("DELETE FROM retained WHERE event_id = ?", (lost,))
    ledger.close()
    for number in pages_of(path, "outbox"):
        overwrite(path, (number - 1) * PAGE, PAGE)
    ledger, _ = opened(path)
    assert [row.event_id for row in ledger.finals(PROFILE) if not row.fingerprint] == [lost]
    assert len(ledger.retained()) == 15
    ledger.append(Record(PROFILE, messages=(alert(f"{0:032x}"),)))
    assert ledger.outbox_length() == 1, "its alert may be lost, too: it is let out again"
    ledger.close()


def test_what_was_acknowledged_is_not_said_again(path: Path) -> None:
    """The outbox can be read: what is not in it is with the broker."""
    ledger = Ledger.open(path, lambda: NOW)
    ledger.forget([row.seq for row in ledger.unsent(0, 1000)])
    ledger._db.execute("DELETE FROM retained")
    ledger.close()
    overwrite(path, (pages_of(path, "patches")[0] - 1) * PAGE, PAGE)
    ledger, _ = opened(path)
    assert all(row.fingerprint for row in ledger.finals(PROFILE))
    ledger.append(Record(PROFILE, messages=(alert(f"{0:032x}"),)))
    assert ledger.outbox_length() == 0
    ledger.close()


def test_what_is_due_as_a_file_becomes_due_again(path: Path) -> None:
    """A result that `dicom-out` has not got yet needs its patches: it will be said anew when they are counted."""
    ledger = Ledger.open(path, lambda: NOW)
    ledger.results.origin = "{}"
    said, row = final("patient000000000", "slide00000000000", 5)
    ledger.append(Record(PROFILE, (), (said,), (row,)))
    ledger.close()
    mark_damaged(path, "somebody says so")
    ledger, _ = opened(path)
    due = [row for row in ledger.finals(PROFILE) if not row.fingerprint]
    assert [row.revision for row in due] == [5] and ledger.results.due(10) == []
    ledger.close()


def test_damage_that_appears_while_running_is_marked(path: Path) -> None:
    """`append` meets a damaged page: LedgerDamaged, and the next start sets the ledger aside without asking again."""
    ledger = Ledger.open(path, lambda: NOW)
    for number in pages_of_open(ledger, "patches"):
        overwrite(path, (number - 1) * PAGE, PAGE)
    ledger._db.execute("PRAGMA shrink_memory")
    ledger._db.execute("PRAGMA cache_size = 1")
    with pytest.raises(LedgerDamaged, match="the next start sets it aside"):
        for number in range(4):
            ledger.append(Record(PROFILE, patches(f"patient{number:09}", f"slide{number:05}000000", 200)))
    ledger.close()
    marker = read_marker(path)
    assert marker is not None and marker["why"]
    ledger, rescue = opened(path)
    assert rescue is not None and rescue.aside == marker["aside"]
    assert len(ledger.finals(PROFILE)) == 16
    ledger.close()


def pages_of_open(ledger: Ledger, table: str) -> list[int]:
    """The pages of a table of a ledger that is open, found by its root."""
    (root,) = ledger._db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return [root]


def test_a_rescue_that_is_killed_anywhere_is_finished_by_the_next_start(tmp_path: Path) -> None:
    """Killed (-9) at every second line of it in turn: one file set aside, everything taken over, told once."""
    path = tmp_path / "state" / "ledger.sqlite"
    before = Ledger.open(path, lambda: NOW)
    before.next_boot()
    fill(before, patients=1, each=40)
    known = snapshot(before)
    before.close()
    overwrite(path, pages_of(path, "patches")[0] * PAGE - PAGE, PAGE)
    damaged = path.read_bytes()
    line, at_once = 0, 0
    while at_once == 0:
        state = tmp_path / f"state-{line}"
        shutil.copytree(path.parent, state)
        here = state / path.name
        if not dies_at(line, "agent/ledger_rescue", lambda here=here: opened(here)):  # type: ignore[misc]
            at_once = line
        ledger, rescue = opened(here)
        assert rescue is not None and [each.read_bytes() for each in asides(here)] == [damaged]
        assert "Taken over: 4 finals, 5 unsent messages, 1 alerts" in rescue.words
        assert snapshot(ledger) == known and ledger.next_boot() == 2
        assert ledger._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ledger.close()
        rescue.done()
        left = {each.name for each in state.iterdir()} - {path.name, rescue.aside}
        assert left <= {f"{rescue.aside}-wal", f"{rescue.aside}-shm"}, left
        shutil.rmtree(state)
        line += 2
    assert at_once > 30


def test_the_new_ledger_may_be_damaged_before_anything_was_told(path: Path) -> None:
    """Then it is set aside as well, beside the first one."""
    overwrite(path, 0, PAGE)
    ledger, _ = opened(path)
    ledger.close()
    overwrite(path, 0, PAGE)
    ledger, rescue = opened(path)
    assert rescue is not None and rescue.aside == asides(path)[1].name
    ledger.close()


def test_a_damaged_marker_is_still_a_marker(path: Path) -> None:
    """It cannot be read, so the ledger is not trusted either."""
    marker_of(path).write_bytes(b"\xff\xfe{")
    ledger, rescue = opened(path)
    assert rescue is not None and len(ledger.finals(PROFILE)) == 16
    ledger.close()


@pytest.mark.parametrize("place", ["folder", "other program", "newer"])
def test_what_is_not_damaged_is_refused_and_left_alone(path: Path, place: str) -> None:
    """A folder, another program's database, a newer ledger: nothing is renamed, marked or changed."""
    if place == "newer":
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA user_version = 99")
    else:
        path.unlink()
    if place == "folder":
        path.mkdir()
    if place == "other program":
        with closing(sqlite3.connect(path)) as raw, raw:
            raw.execute("CREATE TABLE bookmarks (url TEXT)")
            raw.execute("PRAGMA user_version = 3")
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(LedgerError, match=r"move it away|newer version") as refused:
        opened(path)
    assert not isinstance(refused.value, LedgerDamaged)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert before == (path.read_bytes() if path.is_file() else b"")


def test_a_link_to_another_disk_is_followed(path: Path, tmp_path: Path) -> None:
    """The ledger is set aside where it is, and the link goes on leading to the new one."""
    overwrite(path, 0, PAGE)
    link = tmp_path / "here" / "ledger.sqlite"
    link.parent.mkdir()
    link.symlink_to(path)
    ledger, rescue = opened(link)
    assert rescue is not None and link.is_symlink() and len(asides(path)) == 1
    ledger.close()


def test_two_starts_at_once_do_not_both_set_it_aside(path: Path) -> None:
    """While another start is at it, this one is refused and touches nothing."""
    overwrite(path, 0, PAGE)
    other = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(LedgerError, match="another agent is just starting"):
        opened(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    os.close(other)
    opened(path)[0].close()
    assert len(asides(path)) == 1


def test_no_room_for_a_rescue_is_said_and_nothing_is_lost(path: Path) -> None:
    """A state folder that takes no new file: LedgerError, and the damaged ledger stays where it is."""
    mark_damaged(path, "somebody says so")
    blocked = path.with_name(f"{path.name}.salvage")
    blocked.write_text("in the way")
    with pytest.raises(LedgerError, match="File exists"):
        opened(path)
    blocked.unlink()
    ledger, rescue = opened(path)
    assert rescue is not None and len(ledger.finals(PROFILE)) == 16
    ledger.close()


def test_the_log_says_what_happened(path: Path) -> None:
    """Two events: damaged, with SQLite's reason; rebuilt, with the name of the file that was set aside."""
    overwrite(path, 0, PAGE)
    with capture_logs() as logs:
        ledger, rescue = opened(path)
    ledger.close()
    assert rescue is not None
    assert [line["event"] for line in logs] == ["ledger_damaged", "ledger_rebuilt"]
    assert logs[1]["aside"] == rescue.aside
