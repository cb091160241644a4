"""Promises of the roster: who is on the table, and when slides and patients end. Time is a number here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.acquisition import State
from agent.arriving import MOST_AT_REST
from agent.intake import PatientClosed, Problem, Progress, SlideClosed, Told
from agent.patience import Patience
from agent.roster import Roster
from agent.source import Reading, Source
from models.contract import Part, PatchKey, SlideKey
from models.posterior import Counting
from models.registry import MODALITIES
from tests.fakes import fake_profile

PATIENCE = Patience(settle_s=1.0, stall_after_s=100.0, slide_quiet_s=20.0, patient_quiet_s=1000.0)
SLIDE = SlideKey("P1", "S1")
OTHER = SlideKey("P2", "S1")


def strip(number: int, slide: SlideKey = SLIDE) -> Part:
    """A scan strip."""
    return Part(slide, "strip", number)


class Table:
    """A roster over a real assembler, and everything that it told."""

    def __init__(
        self,
        patience: Patience = PATIENCE,
        counted: Iterable[PatchKey] = (),
        finished: Iterable[SlideKey] = (),
    ) -> None:
        self.assembler = MODALITIES["srh"].make_assembler(fake_profile())
        self.roster = Roster(self.assembler, patience, dict.fromkeys(counted), finished)
        self.told: list[Told] = []
        self._number = itertools.count()

    def arrive(self, part: Part, now: float, expected: int | None = 2, *, live: bool = True) -> Source:
        """The first bytes of a part's file, which tell its shape."""
        source = Source(Path("file"), f"file{next(self._number)}", None, now)
        self.roster.arrival(part, now).sources.setdefault(0, []).append(source)
        self.told += self.roster.receive(part, now, live=live)
        if expected is not None:
            expected = self.assembler.begin(part, 0, 2000, 1000)
        self.told += self.roster.expect(part, expected)
        return source

    def finish(self, part: Part, now: float) -> None:
        """Every segment of a part has been seen, and every patch of it came out."""
        for key in self.assembler.planned(part):
            self.roster.count(key)
        self.told += self.roster.part_done(part)

    def silence(self, now: float) -> list[Told]:
        """What the time says."""
        found = list(self.roster.silence(now))
        self.told += found
        return found

    def of(self, *kinds: type) -> list[Told]:
        """What was told, of some kinds."""
        return [told for told in self.told if isinstance(told, kinds)]


def test_a_slide_is_complete_with_its_last_expected_part() -> None:
    """Two strips of 2000 rows: progress is told whenever it changes, the closing once, with the last part."""
    table = Table()
    for number in (0, 1):
        table.arrive(strip(number), float(number), live=False)
        table.finish(strip(number), number + 0.5)
    assert table.told == [
        Progress(SLIDE, State.RECEIVING, 0, None, 0.0, live=False),
        Progress(SLIDE, State.RECEIVING, 0, 2, 0.0, live=False),
        Progress(SLIDE, State.RECEIVING, 1, 2, 0.0, live=False),
        Progress(SLIDE, State.COMPLETE, 2, 2, 1.0, live=False),
        SlideClosed(SLIDE),
    ]
    assert not table.silence(1.0 + PATIENCE.stall_after_s), "a complete slide does not stall"


def test_progress_is_told_only_when_it_changes() -> None:
    """More bytes of the same part repeat nothing."""
    table = Table()
    table.arrive(strip(0), 0.0)
    before = len(table.told)
    table.told += table.roster.receive(strip(0), 1.0, live=True)
    assert len(table.told) == before
    assert table.roster.last_byte_s == 1.0


def test_what_lay_in_the_folder_is_not_live() -> None:
    """Whoever reads says what is live; more bytes of what lay there at the start are."""
    table = Table()
    table.arrive(strip(0), 1.0, live=False)
    assert {told.live for told in table.of(Progress) if isinstance(told, Progress)} == {False}
    table.silence(2.0)
    (progress,) = table.roster.receive(strip(0), 3.0, live=True)
    assert isinstance(progress, Progress) and progress.live and progress.state is State.RECEIVING


def test_progress_is_told_again_while_bytes_arrive_and_only_then() -> None:
    """A slide that scans for long is told about once a minute; in silence nothing is."""
    table = Table(Patience(stall_after_s=10_000.0, slide_quiet_s=10_000.0, patient_quiet_s=10_000.0))
    table.arrive(strip(0), 0.0, live=False)
    table.silence(0.0)
    list(table.roster.receive(strip(0), 1.0, live=True))  # live from now on
    again = [now for now in range(2, 200) if list(table.roster.receive(strip(0), float(now), live=True))]
    assert again == [61, 121, 181]
    assert not [now for now in range(200, 2000, 10) if table.silence(float(now))]


