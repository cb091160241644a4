"""models.srh.patches, gate and registration: from strips to network inputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.contract import Chunk, ModelInput, Part, ShapeError, SlideKey
from models.srh.config import GateSpec, SrhInput
from models.srh.gate import judge
from models.srh.patches import PatchAssembler, grid
from models.srh.registration import flat_field, translation

SLIDE = SlideKey("p", "s")
STRIP = Part(SLIDE, "strip", 3)
SMALL = SrhInput(
    size_px=32, strip_width_px=100, trim_px=2, strips_by_height={90: 2, 128: 4}, gate=GateSpec(min_mean_counts=0)
)


def tissue(height: int, width: int, seed: int = 0) -> NDArray[np.uint16]:
    """Random pixels that the gate lets pass, uint16 [2, H, W]."""
    return np.random.default_rng(seed).integers(5000, 20000, (2, height, width)).astype(np.uint16)


@pytest.mark.parametrize(
    ("height", "patches", "strips"), [(2000, 21, 2), (4000, 42, 4), (6000, 60, 6), (10000, 102, 10)]
)
def test_the_published_grid(height: int, patches: int, strips: int) -> None:
    """Strips of the published heights give 21, 42, 60 and 102 patches at x = 50, 350, 650; 42 to 1020 a mosaic."""
    spec = SrhInput()
    ys, xs = grid(height, 1000, "strip", spec)
    assert xs == [50, 350, 650]
    assert ys[0] == 0 and ys[-1] == height - 300 and len(ys) * len(xs) == patches
    assert spec.strips_by_height[height] == strips
    mosaic_ys, mosaic_xs = grid(height, 900 * strips, "mosaic", spec)
    assert len(mosaic_ys) * len(mosaic_xs) == patches * strips


@pytest.mark.parametrize(
    ("kind", "height", "width"),
    [("strip", 2001, 1000), ("strip", 2000, 900), ("mosaic", 299, 900), ("patch", 300, 301)],
)
def test_unknown_shapes_are_refused(kind: str, height: int, width: int) -> None:
    """A shape that the geometry does not know is refused with what it knows."""
    with pytest.raises(ShapeError, match="px"):
        grid(height, width, kind, SrhInput())


def slow_patches(x_2HW: NDArray[np.uint16], spec: SrhInput) -> dict[tuple[int, int], NDArray[np.uint16]]:
    """Every patch of a finished strip, in an obvious loop."""
    ys, xs = grid(x_2HW.shape[1], x_2HW.shape[2], "strip", spec)
    return {(x, y): x_2HW[:, y : y + spec.size_px, x : x + spec.size_px] for y in ys for x in xs}


@st.composite
def pieces(draw: st.DrawFn, height: int, width: int) -> list[tuple[int, int, int, int, int]]:
    """(channel, y, x, h, w) rectangles that cover both channels once, in any order."""
    rectangles = []
    for channel in (0, 1):
        rows = sorted({0, height, *draw(st.lists(st.integers(1, height - 1), max_size=6))})
        columns = sorted({0, width, *draw(st.lists(st.integers(1, width - 1), max_size=2))})
        rectangles += [
            (channel, y, x, y2 - y, x2 - x)
            for y, y2 in itertools.pairwise(rows)
            for x, x2 in itertools.pairwise(columns)
        ]
    return draw(st.permutations(rectangles))


@settings(max_examples=60)
@given(pieces(90, 100))
def test_any_chunking_gives_the_same_patches_once(rectangles: list[tuple[int, int, int, int, int]]) -> None:
    """Whatever the pieces and their order, each patch comes once, with the pixels of the finished strip."""
    x_2HW = tissue(90, 100)
    assembler = PatchAssembler(SMALL)
    for channel in (1, 0):
        assert assembler.begin(STRIP, channel, 90, 100) == 2
    found: list[ModelInput] = []
    for channel, y, x, h, w in rectangles:
        found += assembler.add(Chunk(STRIP, channel, y, x, x_2HW[channel, y : y + h, x : x + w]))
    expected = slow_patches(x_2HW, SMALL)
    assert {(i.key.x, i.key.y) for i in found} == set(expected)
    assert len(found) == len(expected) == len(assembler.planned(STRIP))
    for item in found:
        assert (item.pixels == expected[item.key.x, item.key.y]).all() and item.rejected is None


def test_a_patch_comes_with_its_last_row_of_both_channels() -> None:
    """Row by row, a patch appears exactly when row y + 31 of the slower channel is there, not later."""
    x_2HW = tissue(90, 100)
    assembler = PatchAssembler(SMALL)
    for channel in (0, 1):
        assembler.begin(STRIP, channel, 90, 100)
    assembler.add(Chunk(STRIP, 0, 0, 0, x_2HW[0]))
    for y in range(90):
        came = assembler.add(Chunk(STRIP, 1, y, 0, x_2HW[1, y : y + 1]))
        assert {i.key.y for i in came} == {top for top in (0, 32, 58) if top + 31 == y}
        assert len(came) == (3 if came else 0)


def test_a_second_source_starts_its_channel_anew_and_repeats_no_patch() -> None:
    """When a channel begins again, rows count from nothing, and patches already cut do not come again."""
    x_2HW = tissue(90, 100)
    assembler = PatchAssembler(SMALL)
    for channel in (0, 1):
        assembler.begin(STRIP, channel, 90, 100)
    assembler.add(Chunk(STRIP, 0, 0, 0, x_2HW[0]))
    first = assembler.add(Chunk(STRIP, 1, 0, 0, x_2HW[1, :40]))
    assembler.begin(STRIP, 1, 90, 100)
    assert assembler.add(Chunk(STRIP, 1, 40, 0, x_2HW[1, 40:])) != first
    rest = assembler.add(Chunk(STRIP, 1, 0, 0, x_2HW[1, :40]))
    keys = [i.key for i in [*first, *rest]]
    assert len(set(keys)) == len(keys)


def test_channels_of_different_shape_are_refused() -> None:
    """CH3 must have CH2's shape."""
    assembler = PatchAssembler(SMALL)
    assembler.begin(STRIP, 0, 90, 100)
    with pytest.raises(ShapeError, match="other channel"):
        assembler.begin(STRIP, 1, 128, 100)


