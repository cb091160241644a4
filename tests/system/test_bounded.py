"""Promises about what the agent takes: memory, descriptors, threads and bytes stay bounded, and nothing that is put
into the folder keeps the slide on the table waiting. Short forms of `python -m tests.bench soak`, burst, outage and
clutter, on slides so small that their own work hardly counts.
"""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from rich.console import Console

from agent.batching import Batch, Batcher
from agent.dashboard.board import Board
from agent.dashboard.heard import Now
from agent.feeder import Feeder
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.handover import Cancelled, CancelToken, Handover, Wakeup
from agent.identity import Plain
from agent.layouts import Layouts
from agent.naming import NamingSettings, rules_of
from agent.patience import Patience
from agent.reader import Reader
from agent.watch import Watch
from agent.worker import Work
from models.contract import Assembler, Chunk, ModelInput, Part, PatchKey
from models.registry import MODALITIES
from tests.agent.dashboard.sayings import TOPICS, Saying
from tests.agent.engine.small_profile import read_profile
from tests.bench import burst, clutter, outage, soak
from tests.bench.figures import Outcome
from tests.bench.slides import Original
from tests.brokers import Listener, Mosquitto, wait_until
from tests.system.processes import AgentProcess
from tests.tiny_profile import PATCHES, poisoned, strips_of, write_slide, write_tiny_profile

