"""models.domain: marks against a slow loop, bits that no neighbour can change, references that cannot be used."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from models.domain import MARKS, Mark, Reference, distances, marks, parse_reference, rooted

S, E, D = 3, 24, 5


def reference(seed: int = 0) -> Reference:
    """A reference around (roots of) uniform numbers, with directions drawn at random; about half of them are near."""
    random = np.random.default_rng(seed)
    made = Reference(
        statistics_low=np.array([-1.0, -2.0, -3.0]),
        statistics_high=np.array([1.0, 2.0, 3.0]),
        mean=np.full(E, 0.6),
        components=np.linalg.qr(random.normal(size=(E, D)))[0].T.copy(),
        scales=random.uniform(0.2, 0.5, D),
        residual_scale=np.array(0.25),
        limit=np.array(4.6),
    )
    return parse_reference(made.to_bytes())


def patches(count: int, seed: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Statistics of which some are outside, and embeddings of which some are far."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, S)), random.random((count, E), np.float32)


def slow_marks(
    to: Reference, statistics_S: NDArray[np.float64], embedding_E: NDArray[np.float32]
) -> tuple[Mark, ...]:
    """One patch, one number at a time; the distance from the whole inverse covariance."""
    borne: list[Mark] = []
    for low, value, high in zip(to.statistics_low, statistics_S, to.statistics_high, strict=True):
        if not low <= value <= high and "intensity_outside" not in borne:
            borne.append("intensity_outside")
    off_E = np.array([math.copysign(math.sqrt(abs(v)), v) for v in embedding_E.tolist()]) - to.mean
    precision_EE = np.eye(E) / to.residual_scale**2
    for component_E, scale in zip(to.components, to.scales, strict=True):
        precision_EE += np.outer(component_E, component_E) * (1 / scale**2 - 1 / to.residual_scale**2)
    if math.sqrt(off_E @ precision_EE @ off_E) > to.limit:
        borne.append("embedding_far")
    return tuple(borne)


def test_marks_are_those_of_a_slow_loop() -> None:
    """Every combination of marks occurs among 200 patches, and each patch bears what the slow loop gives it."""
    to = reference()
    statistics_NS, embeddings_NE = patches(200)
    found = marks(to, statistics_NS, embeddings_NE)
    assert found == [slow_marks(to, s, e) for s, e in zip(statistics_NS, embeddings_NE, strict=True)]
    assert set(found) == {(), ("intensity_outside",), ("embedding_far",), MARKS}


@given(st.lists(st.integers(0, 19), min_size=1, max_size=30))
def test_a_patch_is_judged_alone(chosen: list[int]) -> None:
    """Among any others, in any place, a patch has the distance and the marks that it has alone, to the last bit."""
    to = reference()
    statistics_NS, embeddings_NE = patches(20)
    together = distances(to, embeddings_NE[chosen])
    alone = [distances(to, embeddings_NE[i : i + 1])[0] for i in chosen]
    assert together.tobytes() == np.array(alone).tobytes()
    one_by_one = [marks(to, statistics_NS[i : i + 1], embeddings_NE[i : i + 1])[0] for i in chosen]
    assert marks(to, statistics_NS[chosen], embeddings_NE[chosen]) == one_by_one


def test_bounds_and_limit_belong_to_the_domain() -> None:
    """A statistic at its bound is inside, an embedding at the limit near; one step beyond bears the mark."""
    to = reference()
    _, embeddings_NE = patches(1)
    at = replace(to, limit=distances(to, embeddings_NE)[0])
    assert marks(at, to.statistics_low[np.newaxis], embeddings_NE) == [()]
    assert marks(at, to.statistics_high[np.newaxis], embeddings_NE) == [()]
    below = replace(at, limit=np.nextafter(at.limit, 0))
    beyond = np.nextafter(to.statistics_high, np.inf)[np.newaxis]
    assert marks(below, beyond, embeddings_NE) == [MARKS]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_marked(value: float) -> None:
    """A statistic or an embedding that is not finite is never taken for a known one."""
    to = reference()
    statistics_NS, embeddings_NE = np.zeros((1, S)), np.full((1, E), 0.36, np.float32)
    assert marks(to, statistics_NS, embeddings_NE) == [()]
    statistics_NS[0, 1], embeddings_NE[0, 3] = value, value
    with np.errstate(invalid="ignore"):
        assert marks(to, statistics_NS, embeddings_NE) == [MARKS]


def test_no_patches_no_marks() -> None:
    """An empty batch gives an empty list."""
    assert marks(reference(), np.zeros((0, S)), np.zeros((0, E), np.float32)) == []


def test_the_root_keeps_the_sign() -> None:
    """Embeddings that are not rectified keep their sign under the root."""
    np.testing.assert_array_equal(rooted(np.array([[4.0, -9.0, 0.0]], np.float32)), [[2, -3, 0]])


@pytest.mark.parametrize(
    ("statistics", "numbers", "told"),
    [
        (S + 1, E, "made for 3 intensity statistics, not 4"),
        (S, E - 1, "made for embeddings of 24, not 23"),
    ],
)
def test_another_size_is_refused(statistics: int, numbers: int, told: str) -> None:
    """Statistics and embeddings of another size than the reference's are an error, never compared by chance."""
    with pytest.raises(ValueError, match=told):
        marks(reference(), np.zeros((1, statistics)), np.zeros((1, numbers), np.float32))