def test_a_finished_patch_keeps_its_place() -> None:
    """A patch file is one input, at the origin that its name gave."""
    part = Part(SLIDE, "patch", 0, (2600, 2300))
    assembler = PatchAssembler(SMALL)
    x_2HW = tissue(32, 32)
    for channel in (0, 1):
        assert assembler.begin(part, channel, 32, 32) is None
        came = assembler.add(Chunk(part, channel, 0, 0, x_2HW[channel]))
    assert [(i.key.x, i.key.y) for i in came] == [(2600, 2300)]


def test_registration_moves_ch3_back() -> None:
    """With registration, a shifted CH3 gives (inside the strip) the patches of the unshifted one."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(4000, 20000, (26, 26))
    scene = np.kron(coarse, np.ones((8, 8))).astype(np.uint16)
    dy, dx = 3, -2
    ch2, ch3 = scene[40:168, 40:140], scene[40 - dy : 168 - dy, 40 - dx : 140 - dx]
    assert translation(ch2, ch3, 8) == (dy, dx)
    spec = SMALL.model_copy(update={"registration": "translation", "max_shift_px": 8, "trim_px": 2})
    assembler = PatchAssembler(spec)
    found = []
    for channel, plane in enumerate((ch2, ch3)):
        assembler.begin(STRIP, channel, 128, 100)
        for y in range(0, 128, 16):
            found += assembler.add(Chunk(STRIP, channel, y, 0, plane[y : y + 16]))
    assert len(found) == len(assembler.planned(STRIP))
    for item in found:
        if 0 < item.key.y < 96 and item.key.x > 2:
            assert (item.pixels[0] == item.pixels[1]).all()


def slow_blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Separable Gaussian, kernel 301, sigma 301, mirrored borders, in plain loops over rows and columns."""
    weights = [np.exp(-(d**2) / (2 * 301.0**2)) for d in range(-150, 151)]
    total = sum(weights)

    def line(values: NDArray[np.float64]) -> NDArray[np.float64]:
        period = 2 * (len(values) - 1)
        mirrored = [min(i % period, period - i % period) for i in range(-150, len(values) + 150)]
        padded = values[mirrored]
        return np.array([(padded[i : i + 301] * weights).sum() / total for i in range(len(values))])

    rows = np.array([line(row) for row in plane])
    return np.array([line(column) for column in rows.T]).T


def test_flat_field_against_a_slow_loop() -> None:
    """x / blur × 10000, clipped; a blank channel stays zero and nothing becomes NaN."""
    x_2HW = tissue(40, 40)
    x_2HW[1] = 0
    expected = x_2HW[0] / slow_blur(x_2HW[0].astype(np.float64)) * 10000
    flat = flat_field(x_2HW)
    assert np.abs(flat[0].astype(np.float64) - np.clip(expected, 0, 65535)).max() <= 0.5 + 1e-6
    assert (flat[1] == 0).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x, None),
        (lambda x: np.stack([x[0], np.full_like(x[1], 9000)]), "constant"),
        (lambda x: np.zeros_like(x), "constant"),
        (lambda x: (x // 16).astype(np.uint16), "empty"),
        (lambda x: (9000 + x // 500).astype(np.uint16), "textureless"),
        (lambda x: np.where(x > 9000, 65535, x).astype(np.uint16), "saturated"),
        (lambda x: np.stack([x[0], (x[1] // 2)]), "blood"),
    ],
)
def test_the_gate_gives_its_reason(change: object, reason: str | None) -> None:
    """Each rule of the tissue gate rejects what it is for, and tissue passes."""
    assert callable(change)
    assert judge(change(tissue(300, 300)), GateSpec(min_ch3_ch2_ratio=0.8)) == reason


def test_rejected_patches_come_with_their_reason() -> None:
    """The assembler emits rejected patches too: they are seen, not hidden."""
    assembler = PatchAssembler(SMALL)
    for channel in (0, 1):
        assembler.begin(STRIP, channel, 90, 100)
        came = assembler.add(Chunk(STRIP, channel, 0, 0, np.zeros((90, 100), np.uint16)))
    assert [i.rejected for i in came] == ["constant"] * 9
