"""The synthetic phantom: deterministic in every place, strips and mosaic agree, gate and textures tell apart."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.srh import phantom
from models.srh.config import GateSpec
from models.srh.gate import judge
from models.srh.lattice import Box, mix, nearest, noise, noise_at, scatter, unit
from models.srh.phantom import CLASSES, PhantomSlide, mosaic, render, strip
from models.srh.stamps import ORIENTATIONS, orientation, stroke

GATE = GateSpec(min_ch3_ch2_ratio=0.8)
LABELS = range(len(CLASSES))


def digest(pixels: NDArray[np.uint16]) -> str:
    """sha256 of the pixels, hex."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def test_same_seed_gives_same_bits_in_another_process() -> None:
    """A slide's pixels are the same to the bit in a fresh interpreter."""
    code = (
        "import hashlib; from models.srh.phantom import PhantomSlide, strip;"
        "print(hashlib.sha256(strip(PhantomSlide(7, 2), 1).tobytes()).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert fresh.stdout.strip() == digest(strip(PhantomSlide(7, 2), 1))


def test_pixels_of_a_seed_do_not_drift() -> None:
    """The published phantom stays the one that the shipped weights were trained on (a change needs new weights)."""
    pixels = np.stack([render(PhantomSlide(1 + label, label), 300, 700, 600, 600) for label in LABELS])
    assert digest(pixels) == "a81331660a6075c44833d299d58c6da2dc26ad90a6e1a073461a2bbf3fc11972"


@pytest.mark.parametrize("label", LABELS)
def test_region_is_a_crop_of_the_whole(label: int) -> None:
    """Any region rendered by itself equals the crop of a larger one, bit for bit, also across a strip's border."""
    slide = PhantomSlide(11 + label, label)
    whole = render(slide, -60, 700, 900, 700)
    for y, x, height, width in ((-60, 700, 900, 700), (0, 850, 300, 300), (137, 701, 1, 699), (599, 1099, 240, 301)):
        part = render(slide, y, x, height, width)
        top, left = y + 60, x - 700
        assert np.array_equal(part, whole[:, top : top + height, left : left + width])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(LABELS), st.integers(-80, 1700), st.integers(-80, 1500), st.data())
def test_region_is_a_crop_for_any_seed(seed: int, label: int, y: int, x: int, data: st.DataObject) -> None:
    """The same for drawn slides and regions."""
    slide = PhantomSlide(seed, label)
    top, left = data.draw(st.integers(0, 150)), data.draw(st.integers(0, 150))
    whole = render(slide, y, x, 180, 180)
    assert np.array_equal(render(slide, y + top, x + left, 30, 30), whole[:, top : top + 30, left : left + 30])


def test_neighbouring_strips_show_the_same_tissue_in_their_overlap() -> None:
    """The last 100 columns of a strip are the next one's first, but for roll-off and noise."""
    slide = PhantomSlide(5, 1)
    left, right = strip(slide, 0)[:, :, 900:].astype(float), strip(slide, 1)[:, :, :100].astype(float)
    truth = render(slide, 0, 850, 2000, 100).astype(float)
    for channel in range(2):
        assert np.corrcoef(left[channel].ravel(), right[channel].ravel())[0, 1] > 0.85
        assert np.corrcoef(left[channel].ravel(), truth[channel].ravel())[0, 1] > 0.85
    assert not np.array_equal(left, right)


def test_strip_is_the_truth_with_roll_off_and_shot_noise() -> None:
    """In a strip the middle keeps its counts, the edges lose 8 to 14 %, and noise grows with the counts."""
    slide = PhantomSlide(6, 3)
    ratio = strip(slide, 0) / np.maximum(render(slide, 0, -50, 2000, 1000), 1)
    for channel in ratio:
        assert abs(np.median(channel[:, 450:550]) - 1) < 0.01
        assert 0.86 < np.median(channel[:, :20]) < 0.92
        assert 0.86 < np.median(channel[:, -20:]) < 0.92
    truth = render(slide, 0, 400, 2000, 100)[0].astype(float)
    error = strip(slide, 0)[0][:, 450:550] - truth
    dark, bright = truth < np.quantile(truth, 0.1), truth > np.quantile(truth, 0.9)
    assert error[dark].std() < error[bright].std()
    assert 2 < error[bright].std() / np.sqrt(truth[bright].mean()) < 6


