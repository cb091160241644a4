"""Promises of the command line: help that teaches, a version, and exit codes that scripts can rely on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from agent.__main__ import COMMANDS, main
from agent.build_trt import main as build_main
from tests.logs import logging_undone

ROOT = Path(__file__).resolve().parents[2]
NAMES = [command.name for command in COMMANDS]


@pytest.fixture(autouse=True)
def _undo_logging() -> Iterator[None]:
    with logging_undone():
        yield


def ended(words: list[str]) -> int | str | None:
    """How argparse ends a command that only prints."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


@pytest.mark.parametrize("name", NAMES)
def test_every_help_teaches_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """COMMAND --help says in words what it does and shows a call that can be copied, within 118 columns."""
    assert ended([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"python -m agent {name}" in text.split("example", 1)[1]
    assert "usage: python -m agent " + name in text
    assert len(text.split("usage:")[1].split()) > 30
    assert all(len(line) <= 118 for line in text.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option of each command has a help text of its own."""
    ended([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  -"):
            words = line.strip().split("  ", 1)
            following = lines[number + 1] if number + 1 < len(lines) else ""
            assert len(words) == 2 or following.startswith(" " * 10), f"{name}: {line}"


def test_the_first_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """python -m agent --help lists the commands with a line each, first steps, and the research-use notice."""
    assert ended(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Research use only" in text
    assert "first steps:" in text
    for command in COMMANDS:
        assert command.help in " ".join(text.split())


def test_the_help_of_build_trt_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """The builder has examples and its exit codes in its help."""
    with pytest.raises(SystemExit) as ended:
        build_main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "python -m agent.build_trt --profile" in text.split("examples:", 1)[1]
    assert "exit codes" in text


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the distribution's name and version."""
    assert ended(["--version"]) == 0
    assert capsys.readouterr().out == f"spinextract-agent {version('spinextract-agent')}\n"


@pytest.mark.parametrize("words", [["dance"], [], ["run"], ["run", "--config"], ["run", "--confg", "x"], ["--loud"]])
def test_wrong_words_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands and options and missing arguments end with exit code 2 and the usage, on stderr."""
    assert ended(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: python -m agent")
    assert captured.out == ""


def test_settings_that_cannot_be_used_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon refuses a wrong settings file with exit code 2 and a line per problem."""
    config = tmp_path / "agent.yaml"
    config.write_text("folder: imager\nstate_dir: state\nprofile: profile\nsite: 'a/b'\nfoldr: x\n")
    assert main(["run", "--config", str(config)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {config}:")
    assert len(lines) == 2
    assert any("did you mean 'folder'?" in line for line in lines)


def test_a_daemon_that_cannot_start_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile that is not there ends with exit code 1 and one line, no traceback."""
    (tmp_path / "imager").mkdir()
    config = tmp_path / "agent.yaml"
    config.write_text("folder: imager\nstate_dir: state\nprofile: nowhere\n")
    assert main(["run", "--config", str(config)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: cannot read the profile: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"], ["doctor", "--help"]])
def test_help_is_quick(words: list[str]) -> None:
    """Help and version load neither torch nor openvino."""
    code = (
        "import sys\nfrom agent.__main__ import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit(','.join(sorted({'torch', 'openvino'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_can_be_started(tmp_path: Path) -> None:
    """python -m agent ends with the command's exit code, from any folder."""
    words = [sys.executable, "-m", "agent", "score", str(tmp_path / "nowhere"), "--profile", "x"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "no such file" in done.stderr
