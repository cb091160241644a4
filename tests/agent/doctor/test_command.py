"""Promises of `agent doctor` as a command: what it examines, how it tells, when it fails, and that it never hangs."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.doctor import Finding, examine
from agent.doctor.command import CHECKS, HELP
from agent.doctor.finding import Check, limited
from agent.doctor.folder import look_at_folder
from agent.doctor.ledger import look_at_ledger
from agent.doctor.outlets import look_at_dicom
from agent.doctor.state import look_at_secrets, look_at_state
from agent.errors import LedgerError
from agent.settings import Settings, load_settings
from tests.agent.doctor.site import PROFILE, Site, by_check, only
from tests.brokers import Mosquitto, free_port, wait_until
from tests.logs import logging_undone


@pytest.fixture(autouse=True)
def _undo_logging() -> Iterator[None]:
    with logging_undone():
        yield


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real broker."""
    mosquitto = Mosquitto(tmp_path_factory.mktemp("broker")).start()
    yield mosquitto.port
    mosquitto.kill()


@pytest.fixture
def site(tmp_path: Path, broker: int) -> Site:
    """A healthy machine."""
    return Site(tmp_path, broker)


EXPECTED = [
    "settings",
    "user",
    "service",
    "folder",
    "mount",
    "folder_disk",
    "folder_contents",
    "inotify",
    "state_dir",
    "identity_key",
    "ledger",
    "audit",
    "profile",
    "intended_use",
    "engine",
    "prediction",
    "broker",
    "broker_tls",
    "broker_login",
    "broker_publish",
    "metrics_port",
    "clock",
    "processor",
    "memory",
    "gpu",
    "libraries",
]


def test_a_healthy_machine_is_examined_whole(site: Site) -> None:
    """Everything is looked at, nothing fails, and the phantom profile is the warning that it has to be."""
    found = site.examine()
    assert sorted(found) == sorted(EXPECTED)
    assert [check for check, findings in found.items() if any(f.verdict == "fail" for f in findings)] == []
    assert only(found, "intended_use").verdict == "warn"
    surroundings = {"intended_use", "clock", "memory", "gpu", "service", "user", "folder_disk"}
    assert {f.verdict for check, fs in found.items() if check not in surroundings for f in fs} == {"ok"}


def test_doctor_leaves_no_trace(site: Site) -> None:
    """No file and no folder is made: not in the watched folder, not in the profile, not for the state."""
    before = sorted(PROFILE.rglob("*"))
    site.examine()
    assert not site.state.exists()
    assert list(site.folder.iterdir()) == []
    assert sorted(PROFILE.rglob("*")) == before
    site.state.mkdir(mode=0o700)
    site.examine()
    assert list(site.state.iterdir()) == []


