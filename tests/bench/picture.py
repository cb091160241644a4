"""Draws how figures went over a run: a panel each, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM = 900, 150, 70, 26, 22
INK, LINE, GRID, PAPER = "#1b1f24", "#0b6bcb", "#d8dee4", "#ffffff"


@dataclass(frozen=True)
class Panel:
    """One figure over the run; its scale begins at 0, so that flat looks flat."""

    title: str
    x: Sequence[float]
    y: Sequence[float]


def draw(path: Path, panels: Sequence[Panel], below: str) -> None:
    """Write the picture; `below` names the axis that all share."""
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), PAPER)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    for number, panel in enumerate(panels):
        _panel(pen, font, panel, HEIGHT * number, below if number == len(panels) - 1 else "")
    image.save(path, optimize=True)


def _panel(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, panel: Panel, top: int, below: str
) -> None:
    left, right = MARGIN_LEFT, WIDTH - 16
    high, low = top + MARGIN_TOP, top + HEIGHT - MARGIN_BOTTOM
    largest = max(*panel.y, 1e-9)
    last = max(*panel.x, 1e-9)
    for share in (0.0, 0.5, 1.0):
        y = low - share * (low - high)
        pen.line((left, y, right, y), fill=GRID)
        pen.text((left - 8, y), f"{share * largest:.3g}", fill=INK, font=font, anchor="rm")
    pen.text((left, top + 6), panel.title, fill=INK, font=font)
    points = [
        (left + x / last * (right - left), low - y / largest * (low - high))
        for x, y in zip(panel.x, panel.y, strict=True)
    ]
    pen.line(points, fill=LINE, width=2)
    if below:
        pen.text((left, low + 4), "0", fill=INK, font=font)
        pen.text((right, low + 4), f"{last:.4g} {below}", fill=INK, font=font, anchor="ra")
