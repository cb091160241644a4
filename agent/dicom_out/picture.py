"""The heat map for people: one picture with the answer, a legend and the notices burned in.

For viewers that show neither reports nor parametric maps. Colours are those of Okabe and Ito; each class has a
letter too, so that nothing is said by colour alone. Knows no DICOM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from agent.dicom_out.grid import REJECTED, Grid
from agent.results import SlideFinal

SIZE = (1600, 1000)
MAP_BOX = (60, 150, 780, 870)
RIGHT = 850
MARGIN = 50
BAR = (1130, 330)
"""Left edge and length of the bars."""

Colour = tuple[int, int, int]
BACKGROUND: Colour = (16, 20, 26)
PANEL: Colour = (30, 36, 45)
TEXT: Colour = (236, 239, 243)
QUIET: Colour = (168, 177, 189)
WARNING: Colour = (255, 196, 61)
HATCH: Colour = (104, 113, 126)
CLASSES: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (200, 200, 200),
)
LEAST_LETTER_PX = 16
"""Cells smaller than this bear no letter."""


class Words(Protocol):
    """What the picture says in words."""

    @property
    def title(self) -> str:
        """Slide or patient."""
        ...

    @property
    def what(self) -> str:
        """What was imaged."""
        ...

    @property
    def decision(self) -> str:
        """The decision in words."""
        ...

    @property
    def reason(self) -> str:
        """Its reason."""
        ...

    @property
    def notice(self) -> str:
        """What it is for."""
        ...

    @property
    def is_synthetic(self) -> bool:
        """Whether no tissue was imaged."""
        ...


def picture_of(words: Words, final: SlideFinal, grid: Grid) -> NDArray[np.uint8]:
    """[1000, 1600, 3] RGB."""
    image = Image.new("RGB", SIZE, BACKGROUND)
    sheet = _Sheet(ImageDraw.Draw(image))
    _head(sheet, words, final)
    _map(sheet, grid)
    _map_legend(sheet)
    _bars(sheet, final)
    _facts(sheet, final, grid)
    sheet.box((0, 930, *SIZE), WARNING)
    synthetic = "   SYNTHETIC PHANTOM, NOT TISSUE." if words.is_synthetic else ""
    sheet.text((SIZE[0] // 2, 965), f"{words.notice.upper()}{synthetic}", 34, (0, 0, 0), anchor="mm")
    return np.asarray(image)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class _Sheet:
    draw: ImageDraw.ImageDraw

    def text(
        self, at: tuple[float, float], words: str, size: int = 26, colour: Colour = TEXT, anchor: str = "ls"
    ) -> None:
        self.draw.text(at, words, font=_font(size), fill=colour, anchor=anchor)

    def box(self, corners: tuple[float, float, float, float], colour: Colour, line: Colour | None = None) -> None:
        self.draw.rectangle(corners, fill=colour, outline=line)


def _head(sheet: _Sheet, words: Words, final: SlideFinal) -> None:
    sheet.text((60, 66), words.title, 40)
    said = f"{words.what}   |   {final.time:%Y-%m-%d %H:%M} UTC   |   revision {final.revision}"
    sheet.text((60, 112), said, 24, QUIET)
    tone = WARNING if final.decision in ("insufficient", "out_of_domain") else TEXT
    sheet.text((RIGHT, 66), _fitting(words.decision, 40, SIZE[0] - RIGHT - MARGIN), 40, tone)
    sheet.text((RIGHT, 112), _fitting(words.reason, 24, SIZE[0] - RIGHT - MARGIN), 24, QUIET)


def _fitting(words: str, size: int, width: int) -> str:
    """The words, cut where they would leave the picture."""
    if _font(size).getlength(words) <= width:
        return words
    while words and _font(size).getlength(f"{words}...") > width:
        words = words[:-1]
    return f"{words}..."


def _map(sheet: _Sheet, grid: Grid) -> None:
    left, top, right, bottom = MAP_BOX
    sheet.box(MAP_BOX, PANEL)
    rows, columns = grid.predicted.shape
    side = min((right - left) / columns, (bottom - top) / rows)
    left, top = left + (right - left - side * columns) / 2, top + (bottom - top - side * rows) / 2
    for row, column, code in _cells(grid):
        corners = (left + side * column, top + side * row, left + side * (column + 1), top + side * (row + 1))
        gap = 2 if side > 8 else 1
        inner = (corners[0], corners[1], max(corners[0], corners[2] - gap), max(corners[1], corners[3] - gap))
        if code >= 0:
            _class_cell(sheet, inner, code, float(grid.confidence[row, column]))
        elif code == REJECTED:
            _hatched(sheet, inner)


def _cells(grid: Grid) -> Iterator[tuple[int, int, int]]:
    for (row, column), code in np.ndenumerate(grid.predicted):
        yield row, column, int(code)


def _class_cell(sheet: _Sheet, corners: tuple[float, float, float, float], code: int, confidence: float) -> None:
    full = np.array(CLASSES[code % len(CLASSES)])
    colour = tuple(int(v) for v in np.rint(np.array(PANEL) + (full - PANEL) * (0.25 + 0.75 * confidence)))
    sheet.box(corners, (colour[0], colour[1], colour[2]))
    side = corners[2] - corners[0]
    if side >= LEAST_LETTER_PX:
        middle = ((corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2)
        sheet.text(middle, _letter(code), int(min(30, side * 0.6)), (0, 0, 0), anchor="mm")


def _letter(code: int) -> str:
    return chr(ord("A") + code) if code < 26 else "?"


def _hatched(sheet: _Sheet, corners: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = (round(value) for value in corners)
    sheet.box((x0, y0, x1, y1), PANEL, HATCH)
    for offset in range(6, (x1 - x0) + (y1 - y0), 8):
        start = (x0 + min(offset, x1 - x0), y0 + max(0, offset - (x1 - x0)))
        end = (x0 + max(0, offset - (y1 - y0)), y0 + min(offset, y1 - y0))
        sheet.draw.line((start, end), fill=HATCH)


def _map_legend(sheet: _Sheet) -> None:
    y = 890
    _hatched(sheet, (60, y, 84, y + 24))
    sheet.text((94, y + 20), "rejected patch", 20, QUIET)
    sheet.box((260, y, 284, y + 24), PANEL)
    sheet.text((294, y + 20), "no patch", 20, QUIET)
    for step in range(24):
        _class_cell(sheet, (400 + 5 * step, y, 404 + 5 * step, y + 24), 0, step / 23)
    sheet.text((530, y + 20), "stronger: more probable", 20, QUIET)


def _bars(sheet: _Sheet, final: SlideFinal) -> None:
    sheet.text((RIGHT, 185), "Probability of each class", 28)
    x, width = BAR
    step = min(70, 380 // len(final.classes))
    end = 220 + step * len(final.classes)
    for index, name in enumerate(final.classes):
        y = 220 + step * index
        chip = (RIGHT, y + 4, RIGHT + 32, y + 36)
        sheet.box(chip, CLASSES[index % len(CLASSES)])
        sheet.text((RIGHT + 16, y + 20), _letter(index), 24, (0, 0, 0), anchor="mm")
        sheet.text((RIGHT + 44, y + 20), _fitting(name, 26, x - RIGHT - 60), 26, anchor="lm")
        sheet.box((x, y + 8, x + width, y + 32), PANEL)
        if final.probabilities is None or final.interval is None:
            continue
        p, (low, high) = final.probabilities[index], final.interval[index]
        sheet.box((x, y + 8, x + width * p, y + 32), CLASSES[index % len(CLASSES)])
        sheet.draw.line((x + width * low, y + 20, x + width * high, y + 20), fill=TEXT, width=2)
        for at in (low, high):
            sheet.draw.line((x + width * at, y + 13, x + width * at, y + 27), fill=TEXT, width=2)
        sheet.text((SIZE[0] - MARGIN, y + 20), _percent(p), 26, anchor="rm")
    if final.probabilities is None:
        sheet.text((x + width / 2, 220 + step / 2), "no patch could be used", 24, QUIET, anchor="mm")
    line = x + width * final.operating_point
    for y in range(212, end, 10):
        sheet.draw.line((line, y, line, y + 5), fill=WARNING, width=2)
    sheet.text((line, end + 18), f"{100 * final.operating_point:.0f} %", 20, WARNING, anchor="mm")


def _percent(p: float) -> str:
    """Never 0 % and never 100 %."""
    return "< 1 %" if p < 0.01 else "> 99 %" if p > 0.99 else f"{100 * p:.0f} %"


def _facts(sheet: _Sheet, final: SlideFinal, grid: Grid) -> None:
    counts = final.counts
    rejected = ", ".join(f"{number} {why.replace('_', ' ')}" for why, number in sorted(counts.rejected.items()))
    lines = [
        f"Patches: {counts.seen} seen, {counts.used} used" + (f"; rejected: {rejected}" if rejected else ""),
        f"Whiskers: {100 * final.interval_mass:.0f} % credible intervals. Dashed: operating point.",
        f"Acquisition: {final.state}, {final.strips.done} of {final.strips.expected or '?'} parts",
        f"Profile {final.profile.name} {final.profile.version}, sha256 {final.profile.sha256[:16]}...",
        f"Engine {final.engine.name} {final.engine.precision}; calibration {final.calibration}",
    ]
    if final.low_tissue:
        lines.insert(0, f"LOW TISSUE: fewer than {final.minimum_patches} patches used")
    if grid.hidden:
        lines.append(f"{grid.hidden} overlapping patches are not shown in the map")
    for index, line in enumerate(lines):
        colour = WARNING if line.startswith("LOW") else QUIET
        sheet.text((RIGHT, 690 + 36 * index), _fitting(line, 22, SIZE[0] - RIGHT - MARGIN), 22, colour)
