"""Numbers that depend on a place and a seed only: hashed lattices and value noise in world coordinates.

Only integer arithmetic and IEEE-exact float operations, so that a place gives the same bits in any region, run
and machine. Knows nothing of tissue.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_MASK = (1 << 64) - 1
_GOLDEN, _ROW, _COLUMN = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Box(NamedTuple):
    """A rectangle of world pixels."""

    y: int
    x: int
    height: int
    width: int

    def grown(self, margin: int) -> Box:
        """The rectangle with `margin` more pixels on every side."""
        return Box(self.y - margin, self.x - margin, self.height + 2 * margin, self.width + 2 * margin)


class Points(NamedTuple):
    """Places in world pixels (float32 [N] each) and four hashed numbers in [0, 1) for each (float32 [4, N])."""

    y: Floats
    x: Floats
    u: Floats

    def where(self, keep: NDArray[np.bool_]) -> Points:
        """The places for which `keep` is true."""
        return Points(self.y[keep], self.x[keep], self.u[:, keep])


def mix(seed: int, salt: int) -> int:
    """A 64-bit key for one purpose (`salt`) of one seed (splitmix64's finaliser)."""
    value = (seed * _GOLDEN + salt * _ROW + _COLUMN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def unit(key: int, row: NDArray[np.int64], column: NDArray[np.int64]) -> Floats:
    """Hash lattice places to float32 in [0, 1), multiples of 2^-24; rows and columns broadcast."""
    value = row.astype(np.uint64) * np.uint64(_ROW) ^ column.astype(np.uint64) * np.uint64(_COLUMN)
    value = np.atleast_1d(value) + np.uint64(key & _MASK)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND)
    number: Floats = ((value ^ (value >> np.uint64(31))) >> np.uint64(40)).astype(np.float32)
    return number * np.float32(2.0**-24)


def _cells(start: int, length: int, spacing: int) -> NDArray[np.int64]:
    return np.arange(start // spacing, (start + length - 1) // spacing + 1, dtype=np.int64)


def scatter(key: int, box: Box, spacing: int, jitter: float = 1.0) -> Points:
    """One place per lattice cell of `spacing` pixels that touches the box, moved by up to `jitter` cells.

    Row-major by cell; the same cell gives the same place in every box.
    """
    rows, columns = np.meshgrid(_cells(box.y, box.height, spacing), _cells(box.x, box.width, spacing), indexing="ij")
    row, column = rows.ravel(), columns.ravel()
    y, x = _place(key, row, column, spacing, jitter)
    return Points(y, x, np.stack([unit(key + k, row, column) for k in range(4)]))


def _place(
    key: int, row: NDArray[np.int64], column: NDArray[np.int64], spacing: int, jitter: float
) -> tuple[Floats, Floats]:
    low, reach = np.float32((1 - jitter) / 2), np.float32(jitter)
    y = np.floor((row.astype(np.float32) + low + reach * unit(key + 4, row, column)) * np.float32(spacing))
    x = np.floor((column.astype(np.float32) + low + reach * unit(key + 5, row, column)) * np.float32(spacing))
    return y, x


def nearest(key: int, y: Floats, x: Floats, spacing: int, jitter: float) -> Points:
    """For each place (float32 [N]) the nearest of `scatter`'s places of the same key, spacing and jitter."""
    row0, column0 = (np.floor(v / np.float32(spacing)).astype(np.int64) for v in (y, x))
    best = np.full(len(y), np.inf, np.float32)
    row, column, at_y, at_x = row0.copy(), column0.copy(), y.copy(), x.copy()
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            py, px = _place(key, row0 + i, column0 + j, spacing, jitter)
            distance = (py - y) ** 2 + (px - x) ** 2
            closer = distance < best
            best[closer] = distance[closer]
            row[closer], column[closer] = row0[closer] + i, column0[closer] + j
            at_y[closer], at_x[closer] = py[closer], px[closer]
    return Points(at_y, at_x, np.stack([unit(key + k, row, column) for k in range(4)]))


def _smooth(t: Floats) -> Floats:
    return t * t * (np.float32(3) - np.float32(2) * t)


def noise_at(key: int, y: Floats, x: Floats, spacing: float) -> Floats:
    """Value noise in [-1, 1) at places (float32, any equal shape): smooth over about `spacing` pixels."""
    v, w = y / np.float32(spacing), x / np.float32(spacing)
    row, column = np.floor(v), np.floor(w)
    ty, tx = _smooth(v - row), _smooth(w - column)
    i, j = row.astype(np.int64), column.astype(np.int64)
    upper = unit(key, i, j) * (1 - tx) + unit(key, i, j + 1) * tx
    lower = unit(key, i + 1, j) * (1 - tx) + unit(key, i + 1, j + 1) * tx
    between: Floats = (upper * (1 - ty) + lower * ty).astype(np.float32)
    return between * np.float32(2) - np.float32(1)


def noise(key: int, box: Box, spacing: int) -> Floats:
    """Value noise in [-1, 1] over every pixel of the box, float32 [height, width]."""
    rows, columns = _cells(box.y, box.height + spacing, spacing), _cells(box.x, box.width + spacing, spacing)
    table = unit(key, rows[:, None], columns[None, :]) * np.float32(2) - np.float32(1)
    x = np.arange(box.x, box.x + box.width)
    at = x // spacing - columns[0]
    t = _smooth((x % spacing).astype(np.float32) / np.float32(spacing))
    lines = table[:, at] * (1 - t) + table[:, at + 1] * t
    steps = lines[1:] - lines[:-1]
    rise = _smooth(np.arange(spacing, dtype=np.float32) / np.float32(spacing))[:, None]
    out = np.empty((box.height, box.width), np.float32)
    for k in range(len(steps)):
        top = int(rows[k]) * spacing - box.y
        first, last = max(top, 0), min(top + spacing, box.height)
        if first >= last:
            continue
        block = out[first:last]
        np.multiply(rise[first - top : last - top], steps[k], out=block)
        block += lines[k]
    return out