@pytest.mark.parametrize(("height", "strips"), [(2000, 2), (4000, 4), (6000, 6), (10000, 10)])
def test_number_of_strips_follows_from_the_height(height: int, strips: int) -> None:
    """A slide has height / 1000 scan strips and a mosaic of 900 columns for each."""
    assert PhantomSlide(0, 0, height).strips == strips
    assert PhantomSlide(0, 0, height).width_px == 900 * strips


def test_mosaic_is_the_trimmed_strips() -> None:
    """Patches of the mosaic equal the patches of the strips: 50 px are trimmed on either side, nothing else."""
    slide = PhantomSlide(8, 0)
    whole = mosaic(slide)
    assert whole.shape == (2, 2000, 1800)
    assert whole.dtype == np.uint16
    for index in range(slide.strips):
        one = strip(slide, index)
        assert one.shape == (2, 2000, 1000)
        assert np.array_equal(whole[:, :, 900 * index : 900 * (index + 1)], one[:, :, 50:950])


def test_shift_moves_ch3_only() -> None:
    """CH3 lies beside CH2 by the slide's own shift of at most two pixels; some slides have one, not all the same."""
    shifts = {phantom._look(PhantomSlide(seed, 0)).shift for seed in range(60)}
    assert all(max(abs(dy), abs(dx)) <= 2 for dy, dx in shifts)
    assert len(shifts) > 10
    slide = next(s for s in (PhantomSlide(i, 0) for i in range(60)) if phantom._look(s).shift == (-2, 1))
    ch2, ch3 = phantom._paint(slide, Box(90, 90, 220, 220))
    shifted = render(slide, 100, 100, 200, 200)
    assert np.array_equal(shifted[0], phantom._counts(ch2[10:210, 10:210]))
    assert np.array_equal(shifted[1], phantom._counts(ch3[12:212, 9:209]))


def _tissue_mask(slide: PhantomSlide) -> NDArray[np.bool_]:
    empty, blood = phantom._thresholds(slide)
    box = Box(0, 0, 1000, 1000)
    tissue: NDArray[np.bool_] = (phantom._mask(slide, 900, empty, box) == 0) & (
        phantom._mask(slide, 910, blood, box) == 0
    )
    return tissue


def test_intensities_are_those_of_the_imager() -> None:
    """Over slides of all classes the tissue has CH2 near 10,100 and CH3 near 10,500 counts."""
    means, spreads = [], []
    for seed in range(12):
        slide = PhantomSlide(seed, seed % 4)
        counts = render(slide, 0, 0, 1000, 1000)[:, _tissue_mask(slide)]
        means.append(counts.mean(axis=1))
        spreads.append(counts.std(axis=1))
    ch2, ch3 = np.mean(means, axis=0)
    assert 9600 < ch2 < 10600
    assert 10000 < ch3 < 11000
    assert ch3 > ch2
    assert np.mean(spreads) > 1200


def _coverage(slide: PhantomSlide, salt: int, level: float) -> float:
    return float((phantom._mask(slide, salt, level, Box(0, 0, 2000, 1800)) > 0.5).mean())


def test_empty_and_blood_like_regions_cover_a_tenth_to_a_third() -> None:
    """Of every slide 8 to 37 % are empty or blood-like."""
    for seed in range(10):
        slide = PhantomSlide(seed, seed % 4)
        empty, blood = phantom._thresholds(slide)
        assert 0.08 <= _coverage(slide, 900, empty) + _coverage(slide, 910, blood) <= 0.37


def test_gate_tells_empty_and_blood_from_tissue() -> None:
    """Patches wholly inside an empty, blood-like or tissue region get exactly that verdict."""
    found = {"empty": 0, "blood": 0, "tissue": 0}
    for seed in range(6):
        slide = PhantomSlide(seed, seed % 4)
        whole = mosaic(slide)
        empty_level, blood_level = phantom._thresholds(slide)
        box = Box(0, 0, 2000, 1800)
        empty, blood = phantom._mask(slide, 900, empty_level, box), phantom._mask(slide, 910, blood_level, box)
        for y in range(0, 1701, 50):
            for x in range(0, 1501, 50):
                window = np.s_[y : y + 300 : 10, x : x + 300 : 10]
                verdict = judge(whole[:, y : y + 300, x : x + 300], GATE)
                if empty[window].min() == 1:
                    assert verdict == "empty"
                    found["empty"] += 1
                elif blood[window].min() == 1 and empty[window].max() == 0:
                    assert verdict == "blood"
                    found["blood"] += 1
                elif max(empty[window].max(), blood[window].max()) == 0:
                    assert verdict is None
                    found["tissue"] += 1
    assert all(count > 5 for count in found.values()), found


