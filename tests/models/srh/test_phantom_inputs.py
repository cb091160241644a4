"""models.srh.phantom_inputs: whole synthetic slides as inputs of any profile."""

from __future__ import annotations

import numpy as np
import pytest

from models.srh.config import GateSpec, SrhInput
from models.srh.gate import judge
from models.srh.phantom import PhantomSlide, strip
from models.srh.phantom_inputs import FIRST_SEED, phantom_inputs


def test_a_full_slide_is_cut_as_a_real_one() -> None:
    """At 300 px the patches are those of the imager's grid that the gate lets pass, in its order."""
    spec = SrhInput(gate=GateSpec(min_ch3_ch2_ratio=0.8))
    found = phantom_inputs(spec, 1)
    slide = PhantomSlide(FIRST_SEED + 1, 1)
    expected = []
    for index in range(2):
        pixels = strip(slide, index)
        for y in (0, 300, 600, 900, 1200, 1500, 1700):
            expected += [pixels[:, y : y + 300, x : x + 300] for x in (50, 350, 650)]
    expected = [patch for patch in expected if judge(patch, spec.gate) is None]
    assert 20 < len(expected) < 42
    np.testing.assert_array_equal(found, np.stack(expected))


def test_small_patches_make_a_small_slide() -> None:
    """At 64 px a slide has at most 21 patches a strip, whatever the profile's strips are like, and other numbers
    give other slides."""
    spec = SrhInput(size_px=64, strip_width_px=68, trim_px=2, strips_by_height={128: 2})
    found = phantom_inputs(spec, 0)
    assert found.shape[1:] == (2, 64, 64) and found.dtype == np.uint16
    assert 0 < len(found) <= 42
    np.testing.assert_array_equal(found, phantom_inputs(spec, 0))
    assert not np.array_equal(found[0], phantom_inputs(spec, 4)[0])


def test_a_gate_that_lets_nothing_pass() -> None:
    """A profile for other intensities still gets a slide."""
    found = phantom_inputs(SrhInput(size_px=64, gate=GateSpec(min_mean_counts=60_000)), 0)
    assert len(found) == 42


def test_patches_wider_than_a_strip() -> None:
    """There is no phantom for them, and the error says so."""
    with pytest.raises(ValueError, match="hold no patch of 901 px"):
        phantom_inputs(SrhInput(size_px=901, strip_width_px=2000), 0)
