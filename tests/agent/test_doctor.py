"""Promises of `agent doctor`: every check's verdict on a real machine part, what mends it, and the exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.__main__ import main
from agent.doctor import Finding, examine
from agent.identity import load_or_create_key
from tests.brokers import free_port
from tests.logs import logging_undone

PROFILE = Path(__file__).resolve().parents[2] / "configs" / "profiles" / "phantom"


@pytest.fixture(autouse=True)
def _undo_logging() -> Iterator[None]:
    with logging_undone():
        yield


@pytest.fixture(scope="module")
def broker() -> Iterator[int]:
    """The port of something that accepts connections, which is all that doctor asks for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Patient:
    """A settings file in a folder of its own, and what doctor finds about it."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.folder, self.state = home / "imager", home / "state"
        self.folder.mkdir()
        self.config = home / "agent.yaml"
        self.document: dict[str, Any] = {
            "folder": str(self.folder),
            "state_dir": str(self.state),
            "profile": str(PROFILE),
            "engine": {"order": ["eager"], "threads": 1},
            "mqtt": {"port": port},
        }

    def examine(self, **changes: Any) -> dict[str, list[Finding]]:
        """Findings by check, with these settings changed."""
        self.write(**changes)
        found: dict[str, list[Finding]] = {}
        for finding in examine(self.config):
            found.setdefault(finding.check, []).append(finding)
        return found

    def write(self, **changes: Any) -> None:
        """Write the settings file."""
        self.config.write_text(yaml.safe_dump({**self.document, **changes}))


@pytest.fixture
def patient(tmp_path: Path, broker: int) -> Patient:
    """A healthy one."""
    return Patient(tmp_path, broker)


def only(findings: list[Finding]) -> Finding:
    """The one finding of a check."""
    (finding,) = findings
    return finding


def test_a_healthy_machine_has_only_good_findings(patient: Patient) -> None:
    """Settings, folder, inotify, disk, key, profile, engine and broker are each looked at once and found ok."""
    found = patient.examine()
    assert list(found) == [
        "settings",
        "folder",
        "inotify",
        "disk",
        "identity key",
        "profile",
        "engine",
        "broker",
    ]
    assert {only(findings).verdict for findings in found.values()} == {"ok"}
    assert not any(only(findings).mend for findings in found.values())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "folder: is required"),
        ("folder: [unclosed", "not YAML"),
        ("foldr: x\n", "did you mean 'folder'?"),
    ],
)
def test_settings_that_cannot_be_used_end_the_examination(patient: Patient, content: str, told: str) -> None:
    """A wrong settings file is the only finding, with the field and where every key is explained."""
    patient.config.write_text(content)
    (finding,) = examine(patient.config)
    assert (finding.check, finding.verdict) == ("settings", "fail")
    assert told in finding.found
    assert "configs/agent.yaml" in finding.mend


def test_settings_that_are_not_there(patient: Patient) -> None:
    """A settings file that does not exist fails with its name."""
    (finding,) = examine(patient.home / "nowhere.yaml")
    assert finding.verdict == "fail"
    assert "nowhere.yaml" in finding.found


def test_a_missing_folder_fails(patient: Patient) -> None:
    """Without the imager's folder nothing can be watched; the other checks go on."""
    patient.folder.rmdir()
    found = patient.examine()
    assert only(found["folder"]).verdict == "fail"
    assert "mount" in only(found["folder"]).mend
    assert only(found["broker"]).verdict == "ok"


def test_a_scanned_folder_needs_no_inotify(patient: Patient) -> None:
    """In scan mode the finding says how often, and inotify is not looked at."""
    found = patient.examine(watch={"mode": "scan", "scan_interval_s": 7.5})
    assert "scanned every 7.5 s" in only(found["folder"]).found
    assert "inotify" not in found


def test_inotify_counts_the_folders(patient: Patient) -> None:
    """Each folder needs a watch: their number is told beside the limit."""
    for number in range(4):
        (patient.folder / str(number) / "deep").mkdir(parents=True)
    assert only(patient.examine()["inotify"]).found.startswith("9 folders, ")


def test_a_state_folder_that_cannot_be_made_fails(patient: Patient) -> None:
    """A file where state_dir should be: the reason, and the command that mends it."""
    patient.state.write_text("a file")
    finding = only(patient.examine()["state_dir"])
    assert finding.verdict == "fail"
    assert str(patient.state) in finding.found
    assert "install -d" in finding.mend