def test_silence_ends_a_slide_whose_number_of_parts_is_unknown() -> None:
    """Patches of an unknown number: complete after the quiet time, not a moment before."""
    table = Table()
    part = Part(SLIDE, "patch", 0, (300, 600))
    table.arrive(part, 10.0, expected=None, live=False)
    table.finish(part, 10.0)
    assert not table.silence(29.9)
    assert table.silence(30.0) == [
        Progress(SLIDE, State.COMPLETE, 1, None, 10.0, live=False),
        SlideClosed(SLIDE),
    ]
    assert not table.silence(31.0)


def test_a_slide_that_lacks_something_stalls_once() -> None:
    """After the limit: a word about each file at fault, one about the slide, one closing with what never came."""
    table = Table()
    table.arrive(strip(0), 0.0)
    assert not table.silence(99.9)
    found = table.silence(100.0)
    reasons = [told.reason for told in found if isinstance(told, Problem)]
    assert reasons == ["missing_channel", "stalled"]
    assert found[-1] == SlideClosed(SLIDE, {"missing_channel": 21})
    assert not table.silence(500.0)


def test_a_stalled_slide_that_goes_on_closes_again() -> None:
    """Bytes after a stall make it receive again; its completion is a second closing."""
    table = Table()
    table.arrive(strip(0), 0.0)
    table.arrive(strip(1), 0.0)
    table.finish(strip(0), 0.0)
    table.silence(100.0)
    table.told += table.roster.receive(strip(1), 200.0, live=True)
    table.finish(strip(1), 201.0)
    assert [told.state for told in table.of(Progress) if isinstance(told, Progress)][-3:] == [
        State.STALLED,
        State.RECEIVING,
        State.COMPLETE,
    ]
    assert len(table.of(SlideClosed)) == 2


def test_only_a_slide_without_any_file_is_abandoned() -> None:
    """One of two files gone: nothing. The last one gone: abandoned, and closed."""
    table = Table()
    sources = [table.arrive(strip(number), 0.0) for number in (0, 1)]
    table.told.clear()
    for number, source in enumerate(sources):
        assert not table.told
        source.reading = Reading.GONE
        table.told += table.roster.lost(strip(number))
    assert [type(told) for told in table.told] == [Progress, SlideClosed]
    assert isinstance(table.told[0], Progress) and table.told[0].state is State.ABANDONED
    table.told += table.roster.lost(strip(0))
    assert len(table.told) == 2


@pytest.mark.parametrize("next_ends", [True, False])
def test_the_next_patient_ends_this_one_where_settings_say_so(next_ends: bool) -> None:
    """The first byte of another patient closes the open one, slides before patient; or it does not."""
    table = Table(Patience(1.0, 100.0, 20.0, 1000.0, next_ends_patient=next_ends))
    table.silence(0.0)  # what lay in the folder at the start ends nobody
    table.arrive(strip(0), 0.0)
    table.arrive(strip(1), 0.0)
    table.finish(strip(0), 0.0)
    table.told.clear()
    table.arrive(strip(0, OTHER), 5.0)
    closed = [told for told in table.told if isinstance(told, SlideClosed | PatientClosed)]
    expected = [SlideClosed(SLIDE, {"missing_channel": 21}), PatientClosed("P1")]
    assert closed == (expected if next_ends else [])


def test_a_quiet_patient_ends_once() -> None:
    """A patient ends after the quiet time since the last byte of any slide; new bytes open them again."""
    table = Table()
    for number in (0, 1):
        table.arrive(strip(number), 10.0)
        table.finish(strip(number), 10.0)
    assert not table.silence(1009.9)
    assert table.silence(1010.0) == [PatientClosed("P1")]
    assert not table.silence(5000.0)
    late = Part(SlideKey("P1", "S2"), "strip", 0)
    table.arrive(late, 6000.0)
    assert PatientClosed("P1") in table.silence(7000.0)


def test_closing_on_command_takes_one_or_all() -> None:
    """One patient by name, an unknown one without effect, and everybody who is open."""
    table = Table(Patience(1.0, 100.0, 20.0, 1000.0, next_ends_patient=False))
    table.arrive(strip(0), 0.0)
    table.arrive(strip(0, OTHER), 0.0)
    assert not list(table.roster.close_patients({"nobody"}))
    assert list(table.roster.close_patients({"P2"}))[-1] == PatientClosed("P2")
    assert list(table.roster.close_patients())[-1] == PatientClosed("P1")
    assert not list(table.roster.close_patients())


