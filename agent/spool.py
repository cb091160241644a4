"""The spool between the agent and `dicom-out`: one JSON file per final, with the patches behind it.

Decides the file's form, and that a file is there whole or not at all, whoever is killed when. Knows no ledger, no
MQTT and no DICOM. What it holds bears pseudonyms only.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from agent.messages import Probability, UtcTime
from agent.results import PatientFinal, SlideFinal
from models.profile import Frozen

FOLDER = "results"
"""Name of the spool in the agent's state_dir."""
ASIDE = "refused"
"""Folder in the spool for what cannot be used, each file with its reason beside it."""


MOST_WAITING = 500
"""Results that the spool takes: a few hundred megabytes of large slides. More wait in the ledger, which has their
patches anyway, so that a `dicom-out` that never runs cannot fill the ledger's disk."""


class SpooledPatch(NamedTuple):
    """One counted patch of the slide: strips lie side by side in the order of their numbers, which may have gaps."""

    strip: int
    x: int
    y: int
    outcome: tuple[Probability, ...] | str
    """[K] calibrated probabilities, or why it was rejected."""


class SpooledSlide(NamedTuple):
    """A slide of the patient and its latest final."""

    slide: str
    event_id: str


class Origin(Frozen):
    """Who computed the result, as far as the payload does not say it."""

    version: str
    """Of the agent."""
    site: str
    instrument: str
    intended_use: str
    """The profile's own words."""
    size_px: int = Field(gt=0)
    """Side of a patch."""
    stride_px: int = Field(ge=0)
    """From a scan strip's left edge to the next one's."""


class SpooledResult(Frozen):
    """Everything that the DICOM objects of one final are made of; the same final always gives the same file."""

    origin: Origin
    study_at: UtcTime
    """When the patient's first final was said."""
    final: SlideFinal | PatientFinal = Field(discriminator="kind")
    patches: tuple[SpooledPatch, ...] = ()
    """Of a slide: every patch counted so far."""
    slides: tuple[SpooledSlide, ...] = ()
    """Of a patient: those with a final."""


class Spool:
    """The folder. One agent puts files in, one `dicom-out` takes them out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, event_id: str, text: str) -> None:
        """Add a result, or replace the same one; on return it is on the disk. Raises OSError, when it is full too."""
        if sum(1 for _ in self.folder.glob("*.json")) >= MOST_WAITING:
            raise OSError(f"{MOST_WAITING} results wait already: is dicom-out running?")
        write_whole(self.folder / f"{event_id}.json", text.encode())

    def waiting(self) -> list[Path]:
        """The results that wait, oldest first."""
        found = [(path.stat().st_mtime_ns, path) for path in self.folder.glob("*.json")]
        return [path for _, path in sorted(found)]

    def remove(self, path: Path) -> None:
        """The result has been dealt with."""
        path.unlink(missing_ok=True)

    def set_aside(self, path: Path, reason: str) -> Path:
        """Move a result that cannot be used to `refused/`, with its reason in a file beside it. Raises OSError."""
        aside = self.folder / ASIDE / path.name
        write_whole(aside.with_suffix(".reason.txt"), f"{reason}\n".encode())
        path.replace(aside)
        return aside


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and survives a power cut. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that whoever watches the folder does not take it; one name, so that kills leave no pile of them.
    fresh = path.with_name(f".{path.name}.part")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
