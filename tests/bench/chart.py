"""Draws figures beside each other: a line for each, ideal levels dashed, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.bench.picture import GRID, INK, PAPER

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 480, 60, 250, 40, 40
COLOURS = ("#6e7781", "#a0a7ae", "#8250df", "#1a7f37", "#0b6bcb", "#cf222e", "#bc6c00")
TICKS = 6
DASH_PX = 6
SPACING_PX = 17
"""Least distance of two names on the right."""


@dataclass(frozen=True)
class Line:
    """One figure at each place of the axis."""

    title: str
    y: Sequence[float]


@dataclass(frozen=True)
class Level:
    """A value that does not depend on the axis."""

    title: str
    y: float


def draw_lines(
    path: Path, title: str, axis: Sequence[str], lines: Sequence[Line], levels: Sequence[Level] = ()
) -> None:
    """Write the picture; places of the axis are evenly spaced, the scale begins at 0."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    largest = max([*(value for line in lines for value in line.y), *(level.y for level in levels), 1e-9])
    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM

    def height(value: float) -> float:
        return low - value / largest * (low - TOP)

    pen.text((LEFT, 14), title, fill=INK, font=font)
    for tick in range(TICKS):
        value = largest * tick / (TICKS - 1)
        pen.line((LEFT, height(value), right, height(value)), fill=GRID)
        pen.text((LEFT - 8, height(value)), f"{value:.0f}", fill=INK, font=font, anchor="rm")
    xs = [LEFT + (right - LEFT) * (index + 0.5) / len(axis) for index in range(len(axis))]
    for x, name in zip(xs, axis, strict=True):
        pen.text((x, low + 8), name, fill=INK, font=font, anchor="ma")
    for level in levels:
        for x in range(LEFT, right, 2 * DASH_PX):
            pen.line((x, height(level.y), x + DASH_PX, height(level.y)), fill=INK)
    names = [(height(level.y), f"{level.title}: {level.y:.0f}", INK) for level in levels]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x, height(value)) for x, value in zip(xs, line.y, strict=True)]
        pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        names.append((points[-1][1], f"{line.title}: {line.y[-1]:.0f}", colour))
    for y, (_, name, colour) in zip(spaced([y for y, *_ in sorted(names)], low), sorted(names), strict=True):
        pen.text((right + 10, y), name, fill=colour, font=font, anchor="lm")
    image.save(path, optimize=True)


def spaced(ascending: Sequence[float], lowest: float) -> list[float]:
    """Heights for names that must not overlap, close to those wanted; none below `lowest`."""
    placed: list[float] = []
    for y in ascending:
        placed.append(max(y, placed[-1] + SPACING_PX) if placed else y)
    limit = lowest
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - SPACING_PX
    return placed
