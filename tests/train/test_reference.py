"""train.reference: the fitted reference is the ellipsoid that the data have, and its limit that of unseen patches."""

from __future__ import annotations

import numpy as np
import pytest

from models.domain import distances, marks, parse_reference
from train.recipes import ReferenceRecipe
from train.reference import Described, fit_reference

E, D = 16, 4
RECIPE = ReferenceRecipe(components=D, near=0.9, beyond=0.01)


def described(count: int, seed: int, shift: float = 0.0) -> Described:
    """Rooted embeddings spread in four directions, much more than in the others, around 3."""
    random = np.random.default_rng(seed)
    spread = np.diag([0.8, 0.6, 0.4, 0.3, *[0.1] * (E - D)])
    rooted_NE = 3 + shift + random.normal(size=(count, E)) @ spread
    return Described(random.normal(100, 10, (count, 5)), np.square(rooted_NE).astype(np.float32))


def test_the_ellipsoid_is_that_of_the_data() -> None:
    """Centre, directions and spreads are those that the data were drawn with."""
    reference = fit_reference(described(20_000, 0), described(1000, 1), RECIPE)
    np.testing.assert_allclose(reference.mean, 3, atol=0.03)
    np.testing.assert_allclose(reference.scales, [0.8, 0.6, 0.4, 0.3], rtol=0.03)
    np.testing.assert_allclose(reference.residual_scale, 0.1, rtol=0.03)
    np.testing.assert_allclose(np.abs(reference.components[:, :D]), np.eye(D), atol=0.1)
    np.testing.assert_allclose(reference.components @ reference.components.T, np.eye(D), atol=1e-9)


def test_the_limit_is_that_of_patches_that_training_did_not_see() -> None:
    """The stated share of the held-out patches is near, whatever the training patches would say."""
    held_out = described(1000, 1, shift=0.2)
    reference = fit_reference(described(2000, 0), held_out, RECIPE)
    assert (distances(reference, held_out.embeddings) <= reference.limit).mean() == pytest.approx(0.9, abs=0.002)


def test_the_bounds_leave_the_stated_share_outside() -> None:
    """Of each intensity statistic a hundredth of all patches lies below and another above the bounds."""
    trained, held_out = described(2000, 0), described(1000, 1)
    reference = fit_reference(trained, held_out, RECIPE)
    seen = np.concatenate([trained.statistics, held_out.statistics])
    np.testing.assert_allclose((seen < reference.statistics_low).mean(axis=0), 0.01, atol=0.001)
    np.testing.assert_allclose((seen > reference.statistics_high).mean(axis=0), 0.01, atol=0.001)


def test_it_is_the_same_each_time_and_survives_its_file() -> None:
    """The same patches give the same bytes, which read back judge the same."""
    made = [fit_reference(described(500, 0), described(100, 1), RECIPE) for _ in range(2)]
    assert made[0].to_bytes() == made[1].to_bytes()
    other = described(200, 2)
    read = parse_reference(made[0].to_bytes())
    assert marks(read, other.statistics, other.embeddings) == marks(made[0], other.statistics, other.embeddings)


def test_dead_numbers_keep_distances_finite() -> None:
    """Numbers of the embedding that are always 0 have no spread; a patch without them is near, one with them far."""
    trained, held_out = described(500, 0), described(100, 1)
    for part in (trained, held_out):
        part.embeddings[:, D:] = 0
    reference = fit_reference(trained, held_out, RECIPE)
    parse_reference(reference.to_bytes())
    assert np.isfinite(distances(reference, held_out.embeddings)).all()
    awake = held_out.embeddings.copy()
    awake[:, -1] = 1
    assert (distances(reference, awake) > reference.limit).all()


@pytest.mark.parametrize(("count", "components"), [(5, 5), (100, E), (100, 99)])
def test_too_many_directions_are_refused(count: int, components: int) -> None:
    """As many directions as patches, or as numbers in the embedding, cannot be fitted; the field is named."""
    with pytest.raises(ValueError, match=r"reference\.components: .* take fewer"):
        fit_reference(described(count, 0), described(10, 1), ReferenceRecipe(components=components))
