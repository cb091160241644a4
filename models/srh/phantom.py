"""A synthetic phantom: seed → pixels and truth of slides with textures inspired by the histology of four tumours.

It is not tissue, and accuracy on it says nothing about patients: it exercises the software and nothing else.
Pure and deterministic: a place of a slide has the same bits in every region, run and process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.srh import stamps
from models.srh.lattice import Box, Floats, mix, noise, noise_at, scatter
from models.srh.scene import MARGIN, Layers, Scene, Style
from models.srh.textures import TEXTURES, sheet

CLASSES = ("ependymoma", "meningioma", "metastasis", "schwannoma")
"""Class names in label order."""
STRIPS_BY_HEIGHT = {2000: 2, 4000: 4, 6000: 6, 10000: 10}
STRIP_WIDTH_PX, TRIM_PX, STRIDE_PX = 1000, 50, 900
_MAX_SHIFT_PX = 2
_COARSE_PX = 25


@dataclass(frozen=True)
class PhantomSlide:
    """One synthetic slide. Equal fields give equal pixels."""

    seed: int
    label: int
    """Index into CLASSES: the truth."""
    height_px: int = 2000
    """Height of a scan strip: 2000, 4000, 6000 or 10000."""

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(CLASSES):
            raise ValueError(f"label {self.label} is not in 0..{len(CLASSES) - 1}")
        if self.height_px not in STRIPS_BY_HEIGHT:
            raise ValueError(f"height_px {self.height_px} is not one of {', '.join(map(str, STRIPS_BY_HEIGHT))}")

    @property
    def strips(self) -> int:
        """How many scan strips make the slide."""
        return STRIPS_BY_HEIGHT[self.height_px]

    @property
    def width_px(self) -> int:
        """Width of the mosaic."""
        return self.strips * STRIDE_PX


@dataclass(frozen=True)
class _Look:
    """What a slide's seed decides beside its architecture."""

    style: Style
    gain: float
    """Brightness, 1 = typical."""
    nuclear_contrast: float
    fibre_contrast: float
    grain: float
    empty_fraction: float
    blood_fraction: float
    shift: tuple[int, int]
    """(y, x) by which CH3 lies beside CH2, pixels."""


@lru_cache(maxsize=64)
def _look(slide: PhantomSlide) -> _Look:
    key = mix(mix(slide.seed, 17), slide.label + 1)
    u = np.random.Generator(np.random.PCG64(np.random.SeedSequence([slide.seed, slide.label]))).random(12)

    def between(index: int, low: float, high: float) -> float:
        return round(low + (high - low) * float(u[index]), 4)

    turn = (between(0, -1, 1), between(1, -1, 1))
    length = max((turn[0] ** 2 + turn[1] ** 2) ** 0.5, 1e-3)
    span = 2 * _MAX_SHIFT_PX + 1
    return _Look(
        style=Style(
            key=key,
            scale=(0.85, 0.95, 1.05, 1.15)[int(u[2] * 4)],
            density=between(3, 0.55, 0.85),
            order=between(4, 0.66, 0.9),
            turn=(turn[0] / length, turn[1] / length),
        ),
        gain=between(5, 0.88, 1.12),
        nuclear_contrast=between(6, 0.6, 1.0),
        fibre_contrast=between(7, 0.6, 1.0),
        grain=between(8, 0.6, 1.2),
        empty_fraction=between(9, 0.05, 0.2),
        blood_fraction=between(10, 0.05, 0.14),
        shift=(int(u[11] * span) - _MAX_SHIFT_PX, int(u[11] * span * span) % span - _MAX_SHIFT_PX),
    )


def _field(slide: PhantomSlide, salt: int, y: Floats, x: Floats) -> Floats:
    key = _look(slide).style.key
    return noise_at(mix(key, salt), y, x, 900.0) + np.float32(0.25) * noise_at(mix(key, salt + 1), y, x, 140.0)


@lru_cache(maxsize=64)
def _thresholds(slide: PhantomSlide) -> tuple[float, float]:
    """Levels of the empty and the blood field above which the slide's fractions lie (on a coarse grid)."""
    y, x = np.meshgrid(
        np.arange(0, slide.height_px, _COARSE_PX, dtype=np.float32),
        np.arange(0, slide.width_px, _COARSE_PX, dtype=np.float32),
        indexing="ij",
    )
    look = _look(slide)
    levels = []
    for salt, fraction in ((900, look.empty_fraction), (910, look.blood_fraction)):
        ordered = np.sort(_field(slide, salt, y.ravel(), x.ravel()))
        levels.append(float(ordered[min(int(len(ordered) * (1 - fraction)), len(ordered) - 1)]))
    return levels[0], levels[1]


def _mask(slide: PhantomSlide, salt: int, level: float, box: Box) -> Floats:
    """Where an empty or blood-like region lies, 0..1, with a soft border of some 20 pixels."""
    key = _look(slide).style.key
    field = noise(mix(key, salt), box, 900)
    field += np.float32(0.25) * noise(mix(key, salt + 1), box, 140)
    field -= np.float32(level)
    field *= np.float32(20)
    field += np.float32(0.5)
    return np.clip(field, 0, 1, out=field)


def _erythrocytes(scene: Scene, box: Box) -> Floats:
    """A layer of blood cells, 0..1."""
    layer = np.zeros_like(scene.layers.fibre)
    cells = scatter(scene.key(920), box.grown(12), 15)
    variants = (cells.u[0] * 4).astype(np.int64).tolist()
    scene.stamp(layer, cells, [stamps.disc(6, v) for v in variants], over=True)
    return layer


