"""The list of refused files: real paths for whoever stands at the machine, and for nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agent.__main__ import main as agent_main
from agent.errors import FormatError
from agent.identity import Pseudonyms, load_or_create_key
from agent.ledger import FileStanding, Ledger, Record
from agent.quarantine import MEND
from tests.logs import logging_undone
from tests.system.processes import PROFILE, ROOT

HOLDER = """
import sys
from pathlib import Path
from agent.ledger import Ledger, Record
from tests.agent.ledger_cases import PROFILE, patches
ledger = Ledger.open(Path(sys.argv[1]))
for number in range(50):
    ledger.append(Record(PROFILE, patches("p", "s", 20, number)))
print("open", flush=True)
while sys.stdin.readline():
    ledger.append(Record(PROFILE, patches("p", "s", 20, number)))
    number += 1
"""


class Machine:
    """A folder, a state folder, a settings file, and refused files in the ledger."""

    def __init__(self, home: Path) -> None:
        self.folder, self.state = home / "imager", home / "state"
        self.folder.mkdir()
        self.config = home / "agent.yaml"
        document = {"folder": str(self.folder), "state_dir": str(self.state), "profile": str(PROFILE)}
        self.config.write_text(yaml.safe_dump(document))
        self.ledger = self.state / "ledger.sqlite"

    def refuse(self, name: str, reason: str = "malformed", *, there: bool = True) -> str:
        """A file that was refused as it is now; returns its pseudonym."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"II*\0 broken")
        status = path.stat()
        file_id = Pseudonyms(load_or_create_key(self.state / "identity.key")).of("file", name)
        standing = FileStanding(
            file_id, status.st_size, status.st_mtime_ns, "refused", reason=reason, detail="no IFD", at=1.78e9
        )
        ledger = Ledger.open(self.ledger)
        ledger.append(Record("ab" * 32, files=(standing,)))
        ledger.close()
        if not there:
            path.unlink()
        return file_id

    def run(self, *words: str) -> int:
        """The command's exit code."""
        with logging_undone():
            return agent_main(["quarantine", "--config", str(self.config), *words])

    def listed(self, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
        """What it lists."""
        assert self.run("--json") == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Nothing refused yet."""
    return Machine(tmp_path)


@pytest.fixture
def running(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the ledger as the agent does, with rows that are only in its log."""
    machine.refuse("DOE^JOHN/IMG000002.dcm")
    words = [sys.executable, "-c", HOLDER, str(machine.ledger)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process


def test_each_refused_file_is_found_by_its_pseudonym(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Path, reason, since when, whether it is still as it was, and what to do."""
    ids = {
        "there": machine.refuse("DOE^JOHN/IMG000002.dcm"),
        "big": machine.refuse("DOE^JOHN/IMG000003.dcm", "limits"),
        "gone": machine.refuse("gone.dcm", there=False),
        "changed": machine.refuse("changed.dcm"),
        "odd": machine.refuse(os.fsdecode(b"\xff\xfe.dcm")),
    }
    (machine.folder / "changed.dcm").write_bytes(b"longer than it was before")
    files = {str(file["file"]): file for file in machine.listed(capsys)}
    assert set(files) == set(ids.values())
    assert files[ids["there"]]["path"] == "DOE^JOHN/IMG000002.dcm"
    assert files[ids["there"]]["reason"] == "malformed" and files[ids["there"]]["detail"] == "no IFD"
    assert str(files[ids["there"]]["since"]).startswith("2026-")
    assert "raise the limit" in str(files[ids["big"]]["mend"])
    assert [files[ids[which]]["now"] for which in ("there", "gone", "changed", "odd")] == [
        "unchanged",
        "gone",
        "changed",
        "unchanged",
    ]
    assert files[ids["gone"]]["path"] is None
    assert machine.run() == 0
    text = capsys.readouterr().out
    assert "DOE^JOHN/IMG000002.dcm" in text and r"\udcff\udcfe.dcm" in text
    assert "5 refused, 3 of them still there as they were" in text


def test_nothing_refused_is_an_empty_list(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first start, too; and nothing is made by looking."""
    assert machine.listed(capsys) == []
    assert machine.run() == 0
    assert "0 refused" in capsys.readouterr().out
    assert not machine.state.exists()


def test_it_works_while_the_agent_runs(
    machine: Machine, running: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy is read; the agent can go on writing, and nothing is left beside its ledger."""
    before = sorted(each.name for each in machine.state.iterdir())
    assert running.stdin is not None
    for _ in range(5):
        running.stdin.write("write\n")
        running.stdin.flush()
        (file,) = machine.listed(capsys)
        assert file["path"] == "DOE^JOHN/IMG000002.dcm"
    assert sorted(each.name for each in machine.state.iterdir()) == before
    assert running.poll() is None


def test_a_file_is_released_while_the_agent_is_stopped(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It is off the list, so the next start looks at it; that is entered in the audit log. Others stay."""
    one, two = machine.refuse("one.dcm"), machine.refuse("two.dcm")
    assert machine.run("--release", one) == 0
    assert "systemctl start" in capsys.readouterr().out
    assert [file["file"] for file in machine.listed(capsys)] == [two]
    assert machine.run("--release", one) == 1
    assert "no file" in capsys.readouterr().err
    ledger = Ledger.open(machine.ledger)
    entries = [json.loads(entry) for (entry,) in ledger._db.execute("SELECT entry FROM audit ORDER BY seq")]
    ledger.close()
    assert [entry["file"] for entry in entries if entry["kind"] == "released"] == [one]


def test_a_running_agent_is_not_undermined(
    machine: Machine, running: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would not notice that a file was released: the command says to stop it first, and changes nothing."""
    (file,) = machine.listed(capsys)
    assert machine.run("--release", str(file["file"])) == 1
    assert "systemctl stop spinextract-agent" in capsys.readouterr().err
    assert len(machine.listed(capsys)) == 1 and running.poll() is None


def test_what_cannot_be_read_is_said(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """No key, no folder, a damaged ledger: one line each, and nothing is marked or set aside by looking."""
    machine.refuse("one.dcm")
    key = machine.state / "identity.key"
    content = key.read_text()
    key.unlink()
    assert machine.run() == 2
    assert "nobody can tell which files" in capsys.readouterr().err
    key.write_text(content)
    key.chmod(0o600)
    (machine.folder / "one.dcm").unlink()
    machine.folder.rmdir()
    assert machine.run() == 1
    assert "cannot be listed" in capsys.readouterr().err
    machine.folder.mkdir()
    machine.ledger.write_bytes(b"not a ledger" * 1000)
    assert machine.run() == 1
    assert "python -m agent doctor" in capsys.readouterr().err
    assert sorted(each.name for each in machine.state.iterdir()) == ["identity.key", "ledger.sqlite"]


def test_every_reason_has_a_remedy() -> None:
    """Each word with which a file may be refused says what a person may do."""
    assert set(MEND) == set(FormatError.REASONS)
