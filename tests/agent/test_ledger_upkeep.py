"""What may go from the ledger and when, how large it becomes, and what a day without a broker leaves in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.ledger import Ledger, Record
from agent.ledger_alerts import MOST_UNSENT
from agent.ledger_rescue import Rescue
from agent.ledger_retention import MOST_REFUSED
from agent.ledger_upkeep import DAY_S, LOOK_S, Upkeep, keeping_up
from agent.messages import EngineRef
from agent.profile_folder import load_profile_folder
from agent.reporter import Speaker
from agent.settings import LedgerSettings, PatientSettings, Settings
from agent.topics import Message
from models.contract import SlideKey
from tests.agent.ledger_cases import NOW, PROFILE, TOPICS, alert, final, patches, standing
from tests.system.processes import PROFILE as SHIPPED

DAY = 86_400.0


@dataclass
class Clock:
    """Wall and monotonic time that only the test moves."""

    now: float = NOW

    def __call__(self) -> float:
        """Now."""
        return self.now


@dataclass
class Desk:
    """A ledger, its upkeep, and the time."""

    path: Path
    clock: Clock = field(default_factory=Clock)
    keep_days: float = 30.0
    max_mib: int = 0

    def __post_init__(self) -> None:
        """Open it."""
        self.ledger = Ledger.open(self.path, self.clock)
        engine = EngineRef(name="eager", precision="fp32")
        profile = load_profile_folder(SHIPPED)
        self.speaker = Speaker(
            "session", TOPICS, profile, engine, lambda: datetime.fromtimestamp(self.clock.now, UTC)
        )
        self.upkeep = self.anew()

    def time(self) -> datetime:
        """What messages bear."""
        return datetime.fromtimestamp(self.clock.now, UTC)

    def anew(self) -> Upkeep:
        """As after a restart."""
        return Upkeep(self.ledger, self.speaker, keep_days=self.keep_days, max_mib=self.max_mib, clock=self.clock)

    def patient(self, number: int, count: int = 100, *, ended: bool = True) -> str:
        """A patient of one slide, imaged now."""
        name, slide = f"patient{number:09}", f"slide{number:011}"
        said, row = final(name, slide, at=self.clock.now)
        file = standing(f"file{number:012}", patient=name, slide=slide, at=self.clock.now)
        self.ledger.append(Record(PROFILE, patches(name, slide, count), (said,), (row,), (file,)))
        if ended:
            said, row = final(name, "", at=self.clock.now)
            self.ledger.append(Record(PROFILE, (), (said,), (row,)))
        return name

    def count(self, number: int) -> int:
        """Patches that are kept of a patient."""
        slide = SlideKey(f"patient{number:09}", f"slide{number:011}")
        return self.ledger.patches.count(PROFILE, slide)

    def unsent(self, kind: str) -> list[dict[str, Any]]:
        """Messages of a kind that wait."""
        rows = self.ledger.unsent(0, 100_000)
        return [json.loads(row.message.payload) for row in rows if row.message.kind == kind]

    def turns(self, count: int) -> None:
        """The SENDER room comes round every second."""
        for _ in range(count):
            self.clock.now += 1
            self.upkeep.look()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """An empty ledger."""
    desk = Desk(tmp_path / "ledger.sqlite")
    yield desk
    desk.ledger.close()


# Retention


def test_patches_go_while_the_agent_runs(desk: Desk) -> None:
    """keep_days after a patient's final, without a restart; finals stay, and nobody else's patches go."""
    desk.upkeep.begin(None)
    desk.patient(1)
    desk.clock.now += 20 * DAY
    desk.patient(2)
    desk.clock.now += 10 * DAY + 1
    with capture_logs() as logs:
        desk.upkeep.look()
    assert (desk.count(1), desk.count(2)) == (0, 100)
    assert len(desk.ledger.finals(PROFILE)) == 4
    assert [(line["event"], line["patients"], line["patches"]) for line in logs] == [("ledger_pruned", 1, 100)]
    assert {each.file_id for each in desk.ledger.files.all()} == {f"file{2:012}"}


def test_it_happens_once_a_day(desk: Desk) -> None:
    """Between two days nothing is looked for."""
    desk.upkeep.begin(None)
    desk.patient(1)
    desk.keep_days = 0.01
    desk.upkeep = desk.anew()
    desk.upkeep.begin(None)
    desk.clock.now += DAY_S - 1
    desk.upkeep.look()
    assert desk.count(1) == 100
    desk.clock.now += 1
    desk.upkeep.look()
    assert desk.count(1) == 0


def test_a_patient_of_another_profile_goes_as_well(desk: Desk) -> None:
    """Patches that were counted under an earlier profile are not kept for ever."""
    said, row = final("p", "s", at=NOW)
    desk.ledger.append(Record("cd" * 32, patches("p", "s", 10), (said,), (row,)))
    desk.clock.now += 31 * DAY
    desk.upkeep.begin(None)
    assert list(desk.ledger.patches.restore("cd" * 32)) == []


def test_a_slide_that_was_pruned_does_not_come_back_in_part(desk: Desk) -> None:
    """A late patch of it is left out: after a restart the few would be taken for all; the final's sums count."""
    desk.patient(1)
    desk.clock.now += 31 * DAY
    desk.upkeep.begin(None)
    late = patches(f"patient{1:09}", f"slide{1:011}", 3, strip=1)
    desk.ledger.append(Record(PROFILE, late))
    assert desk.count(1) == 0


