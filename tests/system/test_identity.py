"""Nobody is named: a whole life of the agent with telling names everywhere, and a search through all that is left."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.topics import Message
from tests.agent.dashboard.processes import DashboardProcess, Events, Speaker
from tests.brokers import Listener, Mosquitto, free_port, wait_until
from tests.system.processes import PROFILE, ROOT, AgentProcess, command
from tests.system.telling import (
    ASCII_NAME,
    FAMILY,
    IDENTIFIERS,
    KANJI,
    PATIENT_ID,
    SLIDE,
    bad_files,
    files_below,
    found_in,
    good_files,
    spellings,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
FINAL_S = 60.0
BASE = "srh/v1/test/instrument"
TOLD = {"not_an_image", "malformed", "unsupported", "wrong_type", "unknown_name", "stalled", "waiting", "duplicate"}
"""Problems that the files cause, each of which is told to people."""


class Life:
    """One agent from its first start to its last, and everything that it leaves behind."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("broker", "tmp", "user", "dicom"):
            (home / name).mkdir()
        self.broker = Mosquitto(home / "broker").start()
        self.port = free_port()
        self.agent = AgentProcess(
            home / "agent",
            self.broker.port,
            log={"format": "json", "level": "debug"},
            mqtt={"commands": ["close-patient", "replay-state", "engine"]},
            metrics={"port": self.port},
            dashboard={"port": 0},
            dicom_out={"folder": str(home / "dicom")},
            watch={"scan_interval_s": 0.5, "settle_s": 0.3, "stall_after_s": 2.0, "slide_quiet_s": 2.0},
        )
        self.environment = {"TMPDIR": str(home / "tmp"), "HOME": str(home / "user")}
        self.listener = Listener(self.broker.port)
        self.screen = DashboardProcess(home / "agent", self.broker.port)
        self.screen.config = self.agent.config
        self.remains: dict[str, bytes] = {}
        self.answers: list[dict[str, Any]] = []

    def run(self) -> None:
        """Every way in and every way to end that this system has."""
        self._start()
        self.screen.start(environment=self.environment)
        self._image()
        self._command()
        self._look_at_it()
        self._end_badly(signal.SIGABRT)
        self._start(JOURNAL_STREAM=self._journal())
        self._meddle()
        self._end_badly(signal.SIGKILL)
        self._start()
        wait_until(lambda: self._says("online", 3), "the third birth")
        self._ask_the_commands()
        assert self.agent.stop() == 0
        self.screen.stop()
        self._gather()

    def close(self) -> None:
        """End everything."""
        self.listener.close()
        self.screen.kill()
        if not self.agent.ended:
            self.agent.kill()
        self.broker.kill()

    def _start(self, **environment: str) -> None:
        self.agent.start(environment={**self.environment, **environment})

    def _journal(self) -> str:
        """What systemd says when it connects stderr with the journal."""
        status = (self.agent.home / "log").stat()
        return f"{status.st_dev}:{status.st_ino}"

    def _says(self, state: str, times: int) -> bool:
        return [body["state"] for body in self.listener.bodies("/status")].count(state) >= times

    def _put(self, name: str | bytes, content: bytes) -> None:
        path = os.path.join(os.fsencode(self.agent.folder), os.fsencode(name))  # noqa: PTH118 - a name of bytes
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(content)

    def _image(self) -> None:
        for bad, content in bad_files().items():
            self._put(bad, content)
        os.mkfifo(self.agent.folder / f"pipe-{ASCII_NAME}.dcm")
        (self.agent.folder / f"link-{ASCII_NAME}.tif").symlink_to(f"{FAMILY}.tif")
        for good, content in good_files().items():
            self._put(good, content)
            if good.endswith("IMG00006.dcm"):
                self._put(good.replace("IMG00006", "IMG000006"), content)
        wait_until(lambda: len(self._finals("slide")) >= 3, "finals of three slides", FINAL_S)
        wait_until(lambda: self._finals("patient"), "the final of a patient", FINAL_S)
        wait_until(lambda: self._reasons() >= TOLD, "every problem is told", FINAL_S)

    def _finals(self, scope: str) -> set[str]:
        return {body[scope] for body in self.listener.bodies("/final") if body["kind"] == f"{scope}.final"}

    def _reasons(self) -> set[str]:
        return {body["reason"] for body in self.listener.bodies("/alert")}

    def _command(self) -> None:
        """Names in bodies, in reply topics and in the verb; retained, too. What we say ourselves is not searched."""
        speaker = Speaker(self.broker.port)
        bodies: list[tuple[str, bytes, bool]] = [
            ("close-patient", json.dumps({"patient": ASCII_NAME}).encode(), False),
            ("close-patient", json.dumps({"patient": None, FAMILY: PATIENT_ID}, ensure_ascii=False).encode(), False),
            ("close-patient", f"{FAMILY} {PATIENT_ID}".encode(), False),
            ("close-patient", json.dumps({"request_id": f"{FAMILY} {PATIENT_ID}"}).encode(), False),
            ("engine", json.dumps({"use": f"{ASCII_NAME} {PATIENT_ID}"}).encode(), False),
            ("replay-state", b"", False),
            (ASCII_NAME, PATIENT_ID.encode(), False),
            ("close-patient", json.dumps({"patient": PATIENT_ID}).encode(), True),
        ]
        for verb, body, retained in bodies:
            speaker.say(Message(f"{BASE}/cmd/{verb}", body, "x", "command", 1, retained, False, False))
        speaker.close()
        wait_until(lambda: len(self.listener.bodies("/reply/close-patient")) >= 4, "commands are answered")
        wait_until(lambda: self.listener.bodies("/reply/unknown"), "the unknown one, too")
        wait_until(lambda: self.listener.bodies("/reply/engine"), "and the engine's")

    def _look_at_it(self) -> None:
        """While it runs: what the machine and the network tell of it."""
        assert self.agent.process is not None
        process = Path("/proc", str(self.agent.process.pid))
        for name in ("cmdline", "environ", "comm", "status", "maps"):
            self.remains[f"/proc/{name}"] = (process / name).read_bytes()
        for thread in (process / "task").iterdir():
            self.remains[f"/proc/task/{thread.name}"] = (thread / "comm").read_bytes()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            self.remains["/metrics"] = answer.read()
        for path in ("/", "/no-such-page"):
            self.remains[f"dashboard {path}"] = self.screen.get(path)[2]
        with Events(self.screen) as events:
            wait_until(lambda: events.views and events.views[-1]["alerts"], "a view with alerts")
            wait_until(lambda: events.views[-1]["patient"], "a view with a patient")
            self.remains["dashboard /events"] = json.dumps(
                [events.views, events.patches], ensure_ascii=False
            ).encode()

    def _end_badly(self, number: int) -> None:
        self.agent.signal(number)
        assert self.agent.wait() == -number
        # As a stolen disk would show it, with the log that SQLite had not written back.
        for name, content in files_below(self.agent.state).items():
            self.remains[f"{name} after {number}"] = content
        assert any("-wal" in name for name in self.remains)

    def _meddle(self) -> None:
        """Files of complete slides change and go; others are cut."""
        names = [name for name in good_files() if "strips" in name]
        alerts = len(self.listener.bodies("/alert"))
        with (self.agent.folder / names[0]).open("ab") as file:
            file.write(ASCII_NAME.encode())
        (self.agent.folder / ASCII_NAME / SLIDE / "strips/CH2/IMG00006.dcm").unlink()
        (self.agent.folder / f"{ASCII_NAME}-{PATIENT_ID}.dcm").write_bytes(KANJI.encode() * 99)
        wait_until(lambda: len(self.listener.bodies("/alert")) > alerts, "an alert about it", FINAL_S)

    def _ask_the_commands(self) -> None:
        config = self.agent.config
        asked: dict[str, tuple[str | Path, ...]] = {
            "doctor": ("doctor", "--config", config),
            "doctor --json": ("doctor", "--config", config, "--json"),
            "dicom-out": ("dicom-out", "--config", config, "--once", "--json"),
            "contract": ("contract", "--out", self.home / "contract"),
        }
        for name, words in asked.items():
            done = command("agent", *words)
            self.remains[f"output of {name}"] = (done.stdout + done.stderr).encode()
            assert name.startswith("doctor") or done.returncode == 0, done.stderr

    def _gather(self) -> None:
        """All that is left, but for the imager's folder and for what this test said itself."""
        for folder in ("agent", "tmp", "user", "dicom", "contract"):
            for name, content in files_below(self.home / folder).items():
                if not Path(name).is_relative_to(self.agent.folder):
                    self.remains[name] = content
        for number, message in enumerate(self.listener.messages):
            if "/cmd/" not in message.topic:
                known = [str(value) for value in vars(message.properties).values()] if message.properties else []
                about = f"{message.topic}\n{known}\n".encode()
                self.remains[f"message {number} {message.topic}"] = about + message.payload
        lines = (self.home / "broker" / "mosquitto.log").read_bytes().splitlines()
        self.remains["the broker's log"] = b"\n".join(line for line in lines if b"/cmd/" not in line)
        self.remains["notified"] = "\n".join(self.agent.notified).encode()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """It has been lived."""
    life = Life(tmp_path_factory.mktemp("life"))
    try:
        life.run()
        yield life
    finally:
        life.close()


