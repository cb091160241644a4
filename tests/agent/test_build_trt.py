"""`python -m agent.build_trt`: arguments, exit codes, and what people and scripts read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from agent.build_trt import main
from agent.engine import BACKENDS
from agent.engine.openvino import OpenVinoBackend
from agent.engine.table import Listed, engine_report
from tests.agent.engine.small_profile import need_openvino, write_profile
from tests.agent.engine.test_manifest import manifest, written
from tests.agent.engine.test_signature import key_pair

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder without engines."""
    need_openvino()
    made = tmp_path_factory.mktemp("profile")
    write_profile(made)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A profile folder and the finished command that built the default engine into it."""
    need_openvino()
    made = tmp_path_factory.mktemp("built")
    write_profile(made)
    return made, command("--profile", str(made), "--patches", "8", "--slides", "1", "--threads", "1")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "agent.build_trt", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_build_prints_a_table(built: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The default build picks the best precision, exits 0, and shows its figures."""
    folder, done = built
    best = OpenVinoBackend().precisions()[0]
    assert done.returncode == 0, done.stderr
    assert f"Gates that openvino-{best}-b1 passed" in done.stdout
    for gate in ("golden pair", "census", "independence", "reload", "speed", "slides", "parity"):
        assert f"│ {gate} " in done.stdout
    assert all(word in done.stdout for word in ("limit", "figure", "passed", "usable", "unsigned", "│ device"))
    assert "independence of neighbours" in done.stderr
    assert (folder / "engines" / f"openvino-{best}-b1" / "engine.json").exists()