def test_what_dicom_out_still_needs_stays(desk: Desk) -> None:
    """A slide whose result has not been handed over keeps its patches, however old."""
    desk.ledger.results.origin = "{}"
    desk.patient(1)
    desk.clock.now += 31 * DAY
    desk.upkeep.begin(None)
    assert desk.count(1) == 100
    for due in desk.ledger.results.due(10):
        desk.ledger.results.done(due.seq)
    desk.clock.now += DAY
    desk.upkeep.look()
    assert desk.count(1) == 0


def test_said_alerts_and_refused_files_do_not_pile_up(desk: Desk) -> None:
    """An alert is forgotten after keep_days and may be said again; of refused files the latest are kept."""
    files = tuple(standing(f"f{n}", "refused", at=NOW + n) for n in range(MOST_REFUSED + 5))
    desk.ledger.append(Record(PROFILE, messages=(alert("1" * 32),), files=files))
    desk.clock.now += 31 * DAY
    desk.upkeep.begin(None)
    left = {each.file_id for each in desk.ledger.files.all()}
    assert len(left) == MOST_REFUSED and "f4" not in left and "f5" in left
    desk.ledger.append(Record(PROFILE, messages=(alert("1" * 32),)))
    assert len(desk.unsent("alert")) == 2


# Size


def test_above_the_limit_those_who_ended_first_go(tmp_path: Path) -> None:
    """Whatever keep_days says, oldest first, and the file gets smaller; the patient on the table keeps everything."""
    desk = Desk(tmp_path / "ledger.sqlite", max_mib=6)
    for number in range(60):
        desk.clock.now += 1
        desk.patient(number, 3000)
    desk.patient(60, 3000, ended=False)
    before = desk.ledger.retention.file_bytes()
    assert before > 10 << 20
    desk.turns(60)
    kept = [number for number in range(61) if desk.count(number)]
    assert kept == list(range(kept[0], 61)) and 10 < kept[0] < 50
    assert all(desk.count(number) == 3000 for number in kept)
    assert desk.ledger.retention.file_bytes() < 10 * 2**20
    assert desk.unsent("alert") == []
    desk.ledger.close()
    assert desk.path.stat().st_size < 10 * 2**20


def test_the_file_shrinks_when_much_was_pruned(desk: Desk) -> None:
    """What pruning freed is given back to the disk in small steps."""
    for number in range(40):
        desk.patient(number, 3000)
    large = desk.ledger.retention.file_bytes()
    desk.clock.now += 31 * DAY
    desk.upkeep.begin(None)
    desk.turns(30)
    assert desk.ledger.retention.file_bytes() < large / 2
    desk.ledger.close()
    assert desk.path.stat().st_size < large / 2
    desk.ledger = Ledger.open(desk.path, desk.clock)
    assert len(desk.ledger.finals(PROFILE)) == 80


def test_a_limit_that_cannot_be_kept_is_told_once(tmp_path: Path) -> None:
    """Nobody has ended, so nothing may go: one alert, nothing lost, and no second one after a restart."""
    desk = Desk(tmp_path / "ledger.sqlite", max_mib=1)
    for number in range(20):
        desk.patient(number, 2000, ended=False)
    desk.turns(3 * int(LOOK_S))
    desk.upkeep = desk.anew()
    desk.upkeep.begin(None)
    (said,) = desk.unsent("alert")
    assert said["reason"] == "ledger_large" and "raise the limit" in said["detail"]
    assert all(desk.count(number) == 2000 for number in range(20))
    desk.ledger.close()