def tensors(**changes: Any) -> dict[str, NDArray[Any]]:
    """The tensors of a reference that is whole, with changes; None leaves one out."""
    to = reference()
    names = ("statistics_low", "statistics_high", "mean", "components", "scales", "residual_scale", "limit")
    whole = {name: getattr(to, name).astype(np.float32) for name in names}
    return {name: values for name, values in {**whole, **changes}.items() if values is not None}


def test_a_reference_survives_its_file() -> None:
    """Written and read again twice, every number is the same."""
    to = parse_reference(save(tensors()))
    assert parse_reference(to.to_bytes()).to_bytes() == to.to_bytes() == reference().to_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"limit": None}, "its tensors must be statistics_low, .*, limit, not components, mean"),
        ({"colour": np.zeros(3)}, "its tensors must be"),
        ({"mean": np.zeros((1, E))}, r"mean has the shape \[1, 24\], expected \[E\] \(S = 3\)"),
        ({"components": np.zeros((E, D))}, r"components has the shape \[24, 5\], expected \[D, E\] .*E = 24"),
        ({"components": np.zeros((0, E))}, "components has the shape"),
        ({"scales": np.ones(D + 1)}, r"scales has the shape \[6\], expected \[D\] .*D = 5"),
        ({"statistics_high": np.ones(S + 1)}, "statistics_high has the shape"),
        ({"limit": np.ones(1)}, r"limit has the shape \[1\], expected \[\]"),
        ({"mean": np.full(E, np.nan)}, "mean holds values that are not finite"),
        ({"statistics_high": np.full(S, np.inf)}, "statistics_high holds values that are not finite"),
        ({"scales": np.zeros(D)}, "scales must be above 0"),
        ({"residual_scale": np.array(-1.0)}, "residual_scale must be above 0"),
        ({"limit": np.array(0.0)}, "limit must be above 0"),
        ({"statistics_low": np.full(S, 9.0)}, "statistics_low lies above statistics_high"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(changes: dict[str, Any], told: str) -> None:
    """Missing, unknown, misshapen, infinite and impossible tensors are refused by name, in one line."""
    with pytest.raises(ValueError, match=told) as refused:
        parse_reference(save(tensors(**changes)))
    assert "\n" not in str(refused.value)


def test_what_is_no_safetensors_is_refused() -> None:
    """Other bytes are a wrong reference, not a crash."""
    with pytest.raises(ValueError, match="not safetensors"):
        parse_reference(b"not tensors")
