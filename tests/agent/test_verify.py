"""Promises of `agent verify`: a verdict in one line, an exit code for scripts, and everything behind one result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.__main__ import main
from agent.audit_log import log_files
from agent.identity import Pseudonyms, load_or_create_key
from agent.ledger import FileStanding, FinalRow, Ledger, Record
from agent.topics import Message
from models.contract import SlideKey
from tests.system.processes import PROFILE

SLIDE = SlideKey("patientpatientpa", "slideslideslides")
START: dict[str, Any] = {
    "version": "9.8.7",
    "boot_seq": 3,
    "session_id": "session",
    "profile": {"name": "phantom", "version": 2, "sha256": "ab" * 32},
    "engine": {
        "name": "openvino",
        "precision": "bf16",
        "batch": 8,
        "device": "a processor",
        "manifest_sha256": "cd" * 32,
        "files": {"model.bin": "ef" * 32},
    },
    "python": "3.11.2",
    "libraries": {"numpy": "2.0.0"},
    "system": "Linux",
    "settings_sha256": "12" * 32,
    "settings": {"site": "berlin"},
}


@dataclass
class Home:
    """A machine with settings, an imager's folder and an agent's state."""

    folder: Path
    config: Path
    state: Path

    def pseudonym(self, name: str) -> str:
        """How the agent calls a file."""
        return Pseudonyms(load_or_create_key(self.state / "identity.key")).of("file", name)

    def say(self, event: str, revision: int = 1, supersedes: str | None = None, scope: str = "slide") -> None:
        """A result on two files, as the agent enters it."""
        payload = {
            "event_id": event,
            "session_id": "session",
            "supersedes": supersedes,
            "decision": "final",
            "predicted": "schwannoma",
            "confidence": 0.75,
            "counts": {"seen": 9, "used": 8},
        }
        content = json.dumps(payload).encode()
        message = Message("t/slide/x/final", content, event, f"{scope}.final", 1, True, False, True)
        of = ("slide", *SLIDE) if scope == "slide" else ("patient", SLIDE.patient, "")
        files = [
            FileStanding(
                self.pseudonym(name), 5, 6, "whole", *SLIDE, sha256=hashlib.sha256(name.encode()).hexdigest()
            )
            for name in ("doe/1.dcm", "doe/2.dcm")
        ]
        row = FinalRow(*of, revision, event, "print", "complete", 2, 2, at=7.0)  # type: ignore[arg-type]
        ledger = Ledger.open(self.state / "ledger.sqlite", clock=lambda: 1e9)
        ledger.audit.add("start", START)
        ledger.append(Record("ab" * 32, messages=(message,), finals=(row,), files=tuple(files)))
        ledger.audit.export()
        ledger.close()

    def lines(self) -> list[bytes]:
        """Every line of the log, its newline included."""
        return b"".join(path.read_bytes() for path in log_files(self.state)).splitlines(keepends=True)

    def heads(self) -> list[str]:
        """What health has published, entry by entry."""
        return [json.loads(line)["hash"] for line in self.lines()]

    def verify(self, *words: str) -> int:
        """The command; its exit code."""
        return main(["verify", "--config", str(self.config), *words])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A result that was corrected once."""
    home = Home(tmp_path / "imager", tmp_path / "agent.yaml", tmp_path / "state")
    (home.folder / "doe").mkdir(parents=True)
    for name in ("doe/1.dcm", "doe/2.dcm"):
        (home.folder / name).write_bytes(name.encode())
    home.state.mkdir(mode=0o700)
    document = {"folder": str(home.folder), "state_dir": str(home.state), "profile": str(PROFILE)}
    home.config.write_text(yaml.safe_dump(document))
    home.say("e1")
    home.say("e2", revision=2, supersedes="e1")
    return home


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to stdout, as one line of words."""
    return " ".join(capsys.readouterr().out.split())


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What --json printed."""
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_a_whole_log(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, how many entries, and the head to compare with one that was published."""
    assert home.verify() == 0
    said = told(capsys)
    assert "WHOLE entries 1 to 6 are as they were written, in 1 file" in said
    assert home.heads()[-1] in said


def test_a_broken_log(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, file and line, why, and how much is still proven."""
    (path,) = log_files(home.state)
    path.write_bytes(path.read_bytes().replace(b"schwannoma", b"meningioma", 1))
    assert home.verify() == 1
    said = told(capsys)
    assert f"BROKEN {path}, line 4: it was changed after it was written" in said
    assert "entries 1 to 3 are as they were written; nothing is proven of what follows" in said


def test_a_published_head(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Any head of the past is found in a whole log; after its entry was cut off or forged it is not."""
    for number, head in enumerate(home.heads(), 1):
        assert home.verify("--head", head) == 0
        assert f"HEAD found: it is entry {number} of" in told(capsys)
    head = home.heads()[-1]
    (path,) = log_files(home.state)
    path.write_bytes(b"".join(home.lines()[:-1]))
    assert home.verify() == 0
    assert home.verify("--head", head) == 1
    assert "HEAD not found: entries were removed or written anew" in told(capsys)


def test_a_trace_says_what_a_result_rests_on(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Answer, files, profile, engine, versions, settings, and that it has been replaced."""
    assert home.verify("--event", "e1", "--json") == 0
    (result,) = document(capsys)["results"]
    assert (result["event_id"], result["superseded"], result["superseded_by"]) == ("e1", None, "e2")
    assert (result["predicted"], result["used"], result["revision"]) == ("schwannoma", 8, 1)
    assert {name: result["start"][name] for name in START} == START
    assert [file["file"] for file in result["files"]] == [home.pseudonym(f"doe/{n}.dcm") for n in (1, 2)]
    assert home.verify("--event", "e1") == 0
    said = told(capsys)
    for word in ("e2 at 2001-09-09T01:46:40.000Z: it holds no longer", "schwannoma (0.750)", "openvino bf16"):
        assert word in said
    for word in ("agent 9.8.7", "cd" * 32, "numpy 2.0.0", "site: berlin", home.pseudonym("doe/1.dcm")):
        assert word in said


def test_all_results_of_a_slide_or_patient(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Every revision, in order; a patient's results with those of its slides."""
    home.say("e3", scope="patient")
    for words, events in (
        (("--slide", SLIDE.slide), ["e1", "e2"]),
        (("--patient", SLIDE.patient), ["e1", "e2", "e3"]),
    ):
        assert home.verify(*words, "--json") == 0
        assert [result["event_id"] for result in document(capsys)["results"]] == events


def test_a_result_that_is_not_there(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole log without it: exit code 1, and the words say which was asked for."""
    assert home.verify("--event", "nobody") == 1
    assert "NOT FOUND no result with event nobody" in told(capsys)


def test_a_broken_log_is_traced_as_far_as_it_is_proven(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind the fault nothing is believed: a result before it is shown, one behind it is not found."""
    (path,) = log_files(home.state)
    lines = home.lines()
    path.write_bytes(b"".join([*lines[:4], lines[4].replace(b"9.8.7", b"9.8.8"), lines[5]]))
    assert home.verify("--event", "e1", "--json") == 1
    said = document(capsys)
    assert [result["event_id"] for result in said["results"]] == ["e1"]
    assert (said["whole"], said["fault"]["line"]) == (False, 5)
    assert home.verify("--event", "e2") == 1
    assert "no result with event e2 among the entries that are proven" in told(capsys)


def test_files_are_compared_with_the_folder(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Same, changed or gone, and never a file's name."""
    assert home.verify("--event", "e2", "--folder") == 0
    assert "in the folder now: 2 same" in told(capsys)
    (home.folder / "doe/1.dcm").write_bytes(b"other")
    (home.folder / "doe/2.dcm").unlink()
    assert home.verify("--event", "e2", "--folder", "--json") == 0
    said = document(capsys)
    assert [file["now"] for file in said["results"][0]["files"]] == ["changed", "gone"]
    assert "doe" not in json.dumps(said).replace(str(home.folder.parent), "")


def test_a_folder_needs_the_key(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the pseudonyms' key nobody knows which file is which: exit code 2, and no key is made."""
    (home.state / "identity.key").unlink()
    assert home.verify("--event", "e2", "--folder") == 2
    assert "without it nobody can tell which file is which" in capsys.readouterr().err
    assert not (home.state / "identity.key").exists()


def test_a_copy_on_another_machine(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files alone suffice, in any order; without the first of them the beginning is missing."""
    copies = tmp_path / "archive"
    copies.mkdir()
    lines = home.lines()
    first, second = copies / "audit-000000000001.jsonl", copies / "audit-000000000003.jsonl"
    first.write_bytes(b"".join(lines[:2]))
    second.write_bytes(b"".join(lines[2:]))
    assert main(["verify", "--log", str(second), str(first), "--json"]) == 0
    assert document(capsys)["entries"] == 6
    assert main(["verify", "--log", str(second)]) == 1
    assert f"{second}, line 1: it is entry 3: entries 1 to 2 are missing before it" in told(capsys)


def test_a_log_whose_beginning_is_in_an_archive(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """--partial checks what is here, and says which hash the archive must end with; damage is found all the same."""
    (path,) = log_files(home.state)
    later = path.with_name("audit-000000000003.jsonl")
    later.write_bytes(b"".join(home.lines()[2:]))
    head = home.heads()[1]
    path.unlink()
    assert home.verify() == 1
    assert "entries 1 to 2 are missing" in told(capsys)
    assert home.verify("--partial") == 0
    said = told(capsys)
    assert "WHOLE entries 3 to 6" in said and f"entry 2, before these, must have the hash {head}" in said
    later.write_bytes(later.read_bytes().replace(b"9.8.7", b"9.8.8"))
    assert home.verify("--partial") == 1
    assert "BROKEN" in told(capsys)


def test_nothing_is_changed_by_looking(home: Home) -> None:
    """Not a byte, not a time and not a file of the state folder."""
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in home.state.iterdir()}
    assert home.verify("--patient", SLIDE.patient, "--folder") == 0
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in home.state.iterdir()} == before


def test_a_line_that_is_being_written_is_waited_for(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A look in the middle of the agent's write sees half a line: it is whole once it is finished."""
    (path,) = log_files(home.state)
    content = path.read_bytes()
    path.write_bytes(content[:-100])

    def finish() -> None:
        with path.open("ab") as file:
            file.write(content[-100:])

    timer = threading.Timer(0.2, finish)
    timer.start()
    assert home.verify() == 0
    timer.join()
    assert "entries 1 to 6" in told(capsys)


def test_a_line_that_stays_unfinished_is_told(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """After a kill, before the next start: exit code 1, and that the agent will finish it."""
    (path,) = log_files(home.state)
    path.write_bytes(path.read_bytes()[:-100])
    assert home.verify() == 1
    assert "line 6: it is not finished: the agent was cut off while writing it" in told(capsys)


def test_a_file_that_is_cut_off_in_the_middle_of_the_log(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the last file may end in the middle of a line."""
    (path,) = log_files(home.state)
    lines = home.lines()
    path.write_bytes(b"".join(lines[:3])[:-1])
    path.with_name("audit-000000000004.jsonl").write_bytes(b"".join(lines[3:]))
    assert home.verify() == 1
    assert "line 3: it was cut off" in told(capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--folder",), "--folder needs --config, and --event, --slide or --patient"),
        (("--head", "abc"), "--head takes the 64 hexadecimal digits"),
    ],
)
def test_arguments_that_do_not_go_together(
    home: Home, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    """Exit code 2 and one line."""
    assert home.verify(*words) == 2
    assert said in capsys.readouterr().err


def test_before_the_first_start_there_is_no_log(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and where it was looked for."""
    shutil.rmtree(home.state)
    assert home.verify() == 1
    assert f"no audit log in {home.state}: has the agent run?" in capsys.readouterr().err


def test_a_log_that_may_not_be_read(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system's own words, and no traceback."""
    missing = tmp_path / "audit-000000000001.jsonl"
    assert main(["verify", "--log", str(missing)]) == 1
    assert f"error: {missing}: {os.strerror(2)}" in capsys.readouterr().err