def test_nothing_that_is_left_names_anybody(life: Life) -> None:
    """State folder with its write-ahead log, logs, messages, metrics, page, DICOM results, temporary files, process:
    no identifier in any spelling, not even after SIGABRT and kill -9."""
    places = " ".join(life.remains)
    for needed in ("ledger.sqlite-wal", "identity.key", "/log", "/final", "/alert", "/health", "/reply/", "dicom/"):
        assert needed in places, f"{needed} was not looked at"
    assert sum(map(len, life.remains.values())) > 1_000_000
    assert found_in(life.remains) == []


def test_every_file_that_is_left_is_the_agents_alone(life: Life) -> None:
    """Whatever was made below the state folder has no bits for group and others, and the folder lets nobody in."""
    state = life.agent.state
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (state, *state.rglob("*"))}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    assert not [
        path for folder in (ROOT, life.home, life.agent.home) for path in folder.glob("core*") if path.is_file()
    ]


def test_the_lookup_file_and_a_score_are_the_permitted_places(life: Life, tmp_path: Path) -> None:
    """Names stand in the lookup file (0600) when a site asks for one, and in what `score` writes for whoever holds
    the files in his hands (0600): nowhere else."""
    agent = AgentProcess(
        tmp_path / "agent", life.broker.port, site="b", identity={"lookup_file": str(tmp_path / "names")}
    )
    name, content = next(iter(good_files().items()))
    (agent.folder / name).parent.mkdir(parents=True)
    (agent.folder / name).write_bytes(content)
    agent.start()
    wait_until((tmp_path / "names").exists, "a name is looked up")
    assert agent.stop() == 0
    left = {place: content for place, content in files_below(tmp_path).items() if "imager" not in place}
    assert {line.split(": ")[0] for line in found_in(left)} == {str(tmp_path / "names")}
    assert stat.S_IMODE((tmp_path / "names").stat().st_mode) == 0o600

    out = tmp_path / "scores.json"
    done = command("agent", "score", agent.folder, "--profile", PROFILE, "--backend", "eager", "--out", out)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_the_search_is_not_blind(identifier: str) -> None:
    """Each identifier is found in each of these disguises; so is none where there is none."""
    disguises = {
        "text": f"x {identifier} y".encode(),
        "upper case": identifier.upper().encode(),
        "lower case": identifier.lower().encode(),
        "utf-16": f"..{identifier}..".encode("utf-16"),
        "json": json.dumps([identifier]).encode(),
        "hex": identifier.encode().hex().encode(),
        "log": repr(identifier.encode("utf-8", "surrogateescape"))[2:-1].encode(),
    }
    for shift in range(3):
        disguises[f"base64 at {shift}"] = base64.b64encode(b"x" * shift + identifier.encode() + b"more")
    assert {line.split(":")[0] for line in found_in(disguises) if f": {identifier} as" in line} >= disguises.keys()
    assert len(spellings(identifier)) > 10
    assert found_in({"innocent": (ROOT / "README.md").read_bytes()}) == []
