"""What the ENGINE room hands to the SENDER room, and what the ledger gives back after a restart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agent.topics import Message
from models.contract import Part, PatchKey, SlideKey
from models.domain import Marks

Outcome = Literal["whole", "changed", "refused", "duplicate"]
RETRACTED = "retracted"
"""Instead of a reason why a patch was rejected: it was counted, and its slide does not have it any more. For the heat
map: the ledger is told of parts."""


class CountedPatch(NamedTuple):
    """One patch as the reducer counted it: exactly one of `values` and `rejected` is given."""

    key: PatchKey
    values: tuple[int, ...] | None
    """[K] fixed-point probabilities, signed 64 bit."""
    rejected: str | None
    """Why it is not used; RETRACTED takes it out of the count."""
    marks: Marks | None = None
    """How a used patch is unlike the profile's reference; None when it was not compared."""
    pixels: int | None = None
    """Digest of the pixels that it was computed from (signed 64 bits); None in ledgers before schema 4."""


@dataclass(frozen=True)
class PartRead:
    """A part is whole: it has these patches and no others, whatever was counted of it when it had another shape."""

    part: Part
    keys: frozenset[PatchKey]


@dataclass(frozen=True)
class FileStanding:
    """What was made of one file of the folder, as it was then; by its pseudonym, since a name may be an identity."""

    file_id: str
    size: int
    mtime_ns: int
    outcome: Outcome
    """`whole`: read to its end, and unchanged since; `changed`: not so any more, and not read again yet; `refused`:
    not read again until it changes; `duplicate`: another file has the same part."""
    patient: str = ""
    slide: str = ""
    """Both empty for a file that belongs nowhere."""
    sha256: str = ""
    """Of a whole file's bytes."""
    reason: str = ""
    detail: str = ""
    """Why it was refused."""
    at: float = 0.0
    """When, seconds since the epoch."""

    @property
    def stamp(self) -> tuple[int, int]:
        """What tells whether the file has changed since."""
        return self.size, self.mtime_ns


@dataclass(frozen=True)
class FinalRow:
    """The latest final of a slide or patient under one profile."""

    scope: Literal["slide", "patient"]
    patient: str
    slide: str
    """Empty for a patient."""
    revision: int
    event_id: str
    fingerprint: str
    """sha256 of what it said: the same data again must not make another revision."""
    state: str = "complete"
    """What it said of the acquisition (agent.acquisition.State)."""
    done: int = 0
    """Parts of which every segment had been seen."""
    expected: int | None = None
    """Parts that the slide has; None where only silence can tell."""
    unformed: str = "{}"
    """JSON, reason → patches that were announced but never came."""
    tally: str = ""
    """JSON {"sums", "used", "rejected", "judged", "marks"}: a slide's exact tally, for when its patches are pruned;
    else empty. Rows from before patches were judged lack the last two."""
    at: float = 0.0
    """When it was said, seconds since the epoch."""

    @property
    def is_finished_slide(self) -> bool:
        """Whether this slide's files need not be read again after a restart."""
        return self.scope == "slide" and self.state == "complete" and self.expected is not None

    @property
    def seen(self) -> int:
        """Patches that a slide's final speaks of, apart from those that never came."""
        tally = json.loads(self.tally)
        return int(tally["used"] + sum(tally["rejected"].values()))

    @property
    def of_slide(self) -> SlideKey:
        """The slide that a slide's final speaks of."""
        return SlideKey(self.patient, self.slide)


@dataclass(frozen=True)
class Record:
    """What one step of the ENGINE room did; written whole or not at all."""

    profile_sha256: str
    patches: tuple[CountedPatch, ...] = ()
    messages: tuple[Message, ...] = ()
    """Those that are not durable are ignored by the ledger."""
    finals: tuple[FinalRow, ...] = ()
    files: tuple[FileStanding, ...] = ()
    reopened: tuple[SlideKey, ...] = ()
    """Finished slides that are read again: until they are closed, a restart must not take them for finished."""
    closed: tuple[SlideKey, ...] = ()
    """Slides that were closed, whether that made another final or not."""
    settled: tuple[PartRead, ...] = ()
    """Parts that were read to their end, after all of `patches`: other patches of theirs go."""


class OutboxRow(NamedTuple):
    """A message not yet acknowledged. `seq` is never used again, so a late PUBACK cannot hit another row."""

    seq: int
    message: Message
