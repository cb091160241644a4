"""The short form of the long run, and proof that a campaign notices what it is there for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Parser, Region, Window
from tests.fuzz import parsing
from tests.fuzz.campaign import Campaign, Plan
from tests.fuzz.planted import BAD
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]

SHORT = {
    "tiff": (5000, "complete|some pixels|needs more|malformed|limits|wrong_shape|wrong_type|unsupported"),
    "dicom": (4000, "complete|needs more|malformed|limits|wrong_shape|wrong_type|unsupported|not_an_image"),
    "detect": (3000, "complete|needs more|malformed|not_an_image"),
    "layouts": (4000, "placed|ignored|waiting|unknown"),
    "patterns": (800, "refused|unknown|ignored"),
    "settings": (150, "refused|accepted"),
    "commands": (4000, "refused|accepted"),
    "profile": (150, "profile.yaml|golden.safetensors|reference.safetensors|accepted"),
    "engine": (200, "refused|accepted"),
}
"""Target → cases, and the outcomes that must be among theirs: a target that refuses everything tests nothing."""


@pytest.mark.parametrize("target", TARGETS)
def test_no_hostile_case_breaks_a_promise(target: str, tmp_path: Path) -> None:
    """A minute's share of seeded cases: nothing but the documented errors, in time, in bounds, inside the folder."""
    cases, outcomes = SHORT[target]
    tally = Campaign(Plan(target, seed=1, cases=cases), tmp_path).run()
    assert tally.finds == [] and tally.cases == cases
    assert set(outcomes.split("|")) <= {outcome.removeprefix("refused: ") for outcome in tally.outcomes}


def test_the_command_says_what_came_of_it(tmp_path: Path) -> None:
    """`python -m tests.fuzz` tells cases, rate, outcomes, the slowest case and the peak, and a case runs alone."""
    words = [sys.executable, "-m", "tests.fuzz", "--target", "commands", "--out", str(tmp_path)]
    for more in (["--cases", "500", "--seed", "2"], ["--case", "7"]):
        done = subprocess.run([*words, *more], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        if "--cases" in more:
            assert re.search(
                r"commands +500 cases .*/s +slowest .* ms \(case \d+\) +peak \+.* MiB +finds 0", done.stdout
            )
            assert re.search(r"(?m)^ +\d+ +refused$", done.stdout) and "in all 500 cases" in done.stdout


def test_a_case_is_known_by_its_number() -> None:
    """Seed and number alone make a case, so that any process can make it again."""
    for target in TARGETS.values():
        assert [target.case(7, index) for index in range(20)] == [target.case(7, index) for index in range(20)]
        assert len({target.case(7, index) for index in range(20)}) > 10


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RAISES", "KeyError"),
        ("DIES", "exit code -6"),
        ("HANGS", "hang"),
        ("DAWDLES", "AssertionError"),
        ("EATS", "memory"),
        ("CLAIMS", "MemoryError"),
        ("ESCAPES", "AssertionError"),
        ("LISTS", "AssertionError"),
    ],
)
def test_a_campaign_finds_what_is_planted(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader that raises, dies, hangs, dawdles, eats memory or opens what it should not is found every time, the
    failing input is kept, and the other cases still run.
    """
    plan = Plan(f"tests.fuzz.planted:{name}", seed=3, cases=BAD + 3, hang_s=3.0)
    tally = Campaign(plan, tmp_path).run()
    assert [(find.index, find.kind.split(" at ")[0]) for find in tally.finds] == [(BAD, kind)]
    assert tally.cases == BAD + 3
    assert [path.read_bytes() for path in tmp_path.glob("*.case")] == [b"bad"]
    assert "again: python -m tests.fuzz --target" in capsys.readouterr().out


class Scripted:
    """A parser that says what it is told to, whatever it sees."""

    def __init__(self, *events: Event | Exception) -> None:
        self._events = list(events)

    def advance(self, window: Window, *, settled: bool) -> Iterator[Event]:
        """One event for each visit that shows more."""
        while self._events:
            event = self._events.pop(0)
            if isinstance(event, Exception):
                raise event
            yield event


def region(y: int = 0, x: int = 0, height: int = 2, width: int = 2, plane: int = 0) -> Region:
    """Some pixels."""
    return Region(plane, y, x, np.zeros((height, width), np.uint16))


HEADER = Header(2, 2, 1)


@pytest.mark.parametrize(
    "events",
    [
        (region(),),
        (HEADER, HEADER),
        (HEADER, region(y=1)),
        (HEADER, region(x=-1)),
        (HEADER, region(plane=1)),
        (HEADER, region(height=1), region()),
        (HEADER, region(height=0)),
        (HEADER, Complete()),
        (HEADER, region(), Complete(), Complete()),
        (HEADER, region(height=1), Complete()),
        (Header(2, 1 << 20, 1),),
        (Header(2, 2, 3),),
        (Header(2, 2, 1, {"PatientID": "\ud800"}),),
        (HEADER, ValueError("not a FormatError")),
    ],
)
def test_a_parser_that_breaks_its_promise_is_seen(events: tuple[Event | Exception, ...]) -> None:
    """Regions out of place, twice or without a header, an early or second end, and foreign errors all fail."""
    with pytest.raises((AssertionError, ValueError)):
        parsing.check(lambda window, planes: Scripted(*events), bytes(parsing.PLAN_BYTES + 10))


class Forgetful:
    """A parser whose answer depends on the pieces in which it was shown the bytes."""

    def __init__(self) -> None:
        self._visits = 0

    def advance(self, window: Window, *, settled: bool) -> Iterator[Event]:
        """A header at once; refuses on the third visit."""
        self._visits += 1
        if self._visits == 1:
            yield HEADER
        if self._visits == 3:
            raise FormatError("malformed", "three visits")


def test_an_answer_that_depends_on_the_pieces_is_seen() -> None:
    """The same bytes in pieces and at once must come to the same end."""

    def opened(window: Window, planes: int | None) -> Parser:
        return Forgetful()

    in_pieces = bytes([4 << 2, 0]) + bytes(10) + bytes(100)
    with pytest.raises(AssertionError, match="in pieces"):
        parsing.check(opened, in_pieces)


def test_limits_of_the_fuzzed_parsers_are_those_of_the_settings() -> None:
    """Every limit that there is has a small value here, so that a new one is fuzzed as well."""
    default, small = Limits(), parsing.LIMITS
    assert all(getattr(small, name) < getattr(default, name) for name in vars(default))
