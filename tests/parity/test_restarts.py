"""What was said last is the same however often the agent restarted, and whatever order two patients came in.

Compared: the last final of every slide and patient (posterior, counts, state, strips, decision, domain). Not
compared: how many revisions there were before it, ids and times.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.intake import PatientClosed, SlideClosed, SlideReopened, Told
from agent.ledger import FinalRow
from agent.memory import Memory
from agent.messages import EngineRef
from agent.reporter import Reporter, Speaker
from agent.results import Latency
from agent.topics import Topics
from models.contract import SlideKey
from models.profile import LoadedProfile
from tests.fakes import ToldFolder, fake_profile
from tests.reading import Bench, slide_files

PROFILE = LoadedProfile(
    fake_profile(), "ab" * 32, b"", np.zeros((1, 2, 300, 300), np.uint16), np.zeros((1, 4), np.float32)
)
SPEAKER = Speaker(
    "session", Topics(), PROFILE, EngineRef(name="fake", precision="fp32"), lambda: datetime(2026, 1, 2, tzinfo=UTC)
)
COMPARED = ("probabilities", "interval", "counts", "state", "strips", "predicted", "slides", "decision", "domain")


class Ward(Bench):
    """A bench that says finals and keeps, over a restart, what the ledger keeps."""

    def __init__(self, root: Path) -> None:
        self.finals: dict[tuple[str, str, str], FinalRow] = {}
        self.said: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        """Every final, as it was said."""
        self.marks: set[SlideKey] = set()
        """Slides that were finished and are being read again."""
        super().__init__(ToldFolder(root))

    def restart(self, finished: Iterable[SlideKey] = ()) -> None:
        """Start again, as the pipeline does."""
        memory = Memory(self.ledger, list(self.finals.values()), list(self.files.values()), self.marks)
        super().restart(memory.finished)
        self.reducer.resume(self.finals.values())
        self.reporter = Reporter(self.reducer, SPEAKER, self.finals.values())

    def take(self, tellings: Iterable[Told]) -> None:
        """As the ENGINE room does."""
        for told in tellings:
            super().take([told])
            said = None
            if isinstance(told, SlideReopened):
                self.marks.add(told.slide)
            if isinstance(told, SlideClosed):
                self.marks.discard(told.slide)
                said = self.reporter.slide_final(told.slide, Latency())
            elif isinstance(told, PatientClosed):
                said = self.reporter.patient_final(told.patient, Latency())
            if said is not None:
                message, row = said
                self.finals[row.scope, row.patient, row.slide] = row
                self.history.append(json.loads(message.payload))
                self.said[row.scope, row.patient, row.slide] = self.history[-1]

    def answers(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """The compared part of every last final."""
        return {key: {name: final.get(name) for name in COMPARED} for key, final in self.said.items()}

    def let_time_pass(self, now: float) -> None:
        """Long enough for every file to settle and every patient to end."""
        for moment in (now + 2, now + 4, now + 200, now + 2000):
            self.poll(moment)


def ward_files(cut: bool) -> dict[PurePosixPath, bytes]:
    """Two patients, one of them with two slides; one file may be cut for ever."""
    files: dict[PurePosixPath, bytes] = {}
    for patient, slides in (("ANNA", ("1", "2")), ("BERT", ("3",))):
        for slide in slides:
            for name, content in slide_files("strips-b", slide).items():
                files[PurePosixPath(patient, *name.parts[1:])] = content
    if cut:
        last = sorted(files)[-1]
        files[last] = files[last][:2_500_000]
    return files


@pytest.mark.parametrize("cut", [False, True])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.integers(0, 2**32).map(random.Random))
def test_the_last_word_does_not_depend_on_restarts(
    cut: bool, tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    """Any arrival with any restarts ends with the finals of one undisturbed run; another restart adds nothing."""
    files = ward_files(cut)
    calm = Ward(tmp_path_factory.mktemp("calm"))
    for name, content in files.items():
        (calm.folder.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (calm.folder.folder / name).write_bytes(content)
    calm.restart()
    calm.poll(0.0)
    calm.let_time_pass(0.0)

    ward = Ward(tmp_path_factory.mktemp("ward"))
    rest, now = dict(files), 0.0
    while rest:
        name = chance.choice(sorted(rest))
        piece = chance.choice([1000, 500_001, 1_500_003, 1 << 30])
        path = ward.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(rest[name][:piece])
        rest[name] = rest[name][piece:]
        if not rest[name]:
            del rest[name]
        ward.folder.touched.append(str(name))
        now += chance.choice([0.01, 0.5, 3.0])
        if chance.random() < 0.2:
            ward.restart()
        ward.poll(now)
    ward.let_time_pass(now)
    assert len(calm.answers()) == 5
    assert all(answer["domain"]["judged"] == answer["counts"]["used"] for answer in calm.answers().values())
    assert ward.answers() == calm.answers()

    revisions = {key: row.revision for key, row in ward.finals.items()}
    ward.restart()
    ward.poll(now + 3000)
    ward.let_time_pass(now + 3000)
    assert {key: row.revision for key, row in ward.finals.items()} == revisions