def _paint(slide: PhantomSlide, box: Box) -> tuple[Floats, Floats]:
    """Noise-free CH2 and CH3 counts over a box, float32 [height, width] each, registered."""
    look = _look(slide)
    scene = Scene(look.style, Layers(box))
    sheet(scene)
    TEXTURES[CLASSES[slide.label]](scene)
    inner = np.s_[MARGIN : MARGIN + box.height, MARGIN : MARGIN + box.width]
    layers = scene.layers
    fibre, collagen = np.minimum(layers.fibre[inner], 4), np.minimum(layers.collagen[inner], 3)
    nucleus, lumen = layers.nucleus[inner], layers.lumen[inner]
    grain = noise(scene.key(930), box, 4) + np.float32(0.6) * noise(scene.key(931), box, 11)
    shade = noise(scene.key(932), box, 300)

    cytoplasm = np.float32(10300) + np.float32(4100 * look.fibre_contrast) * fibre
    cytoplasm += np.float32(900 * look.grain) * grain + np.float32(900) * shade
    ch2 = cytoplasm * (1 - np.float32(0.62 * look.nuclear_contrast) * nucleus) + np.float32(1600) * collagen
    ch3 = np.float32(0.86) * cytoplasm * (1 - np.float32(0.25 * look.nuclear_contrast) * nucleus)
    ch3 += np.float32(1500 * look.nuclear_contrast) * nucleus + np.float32(3800) * collagen + np.float32(1150)
    solid = 1 - np.float32(0.85) * lumen
    ch2 *= solid * np.float32(look.gain)
    ch3 *= solid * np.float32(look.gain)

    empty_level, blood_level = _thresholds(slide)
    blood = _mask(slide, 910, blood_level, box)
    if blood.any():
        cells = _erythrocytes(scene, box)[inner]
        ch2 += blood * (np.float32(9500) + np.float32(5200) * cells + np.float32(500) * grain - ch2)
        ch3 += blood * (np.float32(5600) + np.float32(3100) * cells + np.float32(300) * grain - ch3)
    empty = _mask(slide, 900, empty_level, box)
    if empty.any():
        ch2 += empty * (np.float32(850) + np.float32(90) * grain - ch2)
        ch3 += empty * (np.float32(950) + np.float32(90) * grain - ch3)
    return ch2, ch3


def _counts(values: Floats) -> NDArray[np.uint16]:
    counts: NDArray[np.uint16] = np.clip(values + np.float32(0.5), 0, 65535).astype(np.uint16)
    return counts


def _shifted(slide: PhantomSlide, y: int, x: int, height: int, width: int) -> tuple[Floats, Floats]:
    """Both channels of a region in mosaic coordinates, CH3 beside CH2 by the slide's shift."""
    m = _MAX_SHIFT_PX
    ch2, ch3 = _paint(slide, Box(y - m, x - m, height + 2 * m, width + 2 * m))
    dy, dx = _look(slide).shift
    return ch2[m : m + height, m : m + width], ch3[m - dy : m - dy + height, m - dx : m - dx + width]


def render(slide: PhantomSlide, y: int, x: int, height: int, width: int) -> NDArray[np.uint16]:
    """Any region in mosaic coordinates (negative ones too), without roll-off and noise.

    Returns counts, uint16 [2, height, width] (CH2, CH3); equals the crop of any larger region bit for bit.
    """
    return np.stack([_counts(plane) for plane in _shifted(slide, y, x, height, width)])


def strip(slide: PhantomSlide, index: int) -> NDArray[np.uint16]:
    """Scan strip `index` as the imager would write it: counts, uint16 [2, height_px, 1000] (CH2, CH3).

    Its columns begin at mosaic column 900 · index − 50, so that neighbours overlap by 100 px. With illumination
    roll-off across its width and shot-like noise. Raises ValueError for a strip that the slide has not.
    """
    if not 0 <= index < slide.strips:
        raise ValueError(f"strip {index} is not in 0..{slide.strips - 1}")
    planes = _shifted(slide, 0, STRIDE_PX * index - TRIM_PX, slide.height_px, STRIP_WIDTH_PX)
    across = (np.arange(STRIP_WIDTH_PX, dtype=np.float32) - np.float32(499.5)) / np.float32(500)
    source = np.random.PCG64(np.random.SeedSequence([slide.seed, slide.label, slide.height_px, index, 1]))
    return np.stack(
        [
            _imaged(plane, 1 - np.float32(depth) * across * across, source)
            for plane, depth in zip(planes, (0.12, 0.1), strict=True)
        ]
    )


def _imaged(plane: Floats, illumination: Floats, source: np.random.PCG64) -> NDArray[np.uint16]:
    """Roll-off and noise whose variance grows with the counts. Raw bits keep it equal across numpy versions."""
    values = plane * illumination
    size = values.size
    bits = source.random_raw((2 * size + 3) // 4).view(np.int16)[: 2 * size]
    noise_HW = (bits[:size].astype(np.float32) + bits[size:]).reshape(values.shape)
    noise_HW *= np.sqrt(values) * np.float32(4.0 / (32768 * 0.8165))
    noise_HW += values
    return _counts(noise_HW)


def mosaic(slide: PhantomSlide) -> NDArray[np.uint16]:
    """The scan strips, each trimmed by 50 px on either side, beside each other.

    Returns counts, uint16 [2, height_px, 900 · strips].
    """
    inner = [strip(slide, i)[:, :, TRIM_PX : STRIP_WIDTH_PX - TRIM_PX] for i in range(slide.strips)]
    return np.concatenate(inner, axis=2)
