"""The promise that everything rests on: streaming equals batch, to the last bit.

Compared: tallies (exact sums, used and rejected patches, marks) and slide states after files arrived in any order,
in any pieces, with copies under other names and with restarts in between, against the same files read at once. Not
compared: when a posterior was told, and latency stamps.
"""

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.acquisition import State
from agent.imager import Layout
from models.domain import MARKS
from tests.fakes import ToldFolder
from tests.reading import LAYOUTS, Bench, at_once, slide_files


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.integers(0, 2**32).map(random.Random))
def test_any_arrival_gives_the_same_bits(
    layout: Layout, tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    """Any order, any pieces, copies and restarts: the posterior is that of the finished files, bit for bit."""
    files = {**slide_files(layout, "1")}
    expected = at_once(tmp_path_factory.mktemp("whole"), files)
    root = tmp_path_factory.mktemp("stream")
    bench = Bench(ToldFolder(root))
    names = sorted(files)
    rest = {name: files[name] for name in names}
    now = 0.0
    copied = False
    while rest:
        name = chance.choice(sorted(rest))
        piece = chance.choice([1, 1000, 70_001, 1_000_003, 1 << 30])
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("ab") as file:
            file.write(rest[name][:piece])
        rest[name] = rest[name][piece:]
        if not rest[name]:
            del rest[name]
        bench.folder.touched.append(str(name))
        now += 0.01
        happening = chance.choice(["poll", "poll", "wait", "restart", "copy"])
        if happening == "wait":
            continue
        if happening == "restart":
            bench.restart()
        if happening == "copy" and not copied and layout == "strips-b":
            copied = True
            twin = PurePosixPath(*name.parts[:-1], name.name.replace("IMG", "IMG0"))
            (root / twin).write_bytes(files[name])
            bench.folder.touched.append(str(twin))
        bench.poll(now)
    for moment in (now + 0.5, now + 2, now + 4):
        bench.poll(moment)
    bench.take(bench.reader.close_patient(None))
    assert bench.outcomes() == expected
    (outcome,) = expected.values()
    assert outcome.posterior.counts.seen == 42
    assert outcome.posterior.counts.rejected
    assert outcome.posterior.judged == outcome.posterior.counts.used
    assert all(0 < outcome.posterior.marks[mark] < outcome.posterior.judged for mark in MARKS)
    # After a restart the copy may be the one that is read: the slide is then complete before its twin has grown up.
    expected_problems = {"duplicate", "changed_late"} if copied else set()
    assert {problem.reason for problem in bench.problems} <= expected_problems


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "opensrh"])
def test_every_layout_gives_the_same_posterior(layout: Layout, tmp_path: Path) -> None:
    """The same pixels as DICOM strips, TIFF strips or a TIFF mosaic give the identical posterior."""
    reference = at_once(tmp_path / "reference", slide_files("opensrh", "2"))
    found = at_once(tmp_path / "found", slide_files(layout, "2"))
    assert [o.posterior for o in found.values()] == [o.posterior for o in reference.values()]
    assert [o.state for o in found.values()] == [State.COMPLETE]
