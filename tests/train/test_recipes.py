"""Recipes: typed, complete, refused with one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.srh.phantom import CLASSES
from train.recipes import EVALUATION_FIRST_SEED, RecipeInvalid, load_recipe

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "phantom.yaml"


def test_shipped_recipe_loads() -> None:
    """The shipped recipe is valid, states the label order and keeps its three sets of patients apart."""
    recipe = load_recipe(RECIPE)
    assert recipe.classes == CLASSES
    sets = [set(seeds.all) for seeds in (recipe.data.train, recipe.data.calibration, recipe.data.test)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert max(set.union(*sets)) < EVALUATION_FIRST_SEED


def test_override_replaces_one_field() -> None:
    """`a.b=value` changes that field and nothing else."""
    recipe, changed = load_recipe(RECIPE), load_recipe(RECIPE, ["optimisation.batch=8", "seed=5"])
    assert (changed.optimisation.batch, changed.seed) == (8, 5)
    same = changed.model_copy(update={"seed": recipe.seed, "optimisation": recipe.optimisation})
    assert same == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimisation.bach=8", "optimisation.bach: Extra inputs"),
        ("optimisation.batch=zero", "optimisation.batch: "),
        ("data.test={first: 10050, count: 4}", "data: .*share seeds"),
        ("data.test={first: 39999, count: 4}", "data: .*kept for evaluation"),
        ("optimisation.stages=[{crop_px: 301, epochs: 1}]", "crop_px is larger than the patch"),
        ("seed", "'seed': an override is written key=value"),
        ("seed.low=1", "seed.low: seed is not a section"),
        ("seed=[1", "not YAML"),
    ],
)
def test_wrong_field_is_named_in_one_line(override: str, message: str) -> None:
    """An unknown key, a wrong value or a patient in two sets is refused with one line that names it."""
    with pytest.raises(RecipeInvalid, match=message) as caught:
        load_recipe(RECIPE, [override])
    assert "\n" not in str(caught.value)


def test_recipe_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    """A file that holds a list is refused with its name."""
    path = tmp_path / "recipe.yaml"
    path.write_text("- 1\n")
    with pytest.raises(RecipeInvalid, match=r"recipe\.yaml: must be a mapping"):
        load_recipe(path)
