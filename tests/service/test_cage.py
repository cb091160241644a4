"""The services at work inside the restrictions of their units, and proof that these restrictions hold."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Listener, Mosquitto, free_port, need, wait_until
from tests.service.cage import USER, Cage
from tests.service.machine import UNITS, Machine
from tests.service.probe import CALLS
from tests.service.units import NAMES, PREFIX
from tests.system.processes import command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
READY_S, FINAL_S = 60.0, 90.0
PASSWORD = "not for everybody"
STATE = "/var/lib/spinextract-agent"
SPOOL = f"{STATE}/results"
SETTINGS = "/etc/spinextract-agent"
CREDENTIALS = f"{SETTINGS}/credentials"
RESULTS = "/var/lib/spinextract-dicom-out"
PLACES = ["/srv/imager", STATE, SPOOL, SETTINGS, PREFIX, "/usr/bin", "/home", "/var/log", "/boot", "/"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running mosquitto that lets in who knows the password."""
    folder = tmp_path / "broker"
    folder.mkdir()
    accounts = folder / "accounts"
    accounts.touch()
    subprocess.run([need("mosquitto_passwd", "mosquitto"), "-b", accounts, "theatre", PASSWORD], check=True)
    mosquitto = Mosquitto(folder, f"password_file {accounts}", anonymous=False).start()
    yield mosquitto
    mosquitto.kill()


def account(broker: Mosquitto) -> dict[str, Any]:
    """The settings' `mqtt` section for this broker; the password comes from systemd."""
    login = {"username": "theatre", "password_file": "credential:mqtt_password"}
    return {"port": broker.port, "health_interval_s": 0.2, **login}


def probed(machine: Machine, name: str, outside: Path) -> dict[str, Any]:
    """What a process in the cage of a unit can do."""
    cage = Cage(machine, machine.unit(name))
    python = f"{PREFIX}/bin/python"
    with tempfile.TemporaryFile() as out:
        with cage.run(python, "-m", "tests.service.probe", *PLACES, str(outside), log=out) as process:
            code = process.wait(60)
        out.seek(0)
        said = out.read().decode()
    cage.close()
    assert code == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe knows the system calls of x86-64")
@pytest.mark.parametrize("name", NAMES)
def test_the_cage_is_closed(name: str, tmp_path: Path) -> None:
    """No forbidden call, socket family, file or right is left to a process under the unit's restrictions."""
    machine = Machine(tmp_path / "machine")
    outside = tmp_path / "outside"
    outside.mkdir()
    machine.file(f"{SPOOL}/.").mkdir(parents=True)
    machine.file(f"{STATE}/identity.key").write_text("secret")
    found = probed(machine, name, outside)

    assert {call: found[call] for call in CALLS if found[call] != "EPERM"} == {}
    families = {"AF_UNIX"} if name == "spinextract-dicom-out" else {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert {key: found[key] for key in found if key.startswith("AF_")} == {
        key: "done" if key in families else "EAFNOSUPPORT" for key in found if key.startswith("AF_")
    }
    writable = {
        "spinextract-agent": {STATE, SPOOL},
        "spinextract-dashboard": set(),
        "spinextract-dicom-out": {SPOOL},
    }[name]
    assert {path for path in [*PLACES, str(outside)] if found[f"write {path}"] == "done"} == writable
    hidden = {path for path in [*PLACES, str(outside)] if found[f"read {path}"] == "ENOENT"}
    assert {"/home", "/var/log", "/boot", str(outside)} <= hidden
    assert (STATE in hidden) == (name == "spinextract-dashboard")
    assert found[f"open {STATE}/identity.key"] == ("done" if name == "spinextract-agent" else "ENOENT")
    assert ("/srv/imager" in hidden) == (name != "spinextract-agent")
    assert found["memory"] == ("done" if name == "spinextract-agent" else "EPERM")
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert {found[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert found["Uid"].split() == [str(USER)] * 4


@contextmanager
def running(machine: Machine, name: str, log: Path) -> Iterator[None]:
    """A service in its cage, from READY to a clean end; at the end its log holds no failure."""
    cage = Cage(machine, machine.unit(name))
    with log.open("wb") as file, cage.run(log=file) as process:
        wait_until(lambda: cage.said("READY=1") or process.poll() is not None, f"{name} is ready", READY_S)
        assert process.poll() is None, log.read_text()
        yield
        cage.signal(signal.SIGTERM)
        wait_until(lambda: process.poll() is not None, f"{name} has ended", READY_S)
    cage.close()
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text() and '"level": "error"' not in log.read_text()


def test_agent_and_dicom_results_work_in_their_cages(broker: Mosquitto, tmp_path: Path) -> None:
    """From a synthetic phantom slide over the patient's final to DICOM objects, each service with its own rights."""
    slides = tmp_path / "slides"
    assert command("agent", "phantom", "--out", slides, "--slides", "1", "--layout", "strips-b").returncode == 0
    machine = Machine(
        tmp_path / "machine",
        mqtt=account(broker),
        patient={"quiet_s": 2.0},
        engine={"threads": 1},
        dicom_out={"folder": RESULTS},
    )
    machine.file(f"{CREDENTIALS}/agent/password").write_text(PASSWORD + "\n")
    profile = machine.file(f"{SETTINGS}/profiles/phantom")
    built = command("agent.build_trt", "--profile", profile, "--patches", "8", "--slides", "1")
    assert built.returncode == 0, built.stderr
    listener = Listener(broker.port, username="theatre", password=PASSWORD)
    with running(machine, "spinextract-agent", tmp_path / "agent.log"):
        assert command("agent", "replay", slides, machine.folder, "--rate", "1000").returncode == 0
        before = list(machine.folder.rglob("*"))
        wait_until(lambda: listener.bodies("/final")[1:], "the finals of slide and patient", FINAL_S)
    slide, patient = listener.bodies("/final")
    assert (slide["kind"], slide["state"], patient["kind"]) == ("slide.final", "complete", "patient.final")
    online = next(body for body in listener.bodies("/status") if body["state"] == "online")
    assert online["engine"]["name"] == "openvino"
    listener.close()
    assert list(machine.folder.rglob("*")) == before
    assert machine.file(f"{STATE}/identity.key").is_file()

    with running(machine, "spinextract-dicom-out", tmp_path / "dicom-out.log"):
        results = machine.file(f"{RESULTS}/.").parent
        wait_until(lambda: len(list(results.rglob("*.dcm"))) >= 3, "report, map and picture", FINAL_S)


def test_the_dashboard_works_in_its_cage(broker: Mosquitto, tmp_path: Path) -> None:
    """It logs in with its own password, serves its page, and needs nothing of the agent's."""
    port = free_port()
    machine = Machine(tmp_path / "machine", mqtt=account(broker), dashboard={"port": port})
    machine.file(f"{CREDENTIALS}/dashboard/password").write_text(PASSWORD + "\n")

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return bytes(answer.read())

    with running(machine, "spinextract-dashboard", tmp_path / "log"):
        wait_until(lambda: json.loads(get("/healthz"))["broker"] == "connected", "the broker's welcome")
        assert b"<html" in get("/").lower()


def test_an_unknown_line_is_noticed(tmp_path: Path) -> None:
    """A restriction added to a unit fails these tests until the cage follows it, or says why it does not."""
    machine = Machine(tmp_path / "machine")
    with (machine.root / UNITS / "spinextract-agent.service").open("a") as file:
        file.write("\n[Service]\nNewRestriction=yes\n")
    with pytest.raises(AssertionError, match="NewRestriction"):
        Cage(machine, machine.unit("spinextract-agent"))
