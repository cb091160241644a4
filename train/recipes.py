"""The full typed configuration of a training run, read from YAML. Knows no data, network or file but the recipe."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from models.profile import AggregationSpec, DecisionSpec, Frozen
from models.srh.config import SrhInput, SrhNetwork

EVALUATION_FIRST_SEED = 40_000
"""Phantom slides from this seed on are never trained, calibrated or tested on: `evaluate-phantom` uses them."""


class RecipeInvalid(ValueError):
    """A recipe that cannot be used; the text names every wrong field."""


class Seeds(Frozen):
    """A range of phantom patients: one slide per seed, label = seed mod number of classes."""

    first: int = Field(ge=0)
    count: int = Field(gt=0)

    @property
    def all(self) -> range:
        """The seeds."""
        return range(self.first, self.first + self.count)


class PhantomData(Frozen):
    """Which synthetic slides are used for what; the three ranges share no patient."""

    height_px: int = 2000
    """Height of the slides' scan strips."""
    train: Seeds
    calibration: Seeds
    test: Seeds
    patches_per_strip: int = Field(10, gt=0)
    """At most this many patches that pass the tissue gate are taken of one scan strip."""

    @model_validator(mode="after")
    def _disjoint(self) -> PhantomData:
        ranges = sorted((self.train.all, self.calibration.all, self.test.all), key=lambda r: r.start)
        if any(a.stop > b.start for a, b in pairwise(ranges)):
            raise ValueError("train, calibration and test share seeds: a patient would be in two of them")
        if ranges[-1].stop > EVALUATION_FIRST_SEED:
            raise ValueError(f"seeds from {EVALUATION_FIRST_SEED} on are kept for evaluation")
        return self


class Stage(Frozen):
    """A part of the training at one size of the random crops (smaller is faster)."""

    crop_px: int = Field(ge=32)
    epochs: int = Field(gt=0)


class Optimisation(Frozen):
    """AdamW with a cosine schedule over all stages."""

    batch: int = Field(32, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    """Peak, reached after the warm-up."""
    weight_decay: float = Field(0.05, ge=0)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    threads: int = Field(1, gt=0)
    """CPU threads of torch: part of the recipe, since another number may round differently. More than one is slower
    on a machine that is busy with other work."""


class ReferenceRecipe(Frozen):
    """How the profile's reference (models.domain) is fitted."""

    components: int = Field(32, ge=1)
    """Directions along which embeddings have a spread of their own; the others share one."""
    near: float = Field(0.99, gt=0.5, lt=1)
    """Share of the calibration patches, which training never saw, that is near: decides the distance limit."""
    beyond: float = Field(0.001, ge=0, lt=0.5)
    """Share of training and calibration patches that lies below, and above, the bounds of an intensity statistic."""


class Recipe(Frozen):
    """Everything that decides a trained profile."""

    name: str
    version: int = Field(1, ge=1)
    seed: int = Field(1000, ge=0)
    """Weights, order of the patches and augmentation."""
    classes: tuple[str, ...] = Field(min_length=2)
    """Label order; never derived from what the data holds."""
    input: SrhInput = SrhInput()
    network: SrhNetwork
    data: PhantomData
    optimisation: Optimisation
    calibration_input: Literal["logits", "probabilities"] = "probabilities"
    """What the one-vs-rest sigmoids are fitted on: each class's raw logit, or its softmax."""
    aggregation: AggregationSpec = AggregationSpec()
    operating_points: dict[str, float] = Field(default={"high_confidence": 0.77})
    decision: DecisionSpec = DecisionSpec()
    minimum_patches: int = Field(20, ge=0)
    reference: ReferenceRecipe | None = ReferenceRecipe()
    """null: the profile gets none, and no patch is called far or outside."""
    licence: str
    intended_use: str

    @model_validator(mode="after")
    def _crops_fit(self) -> Recipe:
        if any(stage.crop_px > self.input.size_px for stage in self.optimisation.stages):
            raise ValueError(f"optimisation.stages: crop_px is larger than the patch of {self.input.size_px} px")
        return self


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe; each override `a.b=value` (value in YAML) replaces one field.

    Raises RecipeInvalid with one line that names the file and every wrong field; OSError passes through.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise RecipeInvalid(f"{path}: must be a mapping")
        for override in overrides:
            _replace(document, override)
        return Recipe.model_validate(document)
    except yaml.YAMLError as error:
        raise RecipeInvalid(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise RecipeInvalid(f"{path}: " + "; ".join(lines)) from error


def _replace(document: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals:
        raise RecipeInvalid(f"{override!r}: an override is written key=value")
    *parents, last = name.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise RecipeInvalid(f"{name}: {parent} is not a section")
    document[last] = yaml.safe_load(value)
