"""The way from the phantom's recipe to its profile: collect, train, calibrate, measure, export. The only joiner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import calibrate
from models.profile import GOLDEN, WEIGHTS, CalibrationSpec, Profile
from models.srh.classifier import build_classifier, load_state, state_for_profile
from models.srh.phantom import CLASSES
from train.calibrate import expected_calibration_error, fit_one_vs_rest
from train.evaluate import SlideResult, eager, evaluate_slides, outputs_of
from train.export import golden_pair, manifest_of, weights_of, write_profile
from train.finetune import Report, finetune, reproducible
from train.phantom_set import PatchSet, collect
from train.recipes import Recipe, RecipeInvalid, Seeds

Say = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """What was measured on the test patients."""

    patches: int
    patch_accuracy: float
    ece_before: float
    """Softmax of the logits."""
    ece_after: float
    slides: int
    slides_correct: int


def build(recipe: Recipe, out: Path, say: Say, report: Report) -> Figures:
    """Train the recipe and write its profile to `out`; returns the figures on the test patients.

    Raises RecipeInvalid, TrainingDiverged, OSError.
    """
    if recipe.classes != CLASSES:
        raise RecipeInvalid(f"classes: the phantom's label order is {', '.join(CLASSES)}")
    data = recipe.data

    def patches(seeds: Seeds) -> PatchSet:
        return collect(seeds.all, data.height_px, data.patches_per_strip, recipe.input)

    say(f"rendering {data.train.count} slides")
    network = finetune(recipe, patches(data.train), report)
    weights = weights_of(network)
    with reproducible(recipe.seed, recipe.optimisation.threads):
        say(f"calibrating on {data.calibration.count} other slides")
        # From the exported weights, so that what is measured is what is shipped.
        shipped = build_classifier(recipe.network, len(recipe.classes))
        load_state(shipped, state_for_profile(network))
        outputs = outputs_of(shipped, recipe.input)
        held_out, test = patches(data.calibration), patches(data.test)
        calibration = fit_one_vs_rest(outputs(held_out.pixels), held_out.labels, recipe.calibration_input)
        say(f"testing on {data.test.count} other slides")
        logits_NK = outputs(test.pixels)
        golden = _golden(recipe, test, outputs)
        spec = manifest_of(_fields(recipe, calibration), {WEIGHTS: weights, GOLDEN: golden})
        results = list(evaluate_slides(spec, eager(spec, weights), data.test.all, data.height_px))
    figures = _measure(logits_NK, test.labels, calibration, results)
    write_profile(out, _fields(recipe, calibration), weights, golden, _card(recipe, spec, figures))
    return figures


def _golden(recipe: Recipe, test: PatchSet, outputs: Callable[[NDArray[np.uint16]], NDArray[np.float32]]) -> bytes:
    """One test patch of each class."""
    chosen = [int(np.flatnonzero(test.labels == k)[0]) for k in range(len(recipe.classes))]
    inputs_N2HW = test.pixels[chosen]
    return golden_pair(inputs_N2HW, outputs(inputs_N2HW))


def _measure(
    logits_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    calibration: CalibrationSpec,
    results: list[SlideResult],
) -> Figures:
    plain_NK = calibrate(logits_NK, CalibrationSpec(), "logits")
    mapped_NK = calibrate(logits_NK, calibration, "logits")
    return Figures(
        patches=len(labels_N),
        patch_accuracy=float((mapped_NK.argmax(axis=1) == labels_N).mean()),
        ece_before=expected_calibration_error(plain_NK, labels_N),
        ece_after=expected_calibration_error(mapped_NK, labels_N),
        slides=len(results),
        slides_correct=sum(result.correct for result in results),
    )


def _fields(recipe: Recipe, calibration: CalibrationSpec) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "version": recipe.version,
        "modality": "srh",
        "classes": recipe.classes,
        "input": recipe.input.model_dump(mode="json"),
        "network": recipe.network.model_dump(mode="json"),
        "calibration": calibration,
        "aggregation": recipe.aggregation,
        "operating_points": recipe.operating_points,
        "minimum_patches": recipe.minimum_patches,
        "licence": recipe.licence,
        "intended_use": recipe.intended_use,
        "source": f"python -m train phantom-profile, recipe {recipe.name}, seed {recipe.seed}",
    }


def _card(recipe: Recipe, spec: Profile, figures: Figures) -> str:
    data, network = recipe.data, recipe.network
    ranges = "\n".join(
        f"| {name} | {seeds.first} to {seeds.all.stop - 1} | {seeds.count} |"
        for name, seeds in (("training", data.train), ("calibration", data.calibration), ("test", data.test))
    )
    return f"""# Model card: {spec.name} {spec.version}

**This is a phantom model. It was trained on computer-made pictures, not on tissue. Its figures say nothing about
patients, and its answers on real images are meaningless.** It exists so that the demo and the tests run the whole
way of a slide with weights that fit into the repository.

## What it is
{network.encoder}, {network.width} channels after the stem, {network.head} head; input: raw CH2 and CH3 counts,
{recipe.input.size_px} × {recipe.input.size_px} px.

- Classes, in label order: {", ".join(spec.classes)}
- Intended use: {spec.intended_use}
- Licence: {spec.licence}

## Data
Synthetic slides (`models/srh/phantom.py`), textures inspired by histology: perivascular rosettes, whorls, clusters
and glands, spindle bundles; all four share a part without architecture. One slide per seed, one seed per patient;
no seed is in two of the sets, and those of the demo and of `evaluate-phantom` (from 40000) are in none.

| set | seeds | slides |
|---|---|---|
{ranges}

At most {data.patches_per_strip} patches of one scan strip of a slide that pass the tissue gate.

## Figures (test slides, eager fp32)
| figure | value |
|---|---|
| patches | {figures.patches} |
| patch accuracy, calibrated | {figures.patch_accuracy:.3f} |
| expected calibration error before (softmax) | {figures.ece_before:.3f} |
| expected calibration error after (one-vs-rest sigmoid on {recipe.calibration_input}) | {figures.ece_after:.3f} |
| slides correct, all patches | {figures.slides_correct} of {figures.slides} |

## How to make it again
`make phantom-profile` (recipe `configs/train/phantom.yaml`, seed {recipe.seed}): the same machine and library
versions give the same weights to the bit.
"""
