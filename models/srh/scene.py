"""One region of one slide while it is painted: style, layers, and where things may lie. Knows no tissue class."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.srh import stamps
from models.srh.lattice import Box, Floats, Points, mix, nearest, noise_at, scatter

Direction = tuple[Floats, Floats]
"""Direction vectors (y, x) of any length, float32 [N] each."""

MARGIN = 190
"""Pixels painted around a region: twice the largest stamp's reach, so that whatever reaches in fits whole."""
_REACH = 64
"""Pixels around a region in which a stroke or nucleus may lie that reaches into it."""
_JITTER = 0.6


@dataclass(frozen=True)
class Style:
    """What varies from slide to slide; drawn once per seed."""

    key: int
    scale: float
    """Size of everything, 1 = typical."""
    density: float
    """Share of the possible nuclei that are there."""
    order: float
    """Share of the tissue that shows its class's architecture; the rest is a sheet that all classes share."""
    turn: tuple[float, float]
    """Main direction (y, x), unit length."""

    def px(self, length: float) -> int:
        """A length in pixels at this slide's scale."""
        return max(1, round(length * self.scale))


@dataclass(frozen=True)
class Layers:
    """What is painted: float32 [height + 2 MARGIN, width + 2 MARGIN] each."""

    box: Box
    fibre: Floats = field(init=False)
    """Cytoplasm and processes, sum of strokes (about 0..4)."""
    collagen: Floats = field(init=False)
    """Protein-rich walls and stroma, sum (about 0..3)."""
    nucleus: Floats = field(init=False)
    """0..1."""
    lumen: Floats = field(init=False)
    """Holes, 0..1."""

    def __post_init__(self) -> None:
        shape = (self.box.height + 2 * MARGIN, self.box.width + 2 * MARGIN)
        for name in ("fibre", "collagen", "nucleus", "lumen"):
            object.__setattr__(self, name, np.zeros(shape, np.float32))


@dataclass(frozen=True)
class Scene:
    """One region of one slide being painted."""

    style: Style
    layers: Layers

    def key(self, salt: int) -> int:
        """The hash key for one purpose."""
        return mix(self.style.key, salt)

    def points(self, salt: int, spacing: int) -> Points:
        """Jittered places over the region and around it."""
        return scatter(self.key(salt), self.layers.box.grown(_REACH), spacing)

    def sheet(self, y: Floats, x: Floats) -> NDArray[np.bool_]:
        """Whether a place lies in the part of the tissue that shows no architecture."""
        level = noise_at(self.key(1), y, x, 420.0) + np.float32(0.5) * noise_at(self.key(2), y, x, 130.0)
        return level > np.float32(2.4 * self.style.order - 1.2)

    def flow(self, salt: int, y: Floats, x: Floats, wander: float, spacing: float) -> Direction:
        """A smooth direction field: the slide's direction plus `wander` times noise."""
        dir_y = np.float32(self.style.turn[0]) + np.float32(wander) * noise_at(self.key(salt), y, x, spacing)
        dir_x = np.float32(self.style.turn[1]) + np.float32(wander) * noise_at(self.key(salt + 1), y, x, spacing)
        return dir_y, dir_x

    def _local(self, points: Points, reach: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Which places may reach into the region, and where these lie on the layers."""
        box = self.layers.box
        y = np.floor(points.y).astype(np.int64) - (box.y - MARGIN)
        x = np.floor(points.x).astype(np.int64) - (box.x - MARGIN)
        rows, columns = self.layers.fibre.shape
        keep = (y >= reach) & (y < rows - reach) & (x >= reach) & (x < columns - reach)
        return keep, y[keep], x[keep]

    def strokes(self, layer: Floats, points: Points, direction: Direction, length: float, width: float) -> None:
        """Add fibres at the places, along the directions, of hashed strength."""
        long, wide = self.style.px(length), max(2, self.style.px(width))
        keep, ys, xs = self._local(points, long // 2 + 2)
        turns = stamps.orientation(direction[0][keep], direction[1][keep]).tolist()
        levels = (points.u[3][keep] * 4).astype(np.int64).tolist()
        stamps.add(layer, ys, xs, [stamps.stroke(long, wide, t, v) for t, v in zip(turns, levels, strict=True)])

    def nuclei(self, points: Points, direction: Direction, half_length: float, half_width: float) -> None:
        """Lay nuclei at the places, along the directions."""
        a, b = self.style.px(half_length), max(2, self.style.px(half_width))
        keep, ys, xs = self._local(points, max(a, b) + 4)
        turns = stamps.orientation(direction[0][keep], direction[1][keep]).tolist()
        variants = (points.u[2][keep] * 4).astype(np.int64).tolist()
        pictures = [stamps.nucleus(a, b, t, v) for t, v in zip(turns, variants, strict=True)]
        stamps.cover(self.layers.nucleus, ys, xs, pictures)

    def centres(self, salt: int, spacing: int, share: float) -> Points:
        """The architecture's structures (whorls, rosettes, glands) whose stamps may reach into the region."""
        found = scatter(self.key(salt), self.layers.box.grown(MARGIN), spacing, _JITTER)
        return found.where((found.u[0] < np.float32(share)) & ~self.sheet(found.y, found.x))

    def around(self, salt: int, spacing: int, share: float, points: Points) -> Around:
        """Each place's position relative to the nearest structure of `centres`."""
        near = nearest(self.key(salt), points.y, points.x, spacing, _JITTER)
        dy, dx = points.y - near.y, points.x - near.x
        present = (near.u[0] < np.float32(share)) & ~self.sheet(near.y, near.x)
        return Around(near, dy, dx, np.sqrt(dy * dy + dx * dx) + np.float32(1e-3), present)

    def stamp(self, layer: Floats, centres: Points, pictures: list[Floats], *, over: bool = False) -> None:
        """Lay one large picture on each centre (added, or the larger value where `over`)."""
        keep, ys, xs = self._local(centres, max((len(p) // 2 for p in pictures), default=0))
        chosen = [p for p, k in zip(pictures, keep.tolist(), strict=True) if k]
        (stamps.cover if over else stamps.add)(layer, ys, xs, chosen)


@dataclass(frozen=True)
class Around:
    """Places relative to their nearest structure: offsets and distance in pixels, float32 [N]."""

    centre: Points
    dy: Floats
    dx: Floats
    r: Floats
    present: NDArray[np.bool_]

    def onto_rings(self, points: Points, inside: NDArray[np.bool_], pitch: int) -> Points:
        """Move the places inside onto circles `pitch` pixels apart."""
        ring = (np.floor(self.r / pitch) + np.float32(0.5)) * np.float32(pitch) / self.r
        y = np.where(inside, np.floor(self.centre.y + self.dy * ring), points.y)
        x = np.where(inside, np.floor(self.centre.x + self.dx * ring), points.x)
        return Points(y, x, points.u)


def choose(mask: NDArray[np.bool_], first: Direction, second: Direction) -> Direction:
    """The first direction where the mask is true, else the second."""
    return np.where(mask, first[0], second[0]), np.where(mask, first[1], second[1])


def only(direction: Direction, keep: NDArray[np.bool_]) -> Direction:
    """The directions of the places kept."""
    return direction[0][keep], direction[1][keep]


def any_direction(points: Points) -> Direction:
    """A hashed direction for each place."""
    return points.u[0] - np.float32(0.5), points.u[1] - np.float32(0.5)
