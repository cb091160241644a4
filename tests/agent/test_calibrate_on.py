"""`build_trt --calibrate-on`: what an int8 engine's ranges are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.calibrate_on import inputs_of
from agent.errors import AgentError, SettingsError
from agent.naming import NamingSettings
from models.profile import LoadedProfile
from tests.agent.engine.steps import Steps
from tests.tiny_profile import PATCHES, SIDE, strips_of, write_slide, write_tiny_profile


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LoadedProfile:
    """A profile whose slides are tiny."""
    return write_tiny_profile(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Five finished slides."""
    for seed in range(5):
        write_slide(tmp_path / "slides", strips_of(seed), "P-1", f"S-{seed}")
    return tmp_path / "slides"


def test_every_patch_of_few_slides(profile: LoadedProfile, slides: Path) -> None:
    """Fewer patches than asked for are all taken, as the reader cuts them."""
    found = inputs_of([slides], profile, NamingSettings(), Steps())
    assert found.shape == (5 * PATCHES, 2, SIDE, SIDE) and found.dtype == np.uint16
    first = strips_of(0)[0][:, :SIDE, 2 : 2 + SIDE]
    assert any((patch == first).all() for patch in found)


def test_some_of_many(profile: LoadedProfile, slides: Path) -> None:
    """More patches than asked for are drawn from, the same ones each time, and progress is told."""
    steps = Steps()
    found = inputs_of([slides], profile, NamingSettings(), steps, most=6)
    assert len({patch.tobytes() for patch in found}) == 6
    np.testing.assert_array_equal(found, inputs_of([slides], profile, NamingSettings(), Steps(), most=6))
    whole = {patch.tobytes() for patch in inputs_of([slides], profile, NamingSettings(), Steps())}
    assert {patch.tobytes() for patch in found} <= whole
    assert steps.words[-1] == ("read patches to calibrate on", 6, 6)


def test_nothing_to_calibrate_on(profile: LoadedProfile, tmp_path: Path) -> None:
    """A folder without slides, or none at all, is one clear line."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(AgentError, match="no patch to calibrate on"):
        inputs_of([tmp_path / "empty"], profile, NamingSettings(), Steps())
    with pytest.raises(SettingsError, match="absent: no such file or folder"):
        inputs_of([tmp_path / "absent"], profile, NamingSettings(), Steps())