def test_a_patch_is_new_once_a_restart_included() -> None:
    """count says it the first time only; patches that the ledger knows are old, those with other pixels corrected."""
    known, fresh = PatchKey("P1", "S1", 0, 0, 0), PatchKey("P1", "S1", 0, 300, 0)
    roster = Table(counted=[known]).roster
    roster.arrival(Part(known.of_slide, "strip", 0), 0.0)
    counted = [roster.count(known, 7), roster.count(fresh, 7), roster.count(fresh, 7), roster.count(fresh, 8)]
    assert counted == [Counting.SAME, Counting.NEW, Counting.SAME, Counting.CORRECTED]


def test_patients_from_before_a_restart_end_by_silence() -> None:
    """They are open again, from the first look at the clock on, and their finished slides are not read again."""
    table = Table(counted=[PatchKey("P2", "S1", 0, 0, 0)], finished=[SLIDE])
    assert table.roster.is_finished(strip(0))
    assert not table.roster.is_finished(strip(0, OTHER))
    assert not table.silence(50.0)
    assert not table.silence(1049.9)
    assert table.silence(1050.0) == [PatientClosed("P1"), PatientClosed("P2")]


def test_a_finished_slide_is_free_after_its_patient() -> None:
    """Once the patient has ended, a complete slide holds nothing, and its files need not be read again."""
    table = Table()
    for number in (0, 1):
        table.arrive(strip(number), 0.0)
        table.finish(strip(number), 0.0)
    list(table.roster.close_patients())
    assert table.roster.is_finished(strip(0))
    assert table.roster.is_finished(strip(7)), "also a part that was never seen"
    assert not table.assembler.planned(strip(0))


def test_wait_s_is_when_silence_first_speaks() -> None:
    """Just before now + wait_s silence says nothing, at that time it does, until nothing is left to wait for."""
    table = Table()
    assert table.roster.wait_s(0.0) == math.inf
    table.arrive(strip(0), 3.0)
    part = Part(OTHER, "patch", 0)
    table.arrive(part, 4.0, expected=None)
    table.finish(part, 4.0)
    now, said = 4.0, 0
    while (wait := table.roster.wait_s(now)) < math.inf:
        assert not table.silence(now + wait - 1e-3)
        now += wait
        said += len(table.silence(now))
        assert said < 100
    assert len(table.of(PatientClosed)) == 2


@given(st.lists(st.none() | st.integers(1, 10), min_size=1, max_size=8))
def test_the_largest_expectation_counts_in_any_order(words: list[int | None]) -> None:
    """The number of expected parts is the largest that any part's shape has told, whatever the order."""
    table = Table()
    for number, word in enumerate(words):
        table.arrive(strip(number), 0.0, expected=None)
        table.told += table.roster.expect(strip(number), word)
    told = [progress.expected for progress in table.told if isinstance(progress, Progress)]
    assert told[-1] == max((word for word in words if word is not None), default=None)


def test_slides_that_nobody_can_call_complete_are_not_kept_for_ever() -> None:
    """Stalled slides, and those with an unknown number of parts, may go on where they were, but only the last ones;
    of those before, nothing is held, and a file of theirs counts as one of a finished slide.
    """
    table = Table(Patience(settle_s=1.0, stall_after_s=10.0, slide_quiet_s=10.0, patient_quiet_s=20.0))
    slides = [SlideKey(f"P{number}", "S") for number in range(MOST_AT_REST + 40)]
    for number, slide in enumerate(slides):
        now = 100.0 * number
        table.arrive(strip(0, slide), now, expected=None if number % 2 else 2)
        table.roster.count(PatchKey(*slide, 0, 0, 0))
        table.silence(now + 11)
        table.silence(now + 21)
    table.silence(100.0 * len(slides))
    forgotten, kept = slides[:40], slides[40:]
    assert {told.slide for told in table.of(SlideClosed) if isinstance(told, SlideClosed)} == set(slides)
    assert all(table.roster.is_finished(strip(0, slide)) for slide in forgotten)
    assert not any(table.roster.is_finished(strip(0, slide)) for slide in kept)
    assert table.roster.held(strip(0, slides[0])) is None
    assert len(table.roster._slides) == MOST_AT_REST
    assert table.roster._counted.slides == set(kept)
    table.roster.reopen(slides[0], 1e6)
    assert table.roster.count(PatchKey(*slides[0], 0, 0, 0)) is Counting.NEW, "the engine's room knows it still"