def test_report_and_check(
    built: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """`report` says that the engine is usable here, `check` loads it, and both speak JSON."""
    folder = str(built[0])
    assert main(["report", "--profile", folder]) == 0
    assert "usable" in capsys.readouterr().out
    assert main(["report", "--config", str(settings_file(built[0]))]) == 0
    assert "usable" in capsys.readouterr().out
    assert main(["report", "--profile", folder, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["engines"]
    assert (row["state"], row["usable"], row["signature"]) == ("usable", True, "unsigned")
    assert row["manifest"]["figures"]["patches"] == 8
    assert row["manifest"]["limits"]["speed_ratio"] == 1.0
    assert main(["check", "--profile", folder, "--threads", "1"]) == 0
    assert "golden pair agrees" in capsys.readouterr().out
    assert main(["check", "--profile", folder, "--engine", row["engine"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "openvino"


def test_check_needs_no_torch(built: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """A fresh process loads and runs the engine without torch."""
    done = command("check", "--profile", str(built[0]), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["torch_loaded"] is False


def settings_file(folder: Path, **engine: object) -> Path:
    """The agent's settings beside the profile, outside of what is watched."""
    path = folder / "agent.yaml"
    wanted = {"folder": "imager", "state_dir": "state", "profile": str(folder), "engine": engine}
    path.write_text(yaml.safe_dump(wanted))
    return path


def test_limits_come_from_the_settings(
    built: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--config` brings profile, threads and limits: what no engine can keep fails the build by the gate's name, and
    refuses the engine that was built under the defaults.
    """
    limits = {"fp32": {"slide_change": 1e-12}, "bf16": {"slide_change": 1e-12}, "fp16": {"slide_change": 1e-12}}
    config = str(settings_file(built[0], limits=limits, threads=1))
    quick = ["--patches", "4", "--slides", "1", "--precision", "fp32", "--json"]
    assert main(["--config", config, *quick]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: gate 'slides' failed: max change of a posterior, of 1 slides: ")
    assert "allowed is at most 1e-12; an engine already in place is unchanged" in error
    assert main(["check", "--config", config]) == 1
    assert "built under other limits: gate 'slides'" in capsys.readouterr().err
    assert main(["check", "--profile", str(built[0]), "--threads", "1"]) == 0


def test_signed_builds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A build that is signed is usable by settings with the public key; the next one without a signature is not, and
    says how to sign it; a key that does not fit is refused before anything is built.
    """
    private, public = key_pair(tmp_path, "ours")
    theirs, _ = key_pair(tmp_path, "theirs")
    mine = Path(shutil.copytree(folder, tmp_path / "profile"))
    config = str(settings_file(mine, public_key=str(public), threads=1))
    quick = ["--config", config, "--patches", "4", "--slides", "1", "--precision", "fp32", "--json"]
    assert main([*quick, "--sign-with", str(theirs)]) == 1
    assert "theirs.pem is not the private half of engine.public_key" in capsys.readouterr().err
    assert not (mine / "engines").exists()
    for _ in range(2):  # the second one takes the place of the first, signature and all
        assert main([*quick, "--sign-with", str(private)]) == 0
        assert main(["check", "--config", config]) == 0
    capsys.readouterr()
    assert main(["report", "--config", config, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["engines"]
    assert (row["usable"], row["signature"]) == (True, "signed by the owner of ours.pub")
    assert main(["report", "--profile", str(mine), "--json"]) == 0
    assert "signed (no engine.public_key" in json.loads(capsys.readouterr().out)["engines"][0]["signature"]
    assert main(quick) == 0
    assert "not signed yet, so the agent will refuse it: openssl pkeyutl -sign -rawin" in capsys.readouterr().err
    assert main(["check", "--config", config]) == 1
    assert "not signed, and engine.public_key" in capsys.readouterr().err
    assert main(["report", "--config", config]) == 0
    assert "unsigned" in capsys.readouterr().out


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """`schema` prints what the repository holds, and needs no profile."""
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "engine.schema.json").read_text()


def test_notes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backend has to say of its build stands in the report, markup and all."""
    monkeypatch.setenv("COLUMNS", "160")
    notes = {"kept in bf16": "layers 1 and 2 [stem]: int8 moved a probability by .07"}
    folder = written(tmp_path, manifest(notes=notes))
    listed = Listed(folder, manifest(notes=notes), "openvino-bf16-b1: built for [other]", "unsigned")
    Console().print(*engine_report([listed]))
    shown = capsys.readouterr().out
    assert notes["kept in bf16"] in shown and "kept in bf16" in shown and "[other]" in shown


def test_report_tells_what_is_wrong(
    built: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine of another profile is listed with the reason and the command that mends it."""
    write_profile(tmp_path, seed=3)
    (tmp_path / "engines").symlink_to(built[0] / "engines")
    assert main(["report", "--profile", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["engines"]
    assert "built for profile" in row["state"]
    assert "run: python -m agent.build_trt" in row["state"]
    assert main(["check", "--profile", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: openvino-")


def test_nothing_built(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without engines `report` names the command and `check` fails with it."""
    assert main(["report", "--profile", str(folder)]) == 0
    assert "nothing built; run: python -m agent.build_trt --profile" in capsys.readouterr().out.replace("\n", " ")
    assert main(["check", "--profile", str(folder)]) == 1
    assert "nothing built; run: python -m agent.build_trt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--backend", "eager"), "eager runs straight from the profile and needs no build"),
        (("--precision", "fp8"), "openvino has no fp8 on this machine in this version; available: "),
        (("--backend", "inductor", "--precision", "fp16"), "inductor has no fp16 on this machine in this version; "),
        (("--backend", "openvino", "--device", "cuda"), "openvino does not build for cuda; it builds for cpu"),
        (("--backend", "tensorrt", "--device", "cpu"), "tensorrt does not build for cpu; it builds for cuda"),
        (("--device", "abacus"), "unknown device 'abacus'; known: cpu, cuda, cuda:N"),
        (("--precision", "fp32", "--calibrate-on", "x"), "--calibrate-on is for int8 and fp8; this would build fp32"),
    ],
)
def test_not_available(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], line: str
) -> None:
    """What this version or machine does not have is one clear line and exit code 2."""
    assert main(["--profile", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "tensorrt"), ("is not installed",)),
        (("--device", "cuda"), ("tensorrt: ", "; inductor: ")),
        (("--device", "cuda", "--backend", "inductor"), ("inductor: torch ",)),
    ],
)
def test_what_the_machine_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """A device or a package that is not there is one line with the reason of every backend tried, and exit code 1."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    assert main(["--profile", str(folder), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words)


def test_report_says_what_is_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Backends that can be used for no device of this machine are named with the reason; the others are not."""
    reason = BACKENDS["tensorrt"].unavailable("cuda")
    assert main(["report", "--profile", str(folder)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": not run: " in line]
    assert lines == ([f"tensorrt: not run: {reason}"] if reason else [])
    assert main(["report", "--profile", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_run"] == ({"tensorrt": reason} if reason else {})


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("report",),
        ("--profile", "x", "--batch", "0"),
        ("--profile", "x", "--threads", "-1"),
        ("--profile", "x", "--backend", "abacus"),
    ],
    ids=["no profile", "no profile either", "no rows", "negative threads", "unknown backend"],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """Arguments that make no sense exit with 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m agent.build_trt" in capsys.readouterr().err


def test_no_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or damaged profile is one line and exit code 1."""
    assert main(["--profile", str(tmp_path / "absent")]) == 1
    assert "cannot read the profile" in capsys.readouterr().err
    write_profile(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"other")
    assert main(["--profile", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "weights.safetensors has sha256" in error
    assert error.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """--help says what is proven, gives examples and the exit codes."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(
        word in text
        for word in ("golden pair", "examples:", "exit codes: 0 done", "report", "engine.limits", "--sign-with")
    )
