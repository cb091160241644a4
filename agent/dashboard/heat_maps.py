"""The heat maps that are held: cells of a few slides, and what a screen has not been sent of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.ledger_records import RETRACTED
from agent.results import SlidePatches

MAX_CELLS = 20_000
"""Cells of one slide; the oldest go first."""
MAX_SLIDES = 4
MAX_REASONS = 32
MAX_PX = 1 << 31
"""A cell farther out is no cell."""
OTHER = "other"
"""Stands for every reason beyond MAX_REASONS."""


class Seen(NamedTuple):
    """A slide, and what its newest result says of it."""

    slide: str
    patches: int
    """Seen, used or not."""
    ended: bool


Cell = tuple[int, int, int, int, int]
"""Serial number, x and y on the slide, code, confidence."""


@dataclass
class HeatMap:
    """One slide's cells, in the order in which they came."""

    slide: str
    patient: str
    size_px: int
    stride_px: int
    classes: tuple[str, ...]
    begun: int
    """Serial number at which it began: a screen that was sent an earlier one must begin anew."""
    reasons: list[str] = field(default_factory=list)
    cells: dict[tuple[int, int, int], Cell] = field(default_factory=dict)
    serial: int = 0
    """Of the newest cell."""
    told: int = 0
    """Patches up to the latest message, by its own account."""

    def fits(self, patches: SlidePatches) -> bool:
        """Whether these patches are on the same grid and of the same classes."""
        grid = (patches.patient, patches.size_px, patches.stride_px, patches.classes)
        return grid == (self.patient, self.size_px, self.stride_px, self.classes)

    def add(self, patches: SlidePatches, serials: Iterator[int]) -> None:
        """Take the cells; one that is known is replaced."""
        gone = {-1 - at for at, reason in enumerate(patches.reasons) if reason == RETRACTED}
        told = patches.before + sum(code not in gone for code in patches.predicted)
        self.told = told if gone else max(self.told, told)
        codes = [0 if reason == RETRACTED else self._code(reason) for reason in patches.reasons]
        rows = zip(patches.strip, patches.x, patches.y, patches.predicted, patches.confidence, strict=True)
        for strip, x, y, predicted, confidence in rows:
            left = strip * self.stride_px + x
            if left >= MAX_PX or y >= MAX_PX:
                continue
            self.serial = next(serials)
            code = predicted if predicted >= 0 else codes[-1 - predicted]
            self.cells.pop((strip, x, y), None)
            if predicted in gone:
                continue
            self.cells[strip, x, y] = (self.serial, left, y, code, confidence)
        while len(self.cells) > MAX_CELLS:
            del self.cells[next(iter(self.cells))]
        if gone:
            self.begun = next(serials)
            self.cells = {place: (next(serials), *cell[1:]) for place, cell in self.cells.items()}
            self.serial = next(serials)

    def after(self, serial: int) -> list[Cell]:
        """The cells that came after that serial number, oldest first."""
        new = []
        for cell in reversed(self.cells.values()):
            if cell[0] <= serial:
                break
            new.append(cell)
        return new[::-1]

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            reason = reason if len(self.reasons) < MAX_REASONS else OTHER
        if reason not in self.reasons:
            self.reasons.append(reason)
        return -1 - self.reasons.index(reason)


class HeatMaps:
    """The slides with cells, at most MAX_SLIDES of them."""

    def __init__(self) -> None:
        self._held: dict[str, HeatMap] = {}
        """The one that was added to last stands last."""
        self._serials = iter(range(1, 1 << 62))

    def hear(self, patches: SlidePatches, keep: str | None) -> None:
        """Add patches; slides of the patient `keep` go last."""
        held = self._held.pop(patches.slide, None)
        if held is None or not held.fits(patches):
            held = HeatMap(
                patches.slide,
                patches.patient,
                patches.size_px,
                patches.stride_px,
                patches.classes,
                next(self._serials),
            )
        held.add(patches, self._serials)
        self._held[patches.slide] = held
        while len(self._held) > MAX_SLIDES:
            self._held.pop(next(self._dispensable(keep)))

    def known(self, slide: str) -> int:
        """Cells held of a slide."""
        held = self._held.get(slide)
        return 0 if held is None else len(held.cells)

    def missing(self, seen: Sequence[Seen]) -> int:
        """Cells that could be held and are not, of slides with so many patches seen (the newest slides last)."""
        return sum(max(0, min(self._due(slide), MAX_CELLS) - self.known(slide.slide)) for slide in seen[-MAX_SLIDES:])

    def _due(self, slide: Seen) -> int:
        """Cells that should be here. A running slide's latest patches may still wait for others to be told with."""
        held = self._held.get(slide.slide)
        return slide.patches if held is None or slide.ended else held.told

    def __iter__(self) -> Iterator[HeatMap]:
        """The heat maps; the one that was added to last comes last."""
        return iter(self._held.values())

    def _dispensable(self, keep: str | None) -> Iterator[str]:
        yield from (slide for slide, held in self._held.items() if held.patient != keep)
        yield from self._held
