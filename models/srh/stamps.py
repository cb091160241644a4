"""Small pictures (strokes, nuclei, rings) and how they are laid onto a layer.

Stroke values are multiples of 1/64 so that float32 sums are exact and do not depend on the order of the stamps.
Knows nothing of tissue classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.srh.lattice import Floats, mix, noise_at

ORIENTATIONS = 24
_HALF_TURN = np.arange(ORIENTATIONS) * (np.pi / ORIENTATIONS)
# Rounded, so that another libm's last bit cannot choose another orientation.
_COS = np.round(np.cos(_HALF_TURN), 6).astype(np.float32)
_SIN = np.round(np.sin(_HALF_TURN), 6).astype(np.float32)


def orientation(dir_y: Floats, dir_x: Floats) -> NDArray[np.int64]:
    """The nearest of the library's orientations for direction vectors [N] (of any length, either sign)."""
    along = np.abs(dir_y[:, None] * _SIN + dir_x[:, None] * _COS)
    turn: NDArray[np.int64] = np.argmax(along, axis=1)
    return turn


def _axes(reach: int, turn: int) -> tuple[Floats, Floats]:
    """Coordinates along and across orientation `turn`, float32 [2 reach + 1, 2 reach + 1]."""
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    return y * _SIN[turn] + x * _COS[turn], x * _SIN[turn] - y * _COS[turn]


def _quantised(values: Floats) -> Floats:
    out: Floats = np.floor(values * np.float32(64) + np.float32(0.5)) / np.float32(64)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=4096)
def stroke(length: int, width: int, turn: int, level: int) -> Floats:
    """A soft fibre of about `length` × `width` pixels; `level` 0..3 is its strength, a quarter each."""
    along, across = _axes(length // 2 + 1, turn)
    taper = np.maximum(0, 1 - (2 * along / np.float32(length)) ** 2)
    profile = np.maximum(0, 1 - (across / np.float32(width)) ** 2)
    return _quantised(taper * profile * profile * np.float32((level + 1) / 4))


@lru_cache(maxsize=4096)
def nucleus(half_length: int, half_width: int, turn: int, variant: int) -> Floats:
    """An elliptic nucleus in 0..1 with a soft rim, uneven chromatin and a nucleolus; four variants."""
    along, across = _axes(max(half_length, half_width) + 3, turn)
    stretch = np.float32((0.85, 1.0, 1.1, 1.2)[variant])
    a, b = np.float32(half_length) * stretch, np.float32(half_width)
    bend = along * along * np.float32(0.004 * (variant - 1))
    distance = np.sqrt((along / a) ** 2 + ((across + bend) / b) ** 2)
    inside = np.clip((1 - distance) * b * np.float32(0.6) + np.float32(0.5), 0, 1)
    grain = noise_at(mix(7, variant), along + 64, across + 64, 3.0)
    spot = (along - a * np.float32(0.3)) ** 2 + across**2 < np.float32(2.5)
    return _quantised(np.clip(inside * (np.float32(0.82) + np.float32(0.18) * grain) - 0.3 * spot, 0, 1))


def _wobbling(reach: int, variant: int, depth: float) -> tuple[Floats, Floats]:
    """Distance from the middle, with an uneven outline, and a random field of the same shape."""
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    r = np.sqrt(y * y + x * x)
    field = noise_at(mix(11, variant), y + 512, x + 512, max(reach, 12) * 0.7)
    return r * (1 + np.float32(depth) * field), noise_at(mix(13, variant), y + 512, x + 512, 9.0)


@lru_cache(maxsize=512)
def disc(radius: int, variant: int) -> Floats:
    """A filled, slightly uneven disc in 0..1."""
    r, _ = _wobbling(radius + radius // 4 + 2, variant, 0.2)
    return _quantised(np.clip((np.float32(radius) - r) * np.float32(0.5) + np.float32(0.5), 0, 1))


@lru_cache(maxsize=512)
def ring(radius: int, width: int, variant: int) -> Floats:
    """An uneven ring of `width` pixels in 0..1: a vessel's wall or a gland's border."""
    r, field = _wobbling(radius + radius // 4 + width + 2, variant, 0.2)
    wall = np.maximum(0, 1 - ((r - np.float32(radius)) / np.float32(width)) ** 2)
    return _quantised(wall * (np.float32(0.8) + np.float32(0.2) * field))


@lru_cache(maxsize=512)
def onion(radius: int, pitch: int, variant: int) -> Floats:
    """Concentric layers, `pitch` pixels apart, fading towards `radius`: a whorl or a psammoma body."""
    r, field = _wobbling(radius + 1, variant, 0.25)
    phase = (r + 2 * field) / np.float32(pitch)
    phase = phase - np.floor(phase)
    crest = 4 * phase * (1 - phase)
    fade = np.clip((np.float32(radius) - r) / np.float32(0.5 * radius), 0, 1)
    return _quantised(crest * crest * fade * (np.float32(0.75) + np.float32(0.25) * field))


def add(layer: Floats, ys: NDArray[np.int64], xs: NDArray[np.int64], stamps: Sequence[Floats]) -> None:
    """Add each stamp, centred at (ys, xs) of the layer; the layer's margin must hold it."""
    for y, x, stamp in zip(ys.tolist(), xs.tolist(), stamps, strict=True):
        reach = len(stamp) // 2
        view = layer[y - reach : y + reach + 1, x - reach : x + reach + 1]
        np.add(view, stamp, out=view)


def cover(layer: Floats, ys: NDArray[np.int64], xs: NDArray[np.int64], stamps: Sequence[Floats]) -> None:
    """Lay each stamp, centred at (ys, xs), over the layer: the larger value stays."""
    for y, x, stamp in zip(ys.tolist(), xs.tolist(), stamps, strict=True):
        reach = len(stamp) // 2
        view = layer[y - reach : y + reach + 1, x - reach : x + reach + 1]
        np.maximum(view, stamp, out=view)