def test_doctor_leaves_no_trace(patient: Patient) -> None:
    """The probe file is gone afterwards, and nothing was written to the watched folder or the profile."""
    before = sorted(PROFILE.rglob("*"))
    patient.examine()
    assert list(patient.state.iterdir()) == []
    assert list(patient.folder.iterdir()) == []
    assert sorted(PROFILE.rglob("*")) == before


def test_a_key_that_others_can_read_fails(patient: Patient) -> None:
    """A private key file is ok; one that others may read fails with the chmod that mends it."""
    key = patient.state / "identity.key"
    patient.state.mkdir()
    load_or_create_key(key)
    assert only(patient.examine()["identity key"]).verdict == "ok"
    key.chmod(0o640)
    finding = only(patient.examine()["identity key"])
    assert finding.verdict == "fail"
    assert finding.mend == f"chmod 600 {key}"


def test_a_profile_that_is_damaged_fails(patient: Patient) -> None:
    """A changed file fails the profile, and no engine is tried on it."""
    broken = patient.home / "profile"
    broken.mkdir()
    for path in PROFILE.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "golden.safetensors").write_bytes(b"changed")
    found = patient.examine(profile=str(broken))
    assert only(found["profile"]).verdict == "fail"
    assert "golden.safetensors has sha256" in only(found["profile"]).found
    assert "engine" not in found


def test_an_engine_that_is_passed_over_warns(patient: Patient) -> None:
    """The engine that runs is ok; a preferred one that is not built warns, with the command that builds it."""
    bare = patient.home / "profile"
    bare.mkdir()
    for path in PROFILE.iterdir():
        if path.is_file():
            (bare / path.name).write_bytes(path.read_bytes())
    runs, passed = patient.examine(profile=str(bare), engine={"order": ["openvino", "eager"], "threads": 1})["engine"]
    assert (runs.verdict, passed.verdict) == ("ok", "warn")
    assert runs.found.startswith("eager fp32")
    assert passed.found.startswith("openvino passed over: ")
    assert "agent.build_trt --profile" in passed.mend


@pytest.mark.parametrize(("order", "told"), [(["openvino"], "no engine can be used"), (["abacus"], "unknown engine")])
def test_no_engine_at_all_fails(patient: Patient, order: list[str], told: str) -> None:
    """When none of the list can run, every reason is told."""
    bare = patient.home / "profile"
    bare.mkdir()
    for path in PROFILE.iterdir():
        if path.is_file():
            (bare / path.name).write_bytes(path.read_bytes())
    finding = only(patient.examine(profile=str(bare), engine={"order": order})["engine"])
    assert finding.verdict == "fail"
    assert told in finding.found


def test_a_broker_that_is_away_only_warns(patient: Patient) -> None:
    """Results wait in the ledger meanwhile: a closed port is a warning, not a failure."""
    finding = only(patient.examine(mqtt={"port": free_port()})["broker"])
    assert finding.verdict == "warn"
    assert "refused" in finding.found
    assert "ledger" in finding.mend


def test_a_broker_whose_name_is_unknown_warns(patient: Patient) -> None:
    """A name that cannot be resolved is told like a closed port."""
    finding = only(patient.examine(mqtt={"host": "broker.invalid"})["broker"])
    assert finding.verdict == "warn"
    assert finding.found.startswith("broker.invalid:1883: ")


# The command


def test_the_command_succeeds_with_warnings(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 while nothing has failed; each finding is a line, what mends it below."""
    patient.write(mqtt={"port": free_port()})
    assert main(["doctor", "--config", str(patient.config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["OK", "settings"]
    assert any(line.startswith("WARN broker") for line in lines)
    assert any("→ start the broker" in line for line in lines)


def test_the_command_fails_with_a_failure(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 when something must be mended first."""
    patient.folder.rmdir()
    patient.write()
    assert main(["doctor", "--config", str(patient.config)]) == 1
    assert "FAIL folder" in capsys.readouterr().out


def test_json_is_for_scripts(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the findings as one JSON list and nothing else, with the same exit code."""
    patient.write()
    assert main(["doctor", "--config", str(patient.config), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert [set(finding) for finding in findings] == [{"check", "verdict", "found", "mend"}] * len(findings)
    assert {finding["verdict"] for finding in findings} == {"ok"}
    patient.config.write_text("")
    assert main(["doctor", "--config", str(patient.config), "--json"]) == 1
    assert [finding["check"] for finding in json.loads(capsys.readouterr().out)] == ["settings"]


def test_paths_with_brackets_are_shown_as_they_are(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like markup in a path is printed, not swallowed."""
    patient.write(folder=str(patient.home / "[red]imager"))
    main(["doctor", "--config", str(patient.config)])
    assert "[red]imager" in capsys.readouterr().out.replace("\n", "")
