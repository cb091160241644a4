"""The way from the phantom's recipe to its profile: collect, train, calibrate, measure, export. The only joiner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import calibrate
from models.contract import Prediction
from models.domain import Mark, Reference, parse_reference
from models.profile import CARD, GOLDEN, REFERENCE, WEIGHTS, CalibrationSpec
from models.srh.classifier import build_classifier, load_state, state_for_profile
from models.srh.intensity import intensity_statistics
from models.srh.phantom import CLASSES
from train.calibrate import expected_calibration_error, fit_one_vs_rest
from train.evaluate import Outputs, SlideResult, eager, evaluate_slides, outputs_of
from train.export import golden_pair, manifest_of, weights_of, write_profile
from train.finetune import Report, finetune, reproducible
from train.model_card import Figures, card_of
from train.phantom_set import PatchSet, collect
from train.recipes import Recipe, RecipeInvalid, Seeds
from train.reference import Described, check_components, fit_reference

Say = Callable[[str], None]


def build(recipe: Recipe, out: Path, say: Say, report: Report) -> Figures:
    """Train the recipe and write its profile to `out`; returns the figures on the test patients.

    Raises RecipeInvalid, TrainingDiverged, ValueError, OSError.
    """
    if recipe.classes != CLASSES:
        raise RecipeInvalid(f"classes: the phantom's label order is {', '.join(CLASSES)}")
    data = recipe.data

    def patches(seeds: Seeds) -> PatchSet:
        return collect(seeds.all, data.height_px, data.patches_per_strip, recipe.input)

    say(f"rendering {data.train.count} slides")
    known = patches(data.train)
    size = build_classifier(recipe.network, len(recipe.classes)).bb.embedding_dim
    if recipe.reference is not None:
        check_components(recipe.reference, len(known), size)  # before minutes of training
    network = finetune(recipe, known, report)
    weights = weights_of(network)
    with reproducible(recipe.seed, recipe.optimisation.threads):
        say(f"calibrating on {data.calibration.count} other slides")
        # From the exported weights, so that what is measured is what is shipped.
        shipped = build_classifier(recipe.network, len(recipe.classes))
        load_state(shipped, state_for_profile(network))
        outputs = outputs_of(shipped, recipe.input)
        held_out, test = patches(data.calibration), patches(data.test)
        emitted = outputs(held_out.pixels)
        calibration = fit_one_vs_rest(emitted["logits"], held_out.labels, recipe.calibration_input)
        contents = {WEIGHTS: weights, GOLDEN: _golden(recipe, test, outputs)}
        reference: Reference | None = None
        if recipe.reference is not None:
            say("describing the training patches for the reference")
            trained = _described(known, outputs(known.pixels))
            contents[REFERENCE] = fit_reference(trained, _described(held_out, emitted), recipe.reference).to_bytes()
            reference = parse_reference(contents[REFERENCE])
        say(f"testing on {data.test.count} other slides")
        fields = _fields(recipe, calibration)
        spec = manifest_of(fields, contents)
        judged = evaluate_slides(spec, eager(spec, weights), reference, data.test.all, data.height_px)
        figures = _measure(outputs(test.pixels)["logits"], test.labels, calibration, list(judged))
    card = card_of(recipe, spec, reference, figures)
    write_profile(out, fields, {**contents, CARD: card.encode()})
    return figures


def _described(data: PatchSet, prediction: Prediction) -> Described:
    return Described(intensity_statistics(data.pixels), prediction["embedding"])


def _golden(recipe: Recipe, test: PatchSet, outputs: Outputs) -> bytes:
    """One test patch of each class."""
    chosen = [int(np.flatnonzero(test.labels == k)[0]) for k in range(len(recipe.classes))]
    inputs_N2HW = test.pixels[chosen]
    return golden_pair(inputs_N2HW, outputs(inputs_N2HW)["logits"])


def _measure(
    logits_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    calibration: CalibrationSpec,
    results: list[SlideResult],
) -> Figures:
    plain_NK = calibrate(logits_NK, CalibrationSpec(), "logits")
    mapped_NK = calibrate(logits_NK, calibration, "logits")
    posteriors = [result.posterior for result in results]
    judged = sum(posterior.judged for posterior in posteriors)

    def share(mark: Mark) -> float:
        return sum(posterior.marks.get(mark, 0) for posterior in posteriors) / max(1, judged)

    return Figures(
        patches=len(labels_N),
        patch_accuracy=float((mapped_NK.argmax(axis=1) == labels_N).mean()),
        ece_before=expected_calibration_error(plain_NK, labels_N),
        ece_after=expected_calibration_error(mapped_NK, labels_N),
        slides=len(results),
        slides_correct=sum(result.correct for result in results),
        patches_far=share("embedding_far"),
        patches_outside=share("intensity_outside"),
        slides_out_of_domain=sum(result.decision == "out_of_domain" for result in results),
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
        "decision": recipe.decision,
        "minimum_patches": recipe.minimum_patches,
        "licence": recipe.licence,
        "intended_use": recipe.intended_use,
        "source": f"python -m train phantom-profile, recipe {recipe.name}, seed {recipe.seed}",
    }
