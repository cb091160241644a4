"""A small acquisition by seed, and the imager that writes it as far as it is let.

The pixels are those of the synthetic phantom (not tissue), cut and mirrored, so that a few rendered strips make many
different slides.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from agent.imager import LAYOUTS, Layout, Pixels, PlannedFile, plan, write_growing
from models.srh.phantom import CLASSES, PhantomSlide, strip

FIRST_SEED = 44_000
"""No profile was trained on phantoms from 40,000 on."""
Group = list[tuple[PurePosixPath, bytes]]
"""Files that grow together."""
STRIP_ROWS = 2000
"""Rows of a scan strip of which a slide has two."""


def render(count: int) -> list[Pixels]:
    """Scan strips of the synthetic phantom, uint16 [2, 2000, 1000]."""
    return [strip(PhantomSlide(FIRST_SEED + n, n % len(CLASSES)), 0) for n in range(count)]


@dataclass(frozen=True)
class Acquisition:
    """What the imager will write: every file whole, in groups and in order."""

    groups: list[Group]
    rename: bool
    """Whether files come under a temporary name first."""
    stray: str | None
    """A file that is no image."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(content) for group in self.groups for _, content in group)


def acquisition(chance: random.Random, strips: Sequence[Pixels]) -> Acquisition:
    """Two patients with two or three slides in all; layouts, heights, order and flaws by chance."""
    slides: list[list[Group]] = []
    for number, patient in enumerate(chance.choice([("P1", "P2"), ("P1", "P1", "P2"), ("P1", "P2", "P2")]), 1):
        slides.append(list(_slide(chance, strips, f"PHANTOM_{patient}", str(number))))
    groups = _interleaved(chance, slides) if chance.random() < 0.3 else [g for groups in slides for g in groups]
    stray = None
    if chance.random() < 0.3:
        stray = "PHANTOM_P1/notes.dcm"
        groups.insert(chance.randrange(len(groups)), [(PurePosixPath(stray), b"Rar!" + bytes(range(1, 256)) * 40)])
    return Acquisition(groups, chance.random() < 0.2, stray)


def _slide(chance: random.Random, strips: Sequence[Pixels], patient: str, slide: str) -> Iterator[Group]:
    layout: Layout = chance.choice(LAYOUTS)
    rows, count = STRIP_ROWS, 2
    if layout in ("tiff-mosaic", "opensrh"):
        rows, count = chance.choice([600, 900, 1300, STRIP_ROWS]), chance.randint(1, 2)
    elif chance.random() < 0.1:
        rows = 1300  # which no scan strip has: refused, with an alert for each file
    planned = list(plan([_varied(chance, strips, rows) for _ in range(count)], layout, patient, slide))
    if rows == STRIP_ROWS and layout not in ("tiff-mosaic", "opensrh") and chance.random() < 0.2:
        planned = [_cut(file) if file.group == count - 1 else file for file in planned]
    for _, files in itertools.groupby(planned, key=lambda file: file.group):
        yield [(file.relative, file.content) for file in files]


def _varied(chance: random.Random, strips: Sequence[Pixels], rows: int) -> Pixels:
    """A part of a rendered strip, perhaps mirrored: uint16 [2, rows, 1000]."""
    whole_2HW = chance.choice(strips)
    top = chance.randint(0, whole_2HW.shape[1] - rows)
    up, left = chance.choice((1, -1)), chance.choice((1, -1))
    return np.ascontiguousarray(whole_2HW[:, top : top + rows][:, ::up, ::left])


def _cut(file: PlannedFile) -> PlannedFile:
    """A scan that was stopped: the imager never writes the rest."""
    return file._replace(content=file.content[: int(0.6 * len(file.content))])


def _interleaved(chance: random.Random, slides: list[list[Group]]) -> list[Group]:
    """Slides by turns; each one's own order stays."""
    rest = [list(groups) for groups in slides]
    mixed: list[Group] = []
    while any(rest):
        mixed.append(chance.choice([groups for groups in rest if groups]).pop(0))
    return mixed


class Imager:
    """Writes an acquisition on a thread of its own, never further than `let`."""

    def __init__(self, folder: Path, what: Acquisition, seconds: float) -> None:
        """`seconds` is how long the whole would take without a pause."""
        self._folder = folder
        self._what = what
        self._speed = 1.0 / seconds
        self._changed = threading.Condition()
        self._share, self._limit, self._at = 0.0, 0.0, time.monotonic()
        self._cancelled = False
        self._trouble: list[BaseException] = []
        self._thread = threading.Thread(target=self._write, name="imager")

    def start(self) -> None:
        """Begin; nothing is written before `let`."""
        self._thread.start()

    def let(self, share: float) -> None:
        """The imager may come as far as this share of all bytes."""
        with self._changed:
            self._share, self._at = self._now(), time.monotonic()
            self._limit = share
            self._changed.notify_all()

    def finish(self) -> None:
        """Let it write everything, and wait until it has."""
        self.let(2.0)
        self._thread.join()
        for error in self._trouble:
            raise error

    def cancel(self) -> None:
        """Stop where it is."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _now(self) -> float:
        """The share of all bytes that is due."""
        return min(self._limit, self._share + self._speed * (time.monotonic() - self._at))

    def _wait(self, share: float) -> bool:
        with self._changed:
            due = self._now() + share
            while not self._cancelled and (behind := due - self._now()) > 1e-9:
                self._changed.wait(behind / self._speed if due <= self._limit else None)
            return self._cancelled

    def _write(self) -> None:
        try:
            for group in self._what.groups:
                share = sum(len(content) for _, content in group) / self._what.size
                done = write_growing(
                    self._folder, group, share, wait=self._wait, clock=self._now, rename=self._what.rename
                )
                if not done:
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the scenario waits for the imager
            self._trouble.append(error)
