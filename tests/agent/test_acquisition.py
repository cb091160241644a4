"""Promises of the acquisition's state machine: every (state, happening) pair is either in the table or refused."""

from __future__ import annotations

import itertools

import pytest

from agent.acquisition import TABLE, Acquisition, Happening, IllegalTransition, State, table_text
from models.contract import Part, SlideKey

SLIDE = SlideKey("P", "S")
PAIRS = list(itertools.product(State, Happening))
ALLOWED = {
    "seen": {"bytes": "receiving", "silence": "stalled", "removed": "abandoned"},
    "receiving": {
        "bytes": "receiving",
        "all parts": "complete",
        "silence": "stalled",
        "removed": "abandoned",
    },
    "complete": {"bytes": "receiving"},
    "stalled": {"bytes": "receiving", "all parts": "complete", "removed": "abandoned"},
    "abandoned": {"bytes": "receiving"},
}
"""The life of an acquisition, written down a second time in plain words."""


def part(strip: int) -> Part:
    """One strip of the slide."""
    return Part(SLIDE, "strip", strip)


@pytest.mark.parametrize(("state", "what"), PAIRS)
def test_every_pair_moves_as_the_table_says_or_is_refused(state: State, what: Happening) -> None:
    """All pairs of a state and a happening: the expected next state, or IllegalTransition and no move."""
    acquisition = Acquisition(SLIDE, 0.0, state)
    after = ALLOWED[state.value].get(what.value)
    if after is None:
        with pytest.raises(IllegalTransition, match=f"{what.value} cannot befall .* {state.value}"):
            acquisition.happen(what)
        assert acquisition.state is state
    else:
        acquisition.happen(what)
        assert acquisition.state is State(after)


def test_the_table_is_printed_whole() -> None:
    """The text of the table names every rule on a line of its own, and nothing else."""
    lines = table_text().splitlines()
    assert len(lines) == len(TABLE) == sum(len(row) for row in ALLOWED.values())
    for line, ((state, what), after) in zip(lines, TABLE.items(), strict=True):
        assert line.startswith(state.value)
        assert what.value in line
        assert line.endswith(f"> {after.value}")


def test_bytes_bring_every_state_back_to_receiving() -> None:
    """Whatever became of an acquisition, new bytes make it receive again: no state is a dead end."""
    assert {state for (state, what) in TABLE if what is Happening.BYTES} == set(State)


def test_receiving_notes_the_time_and_reopens() -> None:
    """New bytes set the time of the last byte and undo a closing, so that a new final is asked for."""
    acquisition = Acquisition(SLIDE, 0.0, State.COMPLETE, closed=True)
    acquisition.receive(7.0)
    assert (acquisition.state, acquisition.last_byte_at, acquisition.closed) == (State.RECEIVING, 7.0, False)
    assert acquisition.quiet_s(9.5) == 2.5


def test_all_done_needs_a_known_number_of_parts() -> None:
    """An acquisition is whole when as many parts are done as it expects, and never while that is unknown."""
    acquisition = Acquisition(SLIDE, 0.0, parts={part(0), part(1)}, done={part(0), part(1)})
    assert not acquisition.all_done
    acquisition.expected = 3
    assert not acquisition.all_done
    acquisition.done.add(part(2))
    assert acquisition.all_done
