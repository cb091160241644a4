"""What the READER room is given, and what it tells the rooms behind it, in order.

Identities in what it tells are pseudonyms already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.acquisition import State
from agent.ledger_records import FileStanding, PartRead
from agent.watch import Changes
from models.contract import ModelInput, SlideKey


class Folder(Protocol):
    """Where changes come from: agent.watch.Watch, or a finished folder."""

    folder: Path

    def poll(self, now: float) -> Changes:
        """Paths touched and removed since the last poll."""
        ...

    def wait_s(self, now: float) -> float:
        """Seconds until a poll may find something."""
        ...

    def modified_ns(self, path: str) -> int | None:
        """When a path was last written, ns since the epoch; None when it is not known (any more)."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a slide stands, told when it changes, and once a minute while bytes arrive."""

    slide: SlideKey
    state: State
    done: int
    """Parts of which every segment has been seen."""
    expected: int | None
    last_byte_s: float
    """Monotonic seconds."""
    live: bool = True
    """Something arrived since the agent started; False for what lay in the folder already."""


@dataclass(frozen=True)
class SlideClosed:
    """Time for a slide's final: it is complete, or silent for too long, or its patient ends."""

    slide: SlideKey
    unformed: dict[str, int] = field(default_factory=dict)
    """Reason → patches whose place is known but whose pixels never came; they count as rejected."""


@dataclass(frozen=True)
class PatientClosed:
    """Time for a patient's final."""

    patient: str


@dataclass(frozen=True)
class SlideReopened:
    """A file of a finished slide changed: the slide is read again, and closed again when that is done."""

    slide: SlideKey


@dataclass(frozen=True)
class Problem:
    """Something a person should look at; becomes one log event and one alert."""

    reason: str
    detail: str
    slide: SlideKey | None = None
    file_id: str | None = None
    content: tuple[int, int] | None = None
    """Size and mtime of the file that it speaks of: what tells it from the same problem of other bytes."""


Told = ModelInput | Progress | PartRead | SlideClosed | SlideReopened | PatientClosed | Problem | FileStanding
