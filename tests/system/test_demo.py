"""The demo as a newcomer runs it: broker, synthetic imager, agent process and view, all real."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from agent.contract.schemas import payload_schemas
from tests.brokers import free_port, need, wait_until
from tests.system.processes import PROFILE, ROOT, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_the_headless_demo_ends_by_itself_and_is_right(tmp_path: Path) -> None:
    """Posteriors come while strips are written, every slide and patient gets its final, and the exit code is 0."""
    profile = tmp_path / "profile"
    shutil.copytree(PROFILE, profile, ignore=shutil.ignore_patterns("engines"))
    words: list[str | Path] = [
        "--headless",
        "--rate",
        "20",
        "--slides",
        "2",
        "--profile",
        profile,
        "--dir",
        tmp_path / "demo",
    ]
    done = command("agent", "demo", *words, limit_s=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "engine compiled" in lines
    (page,) = [line.split()[1] for line in lines if line.startswith("dashboard http://127.0.0.1:")]
    with pytest.raises(ConnectionRefusedError):  # the dashboard has ended with the demo
        socket.create_connection(("127.0.0.1", int(page.rstrip("/").rpartition(":")[2])))
    assert any("agent ready" in line and "openvino" in line for line in lines)
    assert any("receiving" in line and "used" in line for line in lines)
    assert sum("FINAL" in line and "PATIENT" not in line for line in lines) == 2
    assert any("PATIENT FINAL" in line for line in lines)
    assert "2 of 2 phantom slides right" in lines
    assert "Research use only" in done.stdout and "not tissue" in done.stdout
    assert not done.stderr

    again = command("agent", "demo", *words)
    assert again.returncode == 2 and "not empty" in again.stderr


def test_every_payload_of_the_demo_fits_its_schema(tmp_path: Path) -> None:
    """mosquitto_sub at the demo's own broker hears the whole run; each payload is valid and small."""
    profile, heard, port = tmp_path / "profile", tmp_path / "heard", free_port()
    shutil.copytree(PROFILE, profile)
    words = ["--headless", "--rate", "20", "--slides", "1", "--profile", str(profile), "--port", str(port)]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "agent", "demo", *words], stdout=subprocess.DEVNULL, cwd=ROOT
        ) as demo,
        heard.open("wb") as sink,
    ):
        wait_until(lambda: accepts(port), "the demo's broker", 60)
        client = [need("mosquitto_sub", "mosquitto-clients"), "-V", "311", "-p", str(port), "-t", "srh/v1/#"]
        with subprocess.Popen(client, stdout=sink) as listener:
            assert demo.wait(120) == 0
            listener.terminate()
    bodies = [json.loads(line) for line in heard.read_text().splitlines()]
    schemas = payload_schemas()
    said = [body for body in bodies if "kind" in body]  # the dashboard's request is a command, without a kind
    for body in said:
        jsonschema.Draft202012Validator(schemas[body["kind"]]).validate(body)
        assert len(json.dumps(body)) <= 4096
    assert {"status", "health", "current", "slide.posterior", "slide.patches", "slide.final", "patient.final"} <= {
        body["kind"] for body in said
    }


def test_a_demo_that_is_ended_early_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM in the middle of a slide ends agent and dashboard too."""
    profile, home = tmp_path / "profile", tmp_path / "demo"
    shutil.copytree(PROFILE, profile)
    words = [sys.executable, "-u", "-m", "agent", "demo", "--headless", "--profile", str(profile), "--dir", str(home)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as demo:
        assert demo.stdout is not None
        assert any("receiving" in line for line in demo.stdout)
        assert len(processes_about(home)) == 3
        demo.terminate()
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert processes_about(home) == []


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def processes_about(folder: Path) -> list[str]:
    """Processes that were started with something in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            found.append(entry.read_text(errors="replace"))
    return [words for words in found if str(folder) in words]


def test_bad_arguments_of_the_demo_exit_with_2(tmp_path: Path) -> None:
    """A rate of nothing is refused before anything starts."""
    done = command("agent", "demo", "--headless", "--rate", "0")
    assert done.returncode == 2 and "--rate" in done.stderr and "Traceback" not in done.stderr
