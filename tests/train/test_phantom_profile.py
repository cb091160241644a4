"""The shipped phantom profile and the commands that make and judge it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.calibration import calibrate
from models.profile import CARD, MANIFEST, WEIGHTS, ProfileInvalid
from models.registry import MODALITIES
from models.srh.phantom import CLASSES
from train.__main__ import main
from train.evaluate import eager, evaluate_slides, read_profile
from train.foreign import GROSS, SUBTLE
from train.recipes import EVALUATION_FIRST_SEED, load_recipe

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "configs" / "profiles" / "phantom"
RECIPE = ROOT / "configs" / "train" / "phantom.yaml"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run beside each other: more threads than cores only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_shipped_profile_is_valid_and_small() -> None:
    """It loads with every sha256 right, fits its modality, and its weights take at most 4 MB."""
    loaded = read_profile(PROFILE)
    MODALITIES[loaded.spec.modality].check(loaded.spec)
    assert loaded.spec.classes == CLASSES
    assert set(loaded.spec.files) == {path.name for path in PROFILE.iterdir() if path.is_file()} - {MANIFEST}
    assert len(loaded.weights) <= 4_000_000
    assert (PROFILE / WEIGHTS).stat().st_size == len(loaded.weights)


def test_shipped_profile_is_that_of_the_recipe() -> None:
    """Input, network and classes of the profile are those of the recipe in the repository."""
    spec, recipe = read_profile(PROFILE).spec, load_recipe(RECIPE)
    assert spec.input == recipe.input.model_dump(mode="json")
    assert spec.network == recipe.network.model_dump(mode="json")
    assert (spec.name, spec.version, spec.classes) == (recipe.name, recipe.version, recipe.classes)
    assert (spec.decision, spec.minimum_patches) == (recipe.decision, recipe.minimum_patches)
    reference = read_profile(PROFILE).reference
    assert reference is not None and recipe.reference is not None
    assert reference.components.shape == (recipe.reference.components, 128)


def test_golden_pair_agrees_in_eager_fp32() -> None:
    """The shipped weights give the golden outputs to 1e-5, one patch of each class, each classified right."""
    loaded = read_profile(PROFILE)
    assert loaded.golden_inputs.shape == (4, 2, 300, 300)
    found = eager(loaded.spec, loaded.weights)(loaded.golden_inputs)["logits"]
    np.testing.assert_allclose(found, loaded.golden_outputs, rtol=1e-5, atol=1e-5)
    p_NK = calibrate(loaded.golden_outputs, loaded.spec.calibration, "logits")
    np.testing.assert_allclose(p_NK.sum(axis=1), 1)


def test_card_says_what_it_is_not() -> None:
    """The model card says plainly that this is a phantom model and says nothing about patients."""
    card = (PROFILE / CARD).read_text(encoding="utf-8")
    assert "not on tissue" in card
    assert "say nothing about\npatients" in card


def test_unseen_slides_are_judged_right() -> None:
    """Four unseen slides, one per class, are right at slide level, and every patch is used or rejected."""
    loaded = read_profile(PROFILE)
    seeds = range(EVALUATION_FIRST_SEED, EVALUATION_FIRST_SEED + 4)
    outputs = eager(loaded.spec, loaded.weights)
    results = list(evaluate_slides(loaded.spec, outputs, loaded.reference, seeds, 2000))
    assert [result.truth for result in results] == [0, 1, 2, 3]
    assert all(result.correct for result in results)
    for result in results:
        assert result.posterior.counts.seen == 42
        assert result.posterior.counts.used == len(result.used_probabilities)
        assert set(result.posterior.counts.rejected) <= {"empty", "blood", "textureless"}
        np.testing.assert_allclose(result.posterior.probabilities, result.used_probabilities.mean(axis=0), atol=1e-9)
        assert result.posterior.judged == result.posterior.counts.used
        assert max(result.posterior.marks.values(), default=0) < 0.25 * result.posterior.judged
        assert result.decision == "final"


def test_a_clear_slide_of_four_strips_reaches_high_confidence() -> None:
    """What the model card says of 168 patches holds for an unseen slide; one of 42 has too wide an interval."""
    loaded = read_profile(PROFILE)
    outputs, seeds = eager(loaded.spec, loaded.weights), [EVALUATION_FIRST_SEED]
    (large,) = evaluate_slides(loaded.spec, outputs, loaded.reference, seeds, 4000)
    assert (large.posterior.counts.seen, large.decision) == (168, "high_confidence")
    (small,) = evaluate_slides(loaded.spec, outputs, loaded.reference, seeds, 2000)
    assert (small.decision, small.reason) == ("final", "interval_too_wide")


@pytest.mark.parametrize("name", GROSS)
def test_foreign_pictures_are_out_of_domain(name: str) -> None:
    """Unseen slides made into pictures that are grossly unlike the phantom: each is out of domain at slide level."""
    loaded = read_profile(PROFILE)
    seeds = range(EVALUATION_FIRST_SEED, EVALUATION_FIRST_SEED + 2)
    outputs = eager(loaded.spec, loaded.weights)
    for result in evaluate_slides(loaded.spec, outputs, loaded.reference, seeds, 2000, GROSS[name]):
        assert result.decision == "out_of_domain"


def test_what_changes_nothing_is_no_foreign_picture() -> None:
    """A slide upside down shows the same textures: it keeps its decision."""
    loaded = read_profile(PROFILE)
    outputs, seeds = eager(loaded.spec, loaded.weights), [EVALUATION_FIRST_SEED]
    (result,) = evaluate_slides(loaded.spec, outputs, loaded.reference, seeds, 2000, SUBTLE["upside down"])
    assert (result.decision, result.correct) == ("final", True)


def test_without_a_reference_nothing_is_judged() -> None:
    """A profile without a reference evaluates as ever, and even noise is never out of domain."""
    loaded = read_profile(PROFILE)
    outputs, seeds = eager(loaded.spec, loaded.weights), [EVALUATION_FIRST_SEED]
    (result,) = evaluate_slides(loaded.spec, outputs, None, seeds, 2000, GROSS["noise"])
    assert (result.posterior.judged, result.posterior.marks) == (0, {})
    assert result.decision != "out_of_domain"


def test_batch_does_not_change_a_patch() -> None:
    """A patch has the same bits alone and among others."""
    loaded = read_profile(PROFILE)
    outputs = eager(loaded.spec, loaded.weights)
    together = outputs(loaded.golden_inputs)
    for i in range(4):
        for name, values in outputs(loaded.golden_inputs[i : i + 1]).items():
            assert np.array_equal(values[0], together[name][i])


def test_command_makes_a_profile_that_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`phantom-profile` with a shortened recipe writes a valid profile, `evaluate-phantom` judges with it."""
    short = [
        *("data.train={first: 10000, count: 8}", "data.calibration={first: 20000, count: 4}"),
        *("data.test={first: 30000, count: 4}", "data.patches_per_strip=3", "optimisation.batch=8"),
        *("optimisation.stages=[{crop_px: 64, epochs: 1}]", "network.width=4", "network.token_dim=16"),
        "reference.components=4",
    ]
    out = tmp_path / "quick"
    assert main(["phantom-profile", "--out", str(out), "--recipe", str(RECIPE), "--json", *short]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["slides"] == 4
    assert 0 <= figures["ece_after"] <= 1
    loaded = read_profile(out)
    found = eager(loaded.spec, loaded.weights)(loaded.golden_inputs)["logits"]
    np.testing.assert_allclose(found, loaded.golden_outputs, rtol=1e-5, atol=1e-5)
    assert loaded.reference is not None and loaded.reference.components.shape == (4, 32)
    assert main(["evaluate-phantom", "--profile", str(out), "--slides", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["foreign"] == {}
    assert report["of"] == 1
    assert report["slides"][0]["used"] + sum(report["slides"][0]["rejected"].values()) == 42


def test_evaluation_prints_a_table_and_can_be_a_gate(capsys: pytest.CaptureFixture[str]) -> None:
    """The table names the slide and ends with the count; `--at-least` turns too few into exit code 1."""
    arguments = ["evaluate-phantom", "--profile", str(PROFILE), "--slides", "1"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "ependymoma" in text
    assert "Like the reference?" in text
    assert text.rstrip().endswith("1 of 1 correct")
    assert main([*arguments, "--at-least", "2"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["phantom-profile", "--out", "x", "--recipe", str(RECIPE), "seeed=1"], 2, "seeed: Extra inputs"),
        (["phantom-profile", "--out", "x", "--recipe", "missing.yaml"], 1, "missing.yaml"),
        (["phantom-profile", "--out", "x", "--recipe", str(RECIPE), "classes=[a, b]"], 2, "label order"),
        (
            ["phantom-profile", "--out", "x", "--recipe", str(RECIPE), "data.train={first: 10000, count: 1}"],
            1,
            "reference.components: 32 directions cannot be fitted to 7 patches",
        ),
        (["evaluate-phantom", "--profile", "missing"], 1, "missing"),
    ],
)
def test_trouble_is_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong recipe or a missing file gives one line on stderr and the right exit code."""
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_foreign_pictures_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """`--foreign` adds the share of marked patches and the decisions of every kind, for scripts too."""
    arguments = ["evaluate-phantom", "--profile", str(PROFILE), "--slides", "1", "--foreign", "1", "--json"]
    assert main(arguments) == 0
    foreign = json.loads(capsys.readouterr().out)["foreign"]
    assert set(foreign) == {*GROSS, *SUBTLE}
    assert foreign["brightened twofold"]["decisions"] == {"out_of_domain": 1}
    assert foreign["brightened twofold"]["intensity_outside"] > 0.9


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    """A profile with one changed byte in its weights does not load."""
    for path in PROFILE.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(weights)
    with pytest.raises(ProfileInvalid, match=WEIGHTS):
        read_profile(tmp_path)
