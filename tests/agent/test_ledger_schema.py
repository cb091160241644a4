"""Ledgers of every released schema are brought up to date, also when that is killed in the middle; and durability."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from agent.errors import LedgerDamaged
from agent.ledger import CountedPatch, FinalRow, Ledger, Record
from agent.ledger_file import MIGRATIONS
from agent.ledger_marker import marker_of
from models.contract import PatchKey
from models.domain import MARKS
from tests.agent.ledger_cases import NOW, PROFILE, alert, dies_at, final, patches, standing
from tests.faults.shim import Call, Shim, build

RELEASED = Path(__file__).with_name("ledgers")
SCHEMAS = (1, 2, 3)


def old_ledger(path: Path, schema: int) -> None:
    """A ledger as that version made it: its own SQL, kept in a file of its own, and rows as it wrote them."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.executescript((RELEASED / f"schema-{schema}.sql").read_text())
        raw.execute("INSERT INTO counters VALUES ('boot_seq', 7)")
        raw.execute("INSERT INTO slides VALUES (1, ?, 'p', 's')", (PROFILE,))
        outcome = struct.pack("<c4q", b"v", 1, 2, 3, 4)
        raw.execute("INSERT INTO patches VALUES (1, 0, 1, 0, ?)", (outcome,))
        raw.execute("INSERT INTO patches VALUES (1, 0, 2, 0, ?)", (b"rempty",))
        if schema > 1:
            raw.execute("INSERT INTO patches VALUES (1, 0, 3, 0, ?)", (b"j\x01" + outcome[1:],))
        if schema > 2:
            raw.execute("INSERT INTO studies VALUES ('p', 5.0)")
        said, row = final("p", "s")
        fields = [getattr(row, name) for name in FinalRow.__dataclass_fields__]
        raw.execute("INSERT INTO finals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (PROFILE, *fields))
        message = (said.topic, said.payload, said.event_id, said.kind, 1, 1, 0, 9e99)
        raw.execute("INSERT INTO outbox VALUES (5, ?, ?, ?, ?, ?, ?, ?, ?)", message)
        raw.execute("INSERT INTO retained VALUES (5, ?, ?, ?, ?, ?, ?, ?, ?)", message)


def check_old(ledger: Ledger, schema: int) -> None:
    """Everything that was in it is still there."""
    counted = list(ledger.patches.restore(PROFILE))
    key = PatchKey("p", "s", 0, 1, 0)
    assert counted[:2] == [CountedPatch(key, (1, 2, 3, 4), None), CountedPatch(key._replace(x=2), None, "empty")]
    if schema > 1:
        assert counted[2] == CountedPatch(key._replace(x=3), (1, 2, 3, 4), None, MARKS[:1])
    assert ledger.finals(PROFILE) == [final("p", "s")[1]]
    assert [row.message.event_id for row in ledger.unsent()] == [final("p", "s")[1].event_id]
    assert ledger._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert ledger._db.execute("PRAGMA auto_vacuum").fetchone() == (2,)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_old_ledger_is_brought_up_to_date(tmp_path: Path, schema: int) -> None:
    """Nothing in it changes, later writes go beside it, and it stays so over restarts."""
    path = tmp_path / "ledger.sqlite"
    old_ledger(path, schema)
    for boot in (8, 9):
        ledger = Ledger.open(path, lambda: NOW)
        check_old(ledger, schema)
        assert ledger.next_boot() == boot
        ledger.append(Record(PROFILE, patches("q", "t", 5), (alert("1" * 32),), (), (standing("f"),)))
        assert len(list(ledger.patches.restore(PROFILE))) == 5 + min(schema + 1, 3)
        ledger.append(Record("", messages=(alert("1" * 32),)))
        ledger.forget([row.seq for row in ledger.unsent() if row.message.kind == "alert"])
        ledger.close()
    assert not marker_of(path).exists()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_migrations_that_are_killed_anywhere_are_done_by_the_next_start(tmp_path: Path, schema: int) -> None:
    """Killed (-9) at every fifth line of opening: the old ledger or the new one, never something in between."""
    old = tmp_path / "old.sqlite"
    old_ledger(old, schema)
    line, died = schema, True
    while died:
        path = tmp_path / f"{line}.sqlite"
        shutil.copyfile(old, path)
        died = dies_at(line, "agent/ledger_file", lambda path=path: Ledger.open(path, lambda: NOW).close())  # type: ignore[misc]
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA user_version").fetchone()[0] in (schema, len(MIGRATIONS))
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ledger = Ledger.open(path, lambda: NOW)
        check_old(ledger, schema)
        ledger.close()
        line += 5
    assert line > 60


def test_released_sql_is_what_the_migrations_still_say() -> None:
    """Whoever edits a migration that was released makes two kinds of ledgers with one number."""
    for schema in SCHEMAS:
        with closing(sqlite3.connect(":memory:")) as ours, closing(sqlite3.connect(":memory:")) as theirs:
            for statements in MIGRATIONS[:schema]:
                for statement in statements:
                    ours.execute(statement)
            theirs.executescript((RELEASED / f"schema-{schema}.sql").read_text())
            query = "SELECT type, name, replace(sql, '  ', ' ') FROM sqlite_master ORDER BY name"
            assert ours.execute(query).fetchall() == theirs.execute(query).fetchall()
            assert theirs.execute("PRAGMA user_version").fetchone() == (schema,)


def test_a_schema_that_is_not_that_of_its_number_is_damage(tmp_path: Path) -> None:
    """The number in the head was changed: migrating it again would fail half-way."""
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    for wrong in (0, 1, 3, -7, 100_000):
        with closing(sqlite3.connect(path)) as raw:
            raw.execute(f"PRAGMA user_version = {wrong}")
        with pytest.raises(LedgerDamaged):
            Ledger.open(path)


# Durability


def test_a_ledger_that_is_killed_while_it_is_made_is_made_by_the_next_start(tmp_path: Path) -> None:
    """Killed (-9) at every third line of the first start: no half ledger, no damage."""
    line, died = 0, True
    while died:
        path = tmp_path / str(line) / "state" / "ledger.sqlite"
        died = dies_at(line, "agent/ledger_file", lambda path=path: Ledger.open(path).close())  # type: ignore[misc]
        assert not path.exists() or path.stat().st_size > 0
        ledger = Ledger.open(path)
        assert ledger.next_boot() == 1
        ledger.close()
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        line += 3
    assert line > 60


def test_a_record_is_whole_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    """Killed (-9) at every third line of `append`: patches, files, finals and messages are all there or none is."""
    path = tmp_path / "ledger.sqlite"
    said, row = final("p", "s")
    record = Record(PROFILE, patches("p", "s", 20), (said, alert("1" * 32)), (row,), (standing("f"),))
    Ledger.open(path, lambda: NOW).close()
    line, died, before, after = 0, True, 0, 0

    def append() -> None:
        Ledger.open(path, lambda: NOW).append(record)
        os.kill(os.getpid(), signal.SIGKILL)  # never closed: everything is in the log

    while died and not after:
        died = dies_at(line, "agent/ledger", append)
        ledger = Ledger.open(path, lambda: NOW)
        found = (
            len(list(ledger.patches.restore(PROFILE))),
            ledger.outbox_length(),
            len(ledger.finals(PROFILE)),
            len(ledger.files.all()),
        )
        assert found in ((0, 0, 0, 0), (20, 2, 1, 1))
        assert ledger._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ledger.close()
        before, after = before + (found[0] == 0), after + (found[0] == 20)
        line += 7
    assert before > 10 and after == 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded library."""
    return build(tmp_path_factory.mktemp("shim"))


WRITER = """
import sys
from pathlib import Path
from agent.ledger import Ledger, Record
from tests.agent.ledger_cases import PROFILE, patches
ledger = Ledger.open(Path(sys.argv[1]))
print("open", flush=True)
for number in range(int(sys.argv[2])):
    sys.stdin.readline()
    ledger.append(Record(PROFILE, patches("p", "s", 10, number)))
    print(number, flush=True)
"""


def test_every_append_is_synced_before_it_returns(tmp_path: Path, library: Path) -> None:
    """Counted in the kernel's doorway: each `append` syncs its log once, and making a ledger syncs its folder."""
    path = tmp_path / "state" / "ledger.sqlite"
    path.parent.mkdir()
    shim = Shim(tmp_path, library)
    made = shim.cause(path.parent, Call.SYNC, delay_s=1e-6)
    words = [sys.executable, "-c", WRITER, str(path), "10"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, **shim.environment, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert made.hits >= 3  # the new file, its log, the folder
        made.end()
        for number in range(10):
            synced = shim.cause(path.parent, Call.SYNC, delay_s=1e-6, ending="-wal")
            process.stdin.write("go\n")
            assert process.stdout.readline() == f"{number}\n"
            assert synced.hits >= 1, f"append {number} returned before it was on the disk"
            synced.end()
