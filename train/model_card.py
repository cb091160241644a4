"""What was measured on a phantom profile, and the card that says so to people."""

from __future__ import annotations

from dataclasses import dataclass

from models.domain import Reference
from models.profile import Profile
from train.recipes import Recipe, ReferenceRecipe


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
    patches_far: float
    """Share of all used patches of these slides whose embedding is far from the reference."""
    patches_outside: float
    """Share whose intensities are outside its bounds."""
    slides_out_of_domain: int


def card_of(recipe: Recipe, spec: Profile, reference: Reference | None, figures: Figures) -> str:
    """The text of the phantom's MODEL_CARD.md."""
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
| patches far from the reference, all patches | {figures.patches_far:.3f} |
| patches outside its intensities, all patches | {figures.patches_outside:.3f} |
| slides out of domain | {figures.slides_out_of_domain} of {figures.slides} |

{_domain(recipe, spec, reference)}## How to make it again
`make {recipe.name}-profile` (recipe `configs/train/{recipe.name}.yaml`, seed {recipe.seed}): \
the same machine and library
versions give the same files to the byte.
"""


def _domain(recipe: Recipe, spec: Profile, reference: Reference | None) -> str:
    decision, weight = spec.decision, spec.aggregation.independence
    return f"""{_reference(recipe.reference, reference)}## Decisions
| field | value |
|---|---|
| minimum of used patches | {spec.minimum_patches} |
| high confidence | from {spec.operating_points["high_confidence"]:g} on |
| high confidence, lower end of the interval | from {decision.least_lower_bound:g} on |
| out of domain | from {decision.most_marked:.0%} of the patches with the same mark on |

Each patch counts as {weight:g} of an observation, so a slide of 42 patches never has an interval that narrow and
ends as `final`; a clear one of 168 patches reaches `high_confidence`.

"""


def _reference(fitted: ReferenceRecipe | None, reference: Reference | None) -> str:
    if fitted is None or reference is None:
        return "## Reference\nNone: nothing tells which pictures are unlike this profile's.\n\n"
    return f"""## Reference
`reference.safetensors` says what this profile's patches look like, and a result counts the patches that do not
(`docs/results.md`). It notices pictures that are grossly unlike the phantom's, and knows nothing of tissue.

| field | value |
|---|---|
| intensity bounds | leave {fitted.beyond:.1%} of the training and calibration patches on either side |
| centre and spread | rooted embeddings of the training patches, {fitted.components} directions of their own |
| distance limit | {float(reference.limit):.2f}: {fitted.near:.0%} of the calibration patches are nearer |

"""
