"""agent.engine.expected: the inputs that engines are compared on, and eager's answers, computed once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.engine.expected import Expected, calibration_inputs, classes_of, made_inputs, phantom_slides, spread
from agent.errors import EngineError
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import textured, write_profile
from tests.agent.engine.steps import Steps


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LoadedProfile:
    """A profile shared by this module."""
    return write_profile(tmp_path_factory.mktemp("profile"))


def levels(profile: LoadedProfile) -> LoadedProfile:
    """The same with flat golden inputs, of which the last is of another class and far brighter."""
    golden = np.stack([np.full((2, 4, 4), level, np.uint16) for level in (100, 200, 60000)])
    return replace(profile, golden_inputs=golden, golden_outputs=np.array([[1, 0], [1, 0], [0, 1]], np.float32))


def test_eager_is_asked_once(profile: LoadedProfile) -> None:
    """Two engines of one build share the answers: nothing is computed again; progress tells how far it is."""
    expected = Expected(profile, patches=16, slides=1, threads=1)
    first = Steps()
    answered = expected.parity(first)
    assert first.names == ["phantom slides: paint", "phantom slides: eager fp32", "parity: eager fp32"]
    assert all(done < of for _, done, of in first.words)
    again = Steps()
    assert expected.parity(again) is answered and expected.slides(again)
    assert again.names == []
    assert len(answered.inputs) == len(answered.prediction["logits"]) == 16


def test_a_quarter_is_phantom(profile: LoadedProfile) -> None:
    """A quarter of the inputs are patches of the slides, with the very answers of the slides."""
    expected = Expected(profile, patches=16, slides=1, threads=1)
    slide = expected.slides(Steps())[0]
    answered = expected.parity(Steps())
    some = spread(len(slide.inputs), 4)
    np.testing.assert_array_equal(answered.inputs[:4], slide.inputs[some])
    np.testing.assert_array_equal(answered.prediction["logits"][:4], slide.prediction["logits"][some])


def test_inputs_are_reproducible_and_half_of_them_blends(profile: LoadedProfile) -> None:
    """A quarter mirrored and dimmed golden inputs, then as many blends as there are other inputs, each between two
    inputs of different classes.
    """
    flat = levels(profile)
    phantoms, labels = np.full((10, 2, 4, 4), 150, np.uint16), np.zeros(10, np.int64)
    inputs = made_inputs(flat, phantoms, labels, 30)
    assert inputs.dtype == np.uint16
    np.testing.assert_array_equal(inputs, made_inputs(flat, phantoms, labels, 30))
    plain, blends = inputs[:10].reshape(10, -1), inputs[10:]
    assert ((blends > 15000) & (blends < 45000)).all()
    assert (plain == plain[:, :1]).all()
    assert all(any(0.69 * level <= value <= level for level in (100, 200, 60000)) for value in plain[:, 0])


def test_inputs_of_one_class(profile: LoadedProfile) -> None:
    """A golden pair of a single class or a single input, and no phantom patch, still give inputs."""
    none = textured(1)[:0]
    for count in (3, 1):
        single = replace(
            profile, golden_inputs=textured(count), golden_outputs=np.eye(4, dtype=np.float32)[[0] * count]
        )
        assert made_inputs(single, none, np.zeros(0, np.int64), 6).shape == (6, *textured(1).shape[1:])


def test_spread() -> None:
    """Indices lie evenly over all that are available, each at most once."""
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(3, 5).tolist() == [0, 1, 2]
    assert spread(3, 0).tolist() == []


def test_classes() -> None:
    """The most probable class, whatever the head emits."""
    values = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32)
    assert classes_of({"logits": values}).tolist() == classes_of({"probabilities": values}).tolist() == [1, 0]


def test_no_phantom_for_a_geometry(profile: LoadedProfile) -> None:
    """A profile whose patches the phantom cannot show is one clear line."""
    wide = {"size_px": 1000, "strip_width_px": 3000, "strips_by_height": {"2000": 2}}
    other = replace(profile, spec=profile.spec.model_copy(update={"input": wide}))
    with pytest.raises(EngineError, match=r"no phantom slide for this profile: .* hold no patch of 1000 px"):
        phantom_slides(other, range(1), Steps())


def test_what_ranges_are_measured_on(profile: LoadedProfile) -> None:
    """A profile for the synthetic phantom brings phantom patches, of slides that no gate looks at; any other one has
    its golden inputs and nothing else.
    """
    assert calibration_inputs(profile, Steps()) is profile.golden_inputs
    spec = profile.spec.model_copy(update={"intended_use": "a synthetic phantom model"})
    steps = Steps()
    inputs = calibration_inputs(replace(profile, spec=spec), steps)
    assert 100 < len(inputs) <= 300 and inputs.shape[1:] == profile.golden_inputs.shape[1:]
    assert steps.names == ["phantom slides: paint"]
    judged = {patch.tobytes() for slide in phantom_slides(profile, range(4), steps) for patch in slide}
    assert judged.isdisjoint(patch.tobytes() for patch in inputs)