def test_it_names_no_file_of_the_watched_folder(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Names in the folder are identities: neither output has them, whatever is wrong with the files."""
    inside = site.folder / "MUSTERMANN_ERIKA"
    inside.mkdir()
    (inside / "SECRETNAME.dcm").write_bytes(b"no image")
    (inside / "SECRETLINK").symlink_to(inside)
    site.write(watch={"follow_symlinks": [str(site.home)]})
    for words in ([], ["--json"]):
        main(["doctor", "--config", str(site.config), *words])
    said = capsys.readouterr()
    assert "symlinks" in said.out
    assert "MUSTERMANN" not in said.out + said.err and "SECRET" not in said.out + said.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "folder: is required"),
        ("folder: [unclosed", "not YAML"),
        ("foldr: x\n", "did you mean 'folder'?"),
    ],
)
def test_settings_that_cannot_be_used_end_the_examination(site: Site, content: str, told: str) -> None:
    """A wrong settings file is the only finding, with the field and where every key is explained."""
    site.config.write_text(content)
    (finding,) = examine(site.config)
    assert (finding.check, finding.verdict) == ("settings", "fail")
    assert told in finding.found
    assert "configs/agent.yaml" in finding.mend


def test_settings_that_are_not_there(site: Site) -> None:
    """A settings file that does not exist fails with its name."""
    (finding,) = examine(site.home / "nowhere.yaml")
    assert finding.verdict == "fail"
    assert "nowhere.yaml" in finding.found


def test_a_settings_file_that_hangs_is_told(site: Site) -> None:
    """Opening a pipe that nobody writes to waits for ever; doctor does not."""
    os.mkfifo(site.config)
    begun = time.monotonic()
    (finding,) = examine(site.config)
    assert (finding.check, finding.verdict) == ("settings", "fail")
    assert "no answer within" in finding.found and finding.mend
    assert time.monotonic() - begun < 15
    os.close(os.open(site.config, os.O_RDWR))  # lets the thread that was left behind go


def test_a_check_that_hangs_keeps_what_it_found() -> None:
    """What came before the hang is told, then the hang itself, and the next check goes on."""
    release = threading.Event()

    def hang() -> Iterator[Finding]:
        yield Finding("folder", "ok", "there")
        release.wait()

    found = list(limited("folder", hang, 0.2, "why", "mend"))
    release.set()
    assert [(f.verdict, f.found) for f in found] == [("ok", "there"), ("fail", "no answer within 0.2 s")]
    wait_until(lambda: not any(t.name == "doctor-folder" for t in threading.enumerate()), "its thread ends")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(5, "Input/output error", "/imager/MUSTERMANN"), "Input/output error"),
        (ValueError("odd"), "odd"),
        (LedgerError("gone"), "gone"),
    ],
)
def test_a_check_that_fails_does_not_end_the_others(site: Site, error: Exception, told: str) -> None:
    """What cannot be examined is a warning that says so, without the path at which it failed."""

    def fail(_: Settings) -> Iterator[Finding]:
        raise error

    (finding,) = Check("disk", fail).findings(site.settings())
    assert (finding.check, finding.verdict) == ("disk", "warn")
    assert finding.found == f"the check itself failed: {told}"


@pytest.fixture
def forbidden(site: Site) -> Iterator[Site]:
    """A site behind a folder that this user may not enter."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        behind = Path(folder, "closed")
        behind.mkdir(mode=0)
        site.write(
            folder=str(behind / "imager"),
            state_dir=str(behind / "state"),
            identity={"key_file": str(behind / "key"), "lookup_file": str(behind / "names")},
            dicom_out={"folder": str(behind / "dicom")},
        )
        settings = load_settings(site.config)
        Path(folder).chmod(0o755)
        if user == 0:
            os.seteuid(65534)
        try:
            site.document = settings.model_dump(mode="json")
            yield site
        finally:
            os.seteuid(user)


def test_what_this_user_may_not_look_at_fails_each_by_itself(forbidden: Site) -> None:
    """Folder, state, key, lookup file, ledger and DICOM results behind a closed folder: each a FAIL with a remedy."""
    settings = Settings.model_validate(forbidden.document)
    found = by_check(
        finding
        for look in (look_at_folder, look_at_state, look_at_secrets, look_at_ledger, look_at_dicom)
        for finding in look(settings)
    )
    assert sorted(found) == [
        "dicom_out",
        "dicom_spool",
        "folder",
        "identity_key",
        "ledger",
        "lookup_file",
        "state_dir",
    ]
    assert {finding.verdict for findings in found.values() for finding in findings} == {"fail"}


def test_the_command_succeeds_with_warnings(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 while nothing has failed; each finding is a line, why it matters and what mends it below."""
    site.write(mqtt={"port": free_port()})
    assert main(["doctor", "--config", str(site.config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["OK", "settings"]
    at = next(number for number, line in enumerate(lines) if line.startswith("WARN broker"))
    assert lines[at + 1].strip().startswith("why: ") and "ledger" in lines[at + 1]
    assert lines[at + 2].strip().startswith("→ start the broker")
    assert lines[-1].startswith("0 failed, ") and lines[-1].endswith("look at the warnings")


def test_the_command_fails_with_a_failure(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 when something must be mended first; the last line says so."""
    site.folder.rmdir()
    site.write()
    assert main(["doctor", "--config", str(site.config)]) == 1
    out = capsys.readouterr().out
    assert "FAIL folder" in out
    assert out.splitlines()[-1].startswith("1 failed, ")


def test_json_is_for_scripts(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the findings as one JSON list and nothing else, with the same exit code and documented keys."""
    site.write()
    assert main(["doctor", "--config", str(site.config), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    keys = ["check", "verdict", "found", "why", "mend"]
    assert [list(finding) for finding in findings] == [keys] * len(findings)
    assert all(isinstance(value, str) for finding in findings for value in finding.values())
    assert {finding["verdict"] for finding in findings} <= {"ok", "warn"}
    assert all(f"\n  {key} " in HELP for key in keys)
    site.config.write_text("")
    assert main(["doctor", "--config", str(site.config), "--json"]) == 1
    assert [finding["check"] for finding in json.loads(capsys.readouterr().out)] == ["settings"]


def test_paths_with_brackets_are_shown_as_they_are(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like markup in a path is printed, not swallowed."""
    site.write(folder=str(site.home / "[red]imager"))
    main(["doctor", "--config", str(site.config)])
    assert "[red]imager" in capsys.readouterr().out


def test_every_check_has_a_limit() -> None:
    """None may take for ever, and no two have the same name."""
    assert all(0 < check.limit_s <= 120 for check in CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_findings_are_told_as_they_come(site: Site) -> None:
    """The first findings are there before the last check has begun: a slow check delays only what follows."""
    site.write()
    findings = examine(site.config)
    assert next(findings).check == "settings"
    assert next(findings).check in ("service", "user")
    assert by_check(findings)["libraries"]