def _coherence(plane: NDArray[np.uint16]) -> float:
    """How parallel a patch's structures are, 0..1 (structure tensor over the patch)."""
    gy, gx = np.gradient(plane.astype(float))
    a, b, c = (gy * gy).mean(), (gx * gx).mean(), (gy * gx).mean()
    return float(np.hypot(a - b, 2 * c) / (a + b))


def test_textures_differ() -> None:
    """Spindle bundles are the most parallel; metastasis has the largest dark nuclei-and-lumen areas' variation."""
    coherence = {}
    for label, name in enumerate(CLASSES):
        patches = [render(PhantomSlide(100 + i, label), 600, 600, 150, 150)[0] for i in range(16)]
        coherence[name] = float(np.median([_coherence(p) for p in patches]))
    assert max(coherence, key=coherence.__getitem__) == "schwannoma"
    assert min(coherence, key=coherence.__getitem__) in ("ependymoma", "metastasis")


def test_slides_of_one_class_vary() -> None:
    """Two seeds of a class differ in pixels, brightness and scale; two labels of a seed differ too."""
    pictures = {digest(render(PhantomSlide(seed, label), 0, 0, 64, 64)) for seed in range(6) for label in LABELS}
    assert len(pictures) == 24
    looks = [phantom._look(PhantomSlide(seed, 1)) for seed in range(12)]
    assert len({look.style.scale for look in looks}) > 1
    assert len({look.gain for look in looks}) == 12


@pytest.mark.parametrize(("label", "height"), [(4, 2000), (-1, 2000), (0, 3000)])
def test_unknown_label_or_height_is_refused(label: int, height: int) -> None:
    """A label or height that the phantom does not know is a ValueError that names it."""
    with pytest.raises(ValueError, match=str(label) if height == 2000 else "3000"):
        PhantomSlide(0, label, height)


def test_unknown_strip_is_refused() -> None:
    """A strip beyond the slide is a ValueError."""
    with pytest.raises(ValueError, match=r"strip 2 is not in 0\.\.1"):
        strip(PhantomSlide(0, 0), 2)


def test_noise_grid_equals_noise_at_places() -> None:
    """The fast noise of a region equals the slow one at each of its places to rounding."""
    box = Box(-37, 91, 70, 65)
    y, x = np.mgrid[box.y : box.y + box.height, box.x : box.x + box.width].astype(np.float32)
    slow = noise_at(mix(3, 4), y, x, 13.0)
    assert np.allclose(noise(mix(3, 4), box, 13), slow, atol=1e-5)
    assert -1 <= slow.min() < slow.max() < 1


def test_hash_is_even_and_fits_its_range() -> None:
    """Hashed numbers lie in [0, 1) and are uncorrelated between neighbours."""
    rows, columns = np.arange(-200, 200)[:, None], np.arange(-200, 200)[None, :]
    u = unit((1 << 64) - 1, rows, columns)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(u[1:].ravel(), u[:-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(u[:, 1:].ravel(), u[:, :-1].ravel())[0, 1]) < 0.01


def test_nearest_place_equals_a_search_over_all() -> None:
    """The nearest of the jittered places is what a slow search over all of them finds."""
    key, spacing = mix(9, 9), 40
    places = scatter(key, Box(-200, -200, 700, 700), spacing, 0.6)
    queries = scatter(key + 50, Box(0, 0, 300, 300), 17)
    found = nearest(key, queries.y, queries.x, spacing, 0.6)
    for i in range(len(queries.y)):
        distances = (places.y - queries.y[i]) ** 2 + (places.x - queries.x[i]) ** 2
        mine = (found.y[i] - queries.y[i]) ** 2 + (found.x[i] - queries.x[i]) ** 2
        assert mine == distances.min()


def test_orientation_is_the_nearest_of_the_library() -> None:
    """A direction gets the orientation whose angle is nearest, either sign, any length."""
    for degrees in range(0, 360, 5):
        angle = np.deg2rad(degrees)
        y, x = (np.array([3 * f(angle)], np.float32) for f in (np.sin, np.cos))
        expected = degrees % 180 / (180 / ORIENTATIONS)
        distance = abs(orientation(y, x)[0] - expected)
        assert min(distance, ORIENTATIONS - distance) <= 0.5 + 1e-3


def test_stroke_values_sum_exactly() -> None:
    """Stroke values are multiples of 1/64, so that sums do not depend on their order."""
    values = stroke(26, 3, 5, 2) * 64
    assert np.array_equal(values, np.round(values))
    assert values.max() > 32
