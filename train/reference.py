"""Fits what a profile's patches look like: intensity bounds, an ellipsoid of embeddings, a limit. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.domain import Reference, distances, rooted
from train.recipes import ReferenceRecipe


@dataclass(frozen=True)
class Described:
    """What the reference sees of N patches."""

    statistics: NDArray[np.float64]
    """[N, S] intensity statistics."""
    embeddings: NDArray[np.float32]
    """[N, E]."""


def check_components(recipe: ReferenceRecipe, patches: int, size: int) -> None:
    """Raises ValueError unless there are more patches, and numbers in an embedding, than directions to fit."""
    if recipe.components >= min(patches, size):
        raise ValueError(
            f"reference.components: {recipe.components} directions cannot be fitted to {patches} patches with"
            f" embeddings of {size} numbers; take fewer"
        )


def fit_reference(trained: Described, held_out: Described, recipe: ReferenceRecipe) -> Reference:
    """Centre and spread from the patches that the network was trained on, the distance limit from others: a network
    packs patches that it knows more tightly, and a limit taken from them would mark too much.

    Raises ValueError (see `check_components`).
    """
    rooted_NE = rooted(trained.embeddings)
    patches, size = rooted_NE.shape
    check_components(recipe, patches, size)
    mean_E = rooted_NE.mean(axis=0)
    _, singular, directions = np.linalg.svd(rooted_NE - mean_E, full_matrices=False)
    variances = singular**2 / patches
    seen = np.concatenate([trained.statistics, held_out.statistics])
    reference = Reference(
        statistics_low=np.quantile(seen, recipe.beyond, axis=0),
        statistics_high=np.quantile(seen, 1 - recipe.beyond, axis=0),
        mean=mean_E,
        components=directions[: recipe.components],
        # Embedding numbers that are always 0 (dead units) have no spread at all: a floor keeps distances finite.
        scales=np.sqrt(np.maximum(variances[: recipe.components], 1e-8)),
        residual_scale=np.sqrt(np.maximum(variances[recipe.components :].sum() / (size - recipe.components), 1e-8)),
        limit=np.array(1.0),
    )
    return replace(reference, limit=np.array(np.quantile(distances(reference, held_out.embeddings), recipe.near)))