pytestmark = pytest.mark.system
QUIET = Console(quiet=True)
EAGER: dict[str, Any] = {"order": ["eager"], "threads": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile of tiny slides."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_profile(folder)
    return folder


def original(folder: Path) -> Original:
    """A tiny slide."""
    return Original.write(folder, strips_of(1), PATCHES)


def assert_kept(found: Outcome) -> None:
    """Every promise, those about time apart: another process may want the processor."""
    found.show(QUIET)
    broken = [f"{p.text}: {p.measured}" for p in found.promises if not p.kept and "longer" not in p.text]
    assert not broken, broken


def test_days_of_scanning_leave_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    """Forty-five slides at full speed: memory, descriptors, threads and hand-overs stay, all finals are whole."""
    picture = tmp_path / "soak.png"
    found = soak.measure(tiny, QUIET, 45, original, picture, engine=EAGER)
    assert_kept(found)
    assert found.figures["slides"] == 45
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_slide_on_the_table_does_not_wait_for_a_burst(tiny: Path) -> None:
    """Slides that arrive at once are all counted once; those scanned meanwhile are told while many still wait."""
    found = burst.measure(tiny, QUIET, 100, original, live_slides=2, part_s=0.1, engine=EAGER)
    assert_kept(found)
    longest = max(one["final_s"] for one in found.figures["among"])
    assert longest < found.figures["seconds"] / 2, "long before the others are done"


def test_a_day_without_a_broker_is_told_afterwards(tiny: Path) -> None:
    """Everything once, in its order, and the ledger has grown by a stated amount."""
    found = outage.measure(tiny, QUIET, 20, original, engine=EAGER)
    assert_kept(found)
    assert found.figures["unsent"] >= 2 * 20


def test_files_that_are_no_slides_harm_nobody(tiny: Path) -> None:
    """Texts and broken images by the hundred: each is looked at, none is counted, a slide among them is told."""
    found = clutter.measure(tiny, QUIET, 1500, 150, original, part_s=0.2, idle_s=1.0, engine=EAGER)
    assert_kept(found)
    assert found.figures["problems_told"] >= 75


def test_a_patch_that_the_engine_cannot_run_ends_nothing(
    tiny: Path, tmp_path: Path, broker: Mosquitto, agents: list[AgentProcess]
) -> None:
    """The real daemon on a slide with such a patch: one rejected, one alert, and the next slide's answer is whole."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port, profile=str(tiny))
    agents.append(agent.start())
    write_slide(agent.folder, poisoned(strips_of(1)), "POISON", "1")
    write_slide(agent.folder, strips_of(2), "HEALTHY", "1")
    wait_until(lambda: len(listener.bodies("/final")) >= 3, "the finals")
    of = {key: agent.pseudonym(key, "1").slide for key in ("POISON", "HEALTHY")}
    counts = {key: listener.bodies(f"slide/{slide}/final")[0]["counts"] for key, slide in of.items()}
    assert counts == {
        "POISON": {"seen": PATCHES, "used": PATCHES - 1, "rejected": {"engine_failed": 1}},
        "HEALTHY": {"seen": PATCHES, "used": PATCHES, "rejected": {}},
    }
    (alert,) = [body for body in listener.bodies("/alert") if body["reason"] == "engine_failed"]
    assert (alert["slide"], alert["severity"]) == (of["POISON"], "error")
    assert [event["error"] for event in agent.events("batch_failed")] == [
        "engine eager: the network returned values that are not finite"
    ]
    wait_until(lambda: listener.bodies("/health")[-1]["patches"]["rejected"] == {"engine_failed": 1}, "health")
    assert listener.bodies("/health")[-1]["alerts"] == {"engine_failed": 1}
    agent.kill()
    agent.start()
    write_slide(agent.folder, strips_of(3), "LATER", "1")
    later = agent.pseudonym("LATER", "1").slide
    wait_until(lambda: listener.bodies(f"slide/{later}/final"), "a slide after the restart")
    assert len(set(listener.event_ids(f"slide/{of['POISON']}/final"))) == 1, "the same answer makes no revision"
    assert len(set(listener.event_ids("/alert"))) == 1
    listener.close()
    assert agent.stop() == 0


# Backpressure


class Counting:
    """The assembler, with a count of the network inputs that it has cut."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._cut: set[PatchKey] = set()

    def begin(self, part: Part, channel: int, height: int, width: int) -> int | None:
        """As the real one."""
        return self._assembler.begin(part, channel, height, width)

    def add(self, chunk: Chunk) -> list[ModelInput]:
        """As the real one."""
        inputs = self._assembler.add(chunk)
        self._cut |= {item.key for item in inputs}
        return inputs

    @property
    def cut(self) -> int:
        """How many; those of a part that is read a second time count once."""
        return len(self._cut)

    def planned(self, part: Part) -> list[PatchKey]:
        """As the real one."""
        return self._assembler.planned(part)

    def forget(self, part: Part) -> None:
        """As the real one."""
        self._assembler.forget(part)


def test_a_slow_engine_stops_the_reader(tiny: Path, tmp_path: Path) -> None:
    """Forty slides and an engine that takes nothing, then one item at a time: the hand-over never holds more than its
    capacity, the reader never cuts more than one chunk beyond it, and every patch comes once.
    """
    slides, capacity = 40, 4
    folder = tmp_path / "imager"
    for number in range(slides):
        write_slide(folder, strips_of(number), f"P{number:02d}", "1")
    token = CancelToken()
    wakeup = Wakeup(token)
    work: Handover[Work] = Handover("reader-engine", capacity, token)
    assembler = Counting(MODALITIES["srh"].make_assembler(read_profile(tiny).spec))
    reader = Reader(
        Watch(folder, mode="scan", scan_interval_s=0.1),
        Layouts(rules_of(NamingSettings()), Plain(), by_tags=True),
        Plain(),
        assembler,
        open_parser,
        limits=Limits(),
        patience=Patience(settle_s=0.1),
    )
    feeder = Feeder(reader, Batcher(1, 0.0), work, token, wakeup)

    def run() -> None:
        with suppress(Cancelled):
            feeder.run()

    thread = threading.Thread(target=run, name="reader")
    thread.start()
    try:
        wait_until(lambda: len(work) == capacity, "the hand-over is full")
        ahead, taken = [assembler.cut], 0
        patches: list[PatchKey] = []
        while len(patches) < slides * PATCHES:
            item = work.get(timeout_s=20.0)
            assert item is not None, f"{len(patches)} patches came"
            if isinstance(item, Batch):
                patches += [timed.item.key for timed in item.inputs]
                taken += len(item.inputs)
                ahead.append(assembler.cut - taken)
        assert work.high_water == capacity
        assert max(ahead) <= capacity + 2 * PATCHES, "what waits, and what one chunk and one step of the batcher hold"
        assert len(set(patches)) == len(patches) == slides * PATCHES
    finally:
        token.cancel()
        wakeup.set()
        thread.join()


def test_a_reader_that_waits_before_a_full_hand_over_leaves_at_once(tiny: Path, tmp_path: Path) -> None:
    """When the process ends at once, the reader does not wait for an engine that takes nothing."""
    folder = tmp_path / "imager"
    for number in range(4):
        write_slide(folder, strips_of(number), f"P{number}", "1")
    token = CancelToken()
    work: Handover[Work] = Handover("reader-engine", 1, token)
    reader = Reader(
        Watch(folder, mode="scan"),
        Layouts(rules_of(NamingSettings()), Plain(), by_tags=True),
        Plain(),
        MODALITIES["srh"].make_assembler(read_profile(tiny).spec),
        open_parser,
        limits=Limits(),
        patience=Patience(settle_s=0.1),
    )
    left: list[bool] = []

    def run() -> None:
        with pytest.raises(Cancelled):
            Feeder(reader, Batcher(1, 0.0), work, token, Wakeup(token)).run()
        left.append(True)

    thread = threading.Thread(target=run, name="reader")
    thread.start()
    wait_until(lambda: len(work) == 1, "the hand-over is full")
    token.cancel()
    thread.join(10.0)
    assert left


# The screen in theatre


def test_a_year_of_patients_leaves_the_dashboard_as_small() -> None:
    """After 1,500 patients the board holds as many things as after 1,200: what it remembers is bounded everywhere."""
    at = datetime(2026, 1, 1, 8, tzinfo=UTC)
    board, agent = Board(TOPICS.base, "boot", Now(at.timestamp(), 0.0), UTC), Saying(at)
    held = {}
    for number in range(1500):
        at += timedelta(hours=1)
        agent.time = at
        patient, slide = f"patient{number}", f"slide{number}"
        for message in (
            agent.current(patient, slide),
            agent.patches(patient, slide, 0, 2),
            agent.slide_final(patient, slide),
            agent.patient_final(patient),
            agent.alert("truncated", f"alert{number}"),
        ):
            now = Now(at.timestamp(), 3600.0 * number)
            assert board.hear(message.topic, message.payload, retained=False, now=now) is None
        if number in (1199, 1499):
            held[number] = things_in(board)
    assert held[1499] <= 1.01 * held[1199], held


def things_in(root: object) -> int:
    """How many objects can be reached from this one, classes and modules apart."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        waiting += gc.get_referents(one)
    return len(seen)
