"""`python -m agent.build_trt` where things go wrong around it: no room, signals, a kill, another machine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agent.build_trt import main
from agent.engine import built_engines
from agent.engine.device import this_cpu
from agent.engine.manifest import MANIFEST, engine_folder, parse_manifest
from agent.engine.openvino import OpenVinoBackend
from tests.agent.engine.small_profile import need_openvino, read_profile, write_profile
from tests.agent.engine.unproven import build_unproven
from tests.brokers import need, wait_until

ROOT = Path(__file__).parents[2]
QUICK = ("--precision", "fp32", "--patches", "4", "--slides", "1", "--threads", "1", "--json")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder with an engine that was built before; tests work on copies."""
    need_openvino()
    folder = tmp_path_factory.mktemp("prepared")
    profile = write_profile(folder)
    build_unproven(OpenVinoBackend(), profile, engine_folder(folder, "openvino", "fp32", 1), "fp32", 1)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(prepared, tmp_path / "profile"))


def start(folder: Path, *before: str, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """Start a build as a user does, behind other words of a command line."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "agent.build_trt", "--profile", str(folder), *QUICK],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def old_engine(folder: Path) -> bytes:
    """What lies in the engine's place."""
    target = engine_folder(folder, "openvino", "fp32", 1)
    return b"".join(path.read_bytes() for path in sorted(target.iterdir()))


def half_built(folder: Path) -> list[Path]:
    """Folders of builds that have not ended."""
    return list((folder / "engines").glob(".*"))


def begun(folder: Path) -> subprocess.Popen[str]:
    """A build that is in the middle of its work."""
    build = start(folder)
    wait_until(lambda: half_built(folder) or build.poll() is not None, "the build has begun")
    assert build.poll() is None
    return build


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: signal.Signals(number).name)
def test_a_signal_ends_it_in_one_line(folder: Path, number: signal.Signals) -> None:
    """Exit code 1, one line, nothing half-built is left, the old engine is whole."""
    before = old_engine(folder)
    build = begun(folder)
    build.send_signal(number)
    _, error = build.communicate(timeout=60)
    assert build.returncode == 1
    assert error == "error: interrupted; nothing half-built is left, an engine in place is whole\n"
    assert half_built(folder) == [] and old_engine(folder) == before


def test_a_killed_build_is_never_picked_up(folder: Path) -> None:
    """What a kill leaves is seen by nobody, and the next build removes it."""
    before = old_engine(folder)
    build = begun(folder)
    build.kill()
    build.communicate(timeout=60)
    assert len(half_built(folder)) == 1
    assert [path.name for path, _ in built_engines(folder)] == ["openvino-fp32-b1"]
    assert old_engine(folder) == before
    assert main(["--profile", str(folder), *QUICK]) == 0
    assert half_built(folder) == []
    assert old_engine(folder) != before


def no_room(build: subprocess.Popen[str], folder: Path, words: str) -> None:
    """The build fails in one line with these words and leaves the old engine."""
    _, error = build.communicate(timeout=100)
    assert build.returncode == 1
    assert error == f"error: cannot write {engine_folder(folder, 'openvino', 'fp32', 1)}: {words}\n"
    assert half_built(folder) == []


def test_a_limit_on_the_size_of_files(folder: Path) -> None:
    """A file that may not grow as large as the engine: the system's own words, not the library's."""
    before = old_engine(folder)
    most = 200_000
    build = start(folder, prepare=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most)))
    no_room(build, folder, "File too large")
    assert old_engine(folder) == before


def test_a_full_disk(folder: Path) -> None:
    """A real file system with too little room for the engine."""
    cage = (need("bwrap", "bubblewrap"), "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--size", "300000")
    build = start(folder, *cage, "--tmpfs", str(folder / "engines"))
    no_room(build, folder, "No space left on device")
    assert build.returncode == 1


def test_an_engine_of_another_processor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` refuses it in one line that names both processors and the command that mends it; `report` lists it."""
    target = engine_folder(folder, "openvino", "fp32", 1)
    manifest = parse_manifest((target / MANIFEST).read_bytes())
    other = manifest.device.model_copy(update={"model": "Z80"})
    (target / MANIFEST).write_text(manifest.model_copy(update={"device": other}).sealed().to_json())
    assert main(["check", "--profile", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: openvino-fp32-b1: built on Z80")
    assert f"this machine is {this_cpu().model or 'cpu'}" in error and error.count("\n") == 1
    assert f"run: python -m agent.build_trt --profile {folder} --backend openvino" in error
    assert main(["report", "--profile", str(folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["engines"]
    assert row["usable"] is False and row["state"].startswith("openvino-fp32-b1: built on Z80")


def test_a_manifest_edited_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says so."""
    path = engine_folder(folder, "openvino", "fp32", 1) / MANIFEST
    path.write_text(path.read_text().replace('"threads": 2', '"threads": 4'))
    assert main(["check", "--profile", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "edited after the build" in error and "run: python -m agent.build_trt" in error and error.count("\n") == 1


def test_the_build_after_a_damaged_engine_mends_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that the refusal names makes a usable engine of it."""
    (engine_folder(folder, "openvino", "fp32", 1) / "model.bin").write_bytes(b"spoiled")
    assert main(["check", "--profile", str(folder)]) == 1
    assert "model.bin differs from the file that was built" in capsys.readouterr().err
    assert main(["--profile", str(folder), *QUICK]) == 0
    assert main(["check", "--profile", str(folder), "--threads", "1"]) == 0
    assert read_profile(folder).sha256 in (engine_folder(folder, "openvino", "fp32", 1) / MANIFEST).read_text()