def test_a_lower_limit_holds_from_the_next_start_on(tmp_path: Path) -> None:
    """Before the patches are read into memory."""
    desk = Desk(tmp_path / "ledger.sqlite")
    for number in range(40):
        desk.clock.now += 1
        desk.patient(number, 2000)
    desk.max_mib = 2
    desk.upkeep = desk.anew()
    desk.upkeep.begin(None)
    assert sum(desk.count(number) for number in range(40)) < 30_000
    desk.ledger.close()


def test_no_limit_is_no_limit(desk: Desk) -> None:
    """0 keeps everything."""
    desk.patient(1, 20_000)
    desk.turns(100)
    assert desk.count(1) == 20_000


# What is told


def test_a_rescue_is_told_once(desk: Desk) -> None:
    """One alert of severity error, whichever start says it; then the marker is gone."""
    marker = desk.path.with_name("ledger.sqlite.damaged")
    for _ in range(3):
        marker.write_text("{}")
        desk.upkeep.begin(Rescue(desk.path, "ledger.sqlite.damaged-1Z", "the ledger was damaged"))
        assert not marker.exists()
    (said,) = desk.unsent("alert")
    assert (said["reason"], said["severity"], said["detail"]) == ("ledger_rebuilt", "error", "the ledger was damaged")


def test_the_daemon_keeps_up_by_its_settings(desk: Desk, tmp_path: Path) -> None:
    """`patient.keep_days` and `ledger.max_mib` decide."""
    desk.patient(1)
    desk.clock.now += 3 * DAY
    settings = Settings(
        folder=tmp_path / "imager",
        state_dir=tmp_path / "state",
        profile=SHIPPED,
        patient=PatientSettings(keep_days=2),
        ledger=LedgerSettings(max_mib=5),
    )
    look: Callable[[], None] = keeping_up(settings, desk.ledger, desk.speaker, None)
    look()
    assert desk.count(1) == 0


# No broker


def test_alerts_beyond_the_limit_are_told_as_a_sum(desk: Desk) -> None:
    """The first thousand wait one by one; of the rest the number and the reasons, once there is room."""
    numbers = range(MOST_UNSENT + 300)
    alerts = [alert(f"{number:032x}", "malformed" if number % 3 else "duplicate") for number in numbers]
    for start in numbers[::50]:
        desk.ledger.append(Record(PROFILE, messages=tuple(alerts[start : start + 50])))
    desk.turns(2 * int(LOOK_S))
    assert len(desk.unsent("alert")) == MOST_UNSENT
    (first, *_) = desk.ledger.unsent(0, 1)
    desk.ledger.forget([first.seq])
    desk.turns(2 * int(LOOK_S))
    waiting = desk.unsent("alert")
    assert len(waiting) == MOST_UNSENT
    assert (waiting[-1]["reason"], waiting[-1]["severity"]) == ("more_alerts", "warning")
    assert waiting[-1]["detail"] == "300 more alerts while the broker was away: 100 duplicate, 200 malformed"
    desk.ledger.append(Record(PROFILE, messages=(alert(f"{MOST_UNSENT + 1:032x}"),)))
    assert len(desk.unsent("alert")) == MOST_UNSENT, "a withheld alert counts as said"


def test_a_day_without_a_broker_stays_small(desk: Desk) -> None:
    """A slide a minute (1440) with 420 patches, 20 running answers each, and 20 problems an hour: figures."""
    minutes, answers = 1440, 20
    desk.upkeep.begin(None)
    for minute in range(minutes):
        desk.clock.now += 60
        name = f"patient{minute // 4:09}"
        said, row = final(name, f"slide{minute:011}", at=desk.clock.now)
        running = [_running(name, minute, said.payload, number) for number in range(answers)]
        problems = [alert(f"{minute:032x}")] if minute % 3 == 0 else []
        counted = patches(name, f"slide{minute:011}", 420)
        desk.ledger.append(Record(PROFILE, counted, (*running, said, *problems), (row,)))
        desk.upkeep.look()
    rows, size = desk.ledger.outbox_length(), desk.ledger.retention.file_bytes() / 2**20
    print(f"\na day without a broker: {rows} rows wait, the ledger has {size:.1f} MiB")
    assert len(desk.unsent("slide.final")) == minutes
    assert rows <= minutes + minutes + minutes // 4 + minutes // 3 + 1
    assert size < 80


def _running(patient: str, slide: int, payload: bytes, number: int) -> Message:
    kind, of = ("slide", str(slide)) if number % 2 else ("patient", patient)
    topic = f"{TOPICS.base}/{kind}/{of}/posterior"
    return Message(topic, payload, f"{slide}-{number}", f"{kind}.posterior", 1, True, True, True, 30 * 86_400)
