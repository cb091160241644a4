"""The life of one acquisition (a slide arriving as files), as a table that can be printed.

Completion is decided by the format first (all segments of all parts seen), by silence second. Pure: time comes in
as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from models.contract import Part, SlideKey


class State(Enum):
    """Where an acquisition stands."""

    SEEN = "seen"
    RECEIVING = "receiving"
    COMPLETE = "complete"
    STALLED = "stalled"
    ABANDONED = "abandoned"


class Happening(Enum):
    """What can befall an acquisition."""

    BYTES = "bytes"
    """New bytes of one of its files, or a new file."""
    ALL_PARTS = "all parts"
    """Every segment of every expected part has been seen."""
    SILENCE = "silence"
    """Nothing new for longer than the limit."""
    REMOVED = "removed"
    """All its files are gone before it was complete."""


TABLE: dict[tuple[State, Happening], State] = {
    (State.SEEN, Happening.BYTES): State.RECEIVING,
    (State.SEEN, Happening.SILENCE): State.STALLED,
    (State.SEEN, Happening.REMOVED): State.ABANDONED,
    (State.RECEIVING, Happening.BYTES): State.RECEIVING,
    (State.RECEIVING, Happening.ALL_PARTS): State.COMPLETE,
    (State.RECEIVING, Happening.SILENCE): State.STALLED,
    (State.RECEIVING, Happening.REMOVED): State.ABANDONED,
    (State.COMPLETE, Happening.BYTES): State.RECEIVING,
    (State.STALLED, Happening.BYTES): State.RECEIVING,
    (State.STALLED, Happening.ALL_PARTS): State.COMPLETE,
    (State.STALLED, Happening.REMOVED): State.ABANDONED,
    (State.ABANDONED, Happening.BYTES): State.RECEIVING,
}
"""(state, happening) → next state. Every other pair is a mistake of ours."""


class IllegalTransition(AssertionError):
    """A happening that cannot befall an acquisition in its state."""


def table_text() -> str:
    """The transition table for documents and error messages, one line a rule."""
    return "\n".join(
        f"{state.value:10} --{what.value:-^11}--> {after.value}" for (state, what), after in TABLE.items()
    )


@dataclass
class Acquisition:
    """One slide arriving. `expected` is None until a part's height tells it (or for ever: silence decides)."""

    slide: SlideKey
    last_byte_at: float
    """Monotonic seconds."""
    state: State = State.SEEN
    parts: set[Part] = field(default_factory=set)
    done: set[Part] = field(default_factory=set)
    expected: int | None = None
    closed: bool = False
    """A final has been asked for and nothing has arrived since."""

    def happen(self, what: Happening) -> None:
        """Move to the next state; raises IllegalTransition for a pair that the table does not know."""
        after = TABLE.get((self.state, what))
        if after is None:
            raise IllegalTransition(f"{what.value} cannot befall an acquisition that is {self.state.value}")
        self.state = after

    def receive(self, now: float) -> None:
        """New bytes arrived."""
        self.last_byte_at = now
        self.closed = False
        self.happen(Happening.BYTES)

    def expect(self, parts: int) -> None:
        """So many parts make it complete; with more than it has, it is not so any more."""
        self.expected = parts
        if self.state is State.COMPLETE and not self.all_done:
            self.closed = False
            self.happen(Happening.BYTES)

    def withdraw(self, part: Part) -> None:
        """A part does not belong to it; those that do are still to say how many there are."""
        self.parts.discard(part)
        self.done.discard(part)
        self.expected = None

    @property
    def all_done(self) -> bool:
        """Every expected part is complete."""
        return self.expected is not None and len(self.done) >= self.expected

    @property
    def may_be_whole(self) -> bool:
        """Nothing tells how many parts there are, and every one that has come is complete: silence decides."""
        return self.expected is None and self.parts == self.done

    def quiet_s(self, now: float) -> float:
        """Seconds since the last byte."""
        return now - self.last_byte_at
