"""Promises of `agent contract`: what it writes, for whose topics, always the same, and one line when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.__main__ import main
from agent.contract.place import Place
from agent.contract_command import contract_files

SETTINGS = """
folder: imager
state_dir: state
profile: profile
site: berlin
instrument: srh-1
mqtt: {root: lab/v1, host: broker.example, port: 8884, username: srh, ca_file: ca.crt}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A settings file of a site with TLS and a user name."""
    path = tmp_path / "agent.yaml"
    path.write_text(SETTINGS)
    return path


def test_without_a_folder_the_contract_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Topics and fields for people, ready for a pager, and nothing is written."""
    assert main(["contract"]) == 0
    said = capsys.readouterr().out
    assert said == contract_files(Place())["reference.md"]
    assert "| `slide/{slide}/final` | 1 | yes | 30 days |" in said


def test_the_topics_are_those_of_the_settings(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root, site, instrument, user name, ports and TLS come from the file; the password's file is not named."""
    out = tmp_path / "new" / "contract"
    assert main(["contract", "--config", str(config), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {len(contract_files(Place()))} files for lab/v1/berlin/srh-1\n"
    made = yaml.safe_load((out / "asyncapi.yaml").read_text())
    assert made["servers"]["broker"]["host"] == "broker.example:8884"
    assert made["servers"]["broker"]["protocol"] == "secure-mqtt"
    assert made["channels"]["status"]["address"] == "lab/v1/berlin/srh-1/status"
    rules = (out / "mosquitto.acl").read_text()
    assert "user srh\ntopic write lab/v1/berlin/srh-1/status\n" in rules and "site/instrument" not in rules
    broker = (out / "mosquitto.conf").read_text()
    assert "\nlistener 1883 127.0.0.1\n" in broker and "\nlistener 8884\n" in broker
    assert {path.name for path in (out / "schemas").iterdir()} >= {"status.json", "cmd.engine.json"}


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """No order of a set, no time and no path gets in: what differs was changed by somebody."""
    written = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        words = [sys.executable, "-m", "agent", "contract", "--out", str(out)]
        subprocess.run(words, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
        written.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")})
    assert written[0] == written[1] and len(written[0]) == len(contract_files(Place()))


def test_a_folder_that_cannot_be_written_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the folder should be: exit code 1, and the line names it."""
    (tmp_path / "taken").write_text("")
    assert main(["contract", "--out", str(tmp_path / "taken")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: contract into ") and "taken" in said and said.count("\n") == 1


def test_wrong_settings_end_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, and a user name that would add a rule of its own, are refused."""
    assert main(["contract", "--config", str(tmp_path / "none.yaml")]) == 2
    path = tmp_path / "agent.yaml"
    path.write_text(SETTINGS.replace("username: srh", 'username: "srh\\ntopic write #"'))
    assert main(["contract", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "none.yaml" in said and "mqtt.username" in said
    assert not (tmp_path / "out").exists()
