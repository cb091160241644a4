"""Patches → the cells of a heat map. Pure: knows no DICOM and no picture.

A cell is one patch wide. Scan strips lie side by side in the order of their numbers, since some imagers' numbers have
gaps; a strip of which no patch was counted has no place. Patches off the grid of the first one (finished patches may
lie anywhere) take the cell in which their middle lies; where two meet, the first in (strip, x, y) is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.errors import AgentError
from agent.spool import Origin, SpooledPatch

EMPTY = -1.0
"""Value of a cell where no patch was counted."""
REJECTED = -2.0
"""Value of a cell whose patch was rejected."""
MOST_CELLS = 1_000_000
"""Larger than any slide; coordinates that lead beyond are not a slide's."""


class NoSlide(AgentError):
    """Patches that contradict each other or the result."""


@dataclass(frozen=True)
class Grid:
    """The heat map of one slide."""

    values: NDArray[np.float32]
    """[K, rows, columns] probability of each class, EMPTY or REJECTED."""
    left_px: int
    """Left edge of the first column on the slide, pixels of the imager."""
    top_px: int
    """Upper edge of the first row."""
    hidden: int
    """Patches that share a cell with an earlier one and are not shown."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[rows, columns] index of the most probable class; -1 for an empty cell, -2 for a rejected one."""
        first: NDArray[np.float32] = self.values[0]
        codes: NDArray[np.int64] = np.where(first >= 0, self.values.argmax(axis=0), first.astype(np.int64))
        return codes

    @property
    def confidence(self) -> NDArray[np.float32]:
        """[rows, columns] largest probability; 0 where there is none."""
        largest: NDArray[np.float32] = np.maximum(self.values.max(axis=0), np.float32(0))
        return largest


def grid_of(patches: tuple[SpooledPatch, ...], origin: Origin, classes: int) -> Grid:
    """The heat map of a slide's patches; one empty cell when there are none.

    Raises NoSlide for coordinates that no slide has, and for a patch of other classes.
    """
    place_of = {strip: place for place, strip in enumerate(sorted({patch.strip for patch in patches}))}
    places = [(place_of[patch.strip] * origin.stride_px + patch.x, patch.y, patch.outcome) for patch in patches]
    left = min((x for x, _, _ in places), default=0)
    top = min((y for _, y, _ in places), default=0)
    middle = origin.size_px // 2
    cells: dict[tuple[int, int], tuple[float, ...] | str] = {}
    for x, y, outcome in places:
        cells.setdefault(((y - top + middle) // origin.size_px, (x - left + middle) // origin.size_px), outcome)
    rows, columns = (1 + max((cell[axis] for cell in cells), default=0) for axis in (0, 1))
    if rows * columns > MOST_CELLS:
        raise NoSlide(f"patches span {rows} × {columns} cells, which no slide does")
    values = np.full((classes, rows, columns), EMPTY, np.float32)
    for (row, column), outcome in cells.items():
        if not isinstance(outcome, str) and len(outcome) != classes:
            raise NoSlide(f"a patch has {len(outcome)} probabilities for {classes} classes")
        values[:, row, column] = REJECTED if isinstance(outcome, str) else outcome
    return Grid(values, left, top, hidden=len(patches) - len(cells))
