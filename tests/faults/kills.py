"""Random kills of a real agent at random moments, and what is left of its work afterwards.

A scenario is one acquisition that goes on while the agent is killed several times; then it is left in peace, and
everything is compared with an undisturbed run. Chance comes from the scenario's seed; the machine's own timing adds
to it, so that a repetition meets nearly, but not exactly, the same moments.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.ledger_file import MIGRATIONS
from tests.brokers import Mosquitto
from tests.faults.acquisition import Acquisition, Imager, acquisition
from tests.faults.ground import Ground
from tests.faults.judge import Judge, Standing, Verdict, standing
from tests.faults.moments import Moment, Phase, draw
from tests.faults.shim import Shim
from tests.faults.witness import Witness
from tests.system.processes import AgentProcess, command

KILLS_PER_SCENARIO = 8
READY_S, END_S, FAREWELL_S = 60.0, 120.0, 5.0
PORTION_S = 0.7
"""How long the imager writes between two kills."""
HOLD_S = 0.001
PHASES: dict[Phase, int] = {"start-up": 6, "reading": 3, "ledger": 4, "publish": 4, "shutdown": 3, "any": 2}
"""How often each phase is struck, relative to the others."""
SIGNALS = {signal.SIGKILL: 7, signal.SIGTERM: 2, signal.SIGSTOP: 1}


@dataclass
class Outcome:
    """What one scenario did and found."""

    seed: int
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(signal, phase) → how often."""
    starts: int = 0
    patches: int = 0
    finals: int = 0
    alerts: int = 0
    messages: int = 0
    ready_s: list[float] = field(default_factory=list)
    """From start to READY, where it came to that."""
    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    folder: str = ""
    """Where everything lies when something was found."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        struck = {f"{name} {phase}": count for (name, phase), count in sorted(self.struck.items())}
        return {**vars(self), "struck": struck, "verdict": vars(self.verdict)}


class Scenario:
    """One acquisition, one agent, several kills."""

    def __init__(self, seed: int, kills: int, ground: Ground, folder: Path) -> None:
        """`folder` is new; see `run`."""
        self.outcome = Outcome(seed)
        self._chance = random.Random(seed)
        self._kills = kills
        self._ground = ground
        self._folder = folder
        folder.mkdir(parents=True)
        self._what: Acquisition = acquisition(self._chance, list(ground.strips()))
        self._broker = Mosquitto(folder, "max_queued_messages 0").start()
        self._witness = Witness(self._broker.port)
        self._agent = AgentProcess(
            folder / "agent",
            self._broker.port,
            profile=str(ground.profile),
            engine=ground.engine,
            watch={"scan_interval_s": 0.5, "settle_s": 0.3, "slide_quiet_s": 1.0, "stall_after_s": 2.5},
            patient={"quiet_s": 1.5},
            pipeline={"stop_limit_s": 30.0},
            dicom_out={"folder": str(folder / "objects")},
        )
        self._shim = Shim(folder, ground.library)
        self._imager = Imager(self._agent.folder, self._what, kills * PORTION_S)
        self._deaths: list[Standing] = []

    def run(self) -> Outcome:
        """Everything, from the first start to the verdict; the folder is removed when nothing was found."""
        begun = time.monotonic()
        verdict = self.outcome.verdict
        try:
            self._old_ledger()
            self._imager.start()
            for number in range(self._kills):
                self._imager.let((number + 1) / self._kills)
                self._strike()
            self._imager.finish()
            self.outcome.verdict = self._conclude(verdict)
        except (pytest.fail.Exception, AssertionError) as error:
            verdict.odd.append(str(error)[:2000])
            self.outcome.verdict = verdict
        finally:
            self._imager.cancel()
            if not self._agent.ended:
                self._agent.kill()
            self._witness.close()
            self._broker.kill()
        self.outcome.seconds = round(time.monotonic() - begun, 1)
        if self.outcome.verdict.is_clean:
            shutil.rmtree(self._folder)
        else:
            self.outcome.folder = str(self._folder)
            found = json.dumps(self.outcome.document(), indent=2)
            (self._folder / "outcome.json").write_text(found)
        return self.outcome

    def _old_ledger(self) -> None:
        """Sometimes the first start finds the ledger of an older version, which it must bring up to date."""
        version = self._chance.randrange(2 * len(MIGRATIONS))
        if not 0 < version < len(MIGRATIONS):
            return
        self._agent.state.mkdir()
        database = sqlite3.connect(self._agent.state / "ledger.sqlite", isolation_level=None)
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {version}")
        database.close()

    def _strike(self) -> None:
        phase: Phase = self._chance.choices(list(PHASES), list(PHASES.values()))[0]
        number = self._chance.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        if phase == "start-up" and not self._agent.ended:
            phase = "reading"  # a stopped agent that went on
        if phase == "start-up":
            moment = draw(self._chance, phase, self._agent, self._shim, self._witness)
            self._start()
        else:
            self._be_ready()
            if phase == "shutdown":
                self._agent.signal(signal.SIGTERM)
                number = signal.SIGKILL
            moment = draw(self._chance, phase, self._agent, self._shim, self._witness)
        came = moment.wait(lambda: self._agent.ended)
        was_ready = self._agent.said("READY=1")
        if was_ready and (phase == "start-up" or (not came and phase != "shutdown")):
            phase = "any"
        self.outcome.struck[signal.Signals(number).name, phase] += 1
        try:
            self._send(signal.Signals(number), moment, phase, was_ready=was_ready)
        finally:
            moment.release()
        if self._agent.ended:
            self._deaths.append(standing(self._agent.state, self._folder / "look"))

    def _send(self, number: signal.Signals, moment: Moment, phase: Phase, *, was_ready: bool) -> None:
        if self._agent.ended:
            if phase != "shutdown":  # there it may have ended before the moment came
                self._complain("ended by itself", self._agent.wait())
            return
        self._agent.signal(number)
        if number == signal.SIGKILL:
            # What was held must not go on before the signal has arrived.
            self._agent.wait()
        elif number == signal.SIGTERM:
            moment.release()
            code = self._agent.wait(60.0)
            if code != 0 and (was_ready or code != -signal.SIGTERM):
                self._complain("SIGTERM", code)
        else:
            moment.release()
            threading.Event().wait(self._chance.uniform(0.05, 0.6))
            if self._chance.random() < 0.3:
                self._agent.kill()  # as when the power goes while it is frozen
            else:
                self._agent.signal(signal.SIGCONT)

    def _complain(self, what: str, code: int) -> None:
        self.outcome.verdict.odd.append(f"{what}: exit code {code}; {self._agent.log()[-1500:]}")

    def _start(self) -> None:
        self.outcome.starts += 1
        self._agent.start(ready=False, environment=self._shim.environment)

    def _be_ready(self) -> None:
        if self._agent.ended:
            self._start()
        begun = time.monotonic()
        deadline = begun + READY_S
        while not self._agent.said("READY=1"):
            assert not self._agent.ended, f"it ended at its start: {self._agent.log()[-2000:]}"
            assert time.monotonic() < deadline, f"not ready after {READY_S} s: {self._agent.log()[-2000:]}"
            threading.Event().wait(HOLD_S)
        self.outcome.ready_s.append(round(time.monotonic() - begun, 3))

    def _conclude(self, verdict: Verdict) -> Verdict:
        """Let the agent finish in peace and judge what it leaves."""
        self._be_ready()
        judge = Judge(self._agent, self._scores())
        deadline = time.monotonic() + END_S
        while judge.differing(self._witness.heard()) and time.monotonic() < deadline:
            self._witness.wait_for(len(self._witness.messages) + 1, 1.0)
        if (code := self._agent.stop()) != 0:
            self._complain("the last stop", code)
        farewell = "stopped"
        deadline = time.monotonic() + FAREWELL_S
        while (heard := self._witness.heard()).status != farewell and time.monotonic() < deadline:
            self._witness.wait_for(len(self._witness.messages) + 1, 0.1)
        found = judge.judge(heard, self._deaths, self._folder / "look")
        found.odd += verdict.odd
        if self._what.stray is not None and not any(b["reason"] == "not_an_image" for b in heard.of_kind("alert")):
            found.lost.append("the alert for a file that is no image never came")
        if heard.status != farewell:
            found.lost.append("the farewell never came")
        self.outcome.patches = judge.patches
        self.outcome.finals = len(heard.of_kind(".final"))
        self.outcome.alerts = len(heard.of_kind("alert"))
        self.outcome.messages = len(heard.bodies)
        return found

    def _scores(self) -> Mapping[str, Any]:
        """What an undisturbed run makes of the same files."""
        out = self._folder / "scores.json"
        engine = ("--backend", "openvino", "--threads", "1")
        done = command("agent", "score", self._agent.folder, "--profile", self._ground.profile, *engine, "--out", out)
        assert done.returncode == 0, done.stderr
        scores: dict[str, Any] = json.loads(out.read_text())
        return scores


def run_scenario(seed: int, kills: int, ground: Path, folder: Path) -> Outcome:
    """One scenario, for a process of a pool."""
    return Scenario(seed, kills, Ground(ground), folder).run()
