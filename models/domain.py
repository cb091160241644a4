"""Does a patch look like what its profile was made for? The reference, the distance from it, and the marks. Pure.

Must not know modalities: a patch comes as its intensity statistics and its embedding, and is judged alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

Mark = Literal["intensity_outside", "embedding_far"]
Marks = tuple[Mark, ...]
MARKS: Marks = ("intensity_outside", "embedding_far")
"""Every mark, in the order in which a patch bears them. The ledger stores their places: append, never reorder."""
_SHAPES = {
    "statistics_low": "S",
    "statistics_high": "S",
    "mean": "E",
    "components": "DE",
    "scales": "D",
    "residual_scale": "",
    "limit": "",
}


@dataclass(frozen=True)
class Reference:
    """What patches of the profile's domain look like: S intensity statistics, embeddings of E numbers."""

    statistics_low: NDArray[np.float64]
    """[S] lowest value of each intensity statistic that is still inside."""
    statistics_high: NDArray[np.float64]
    """[S] highest such value."""
    mean: NDArray[np.float64]
    """[E] centre of the rooted embeddings (see `rooted`)."""
    components: NDArray[np.float64]
    """[D, E] orthonormal directions in which they spread most."""
    scales: NDArray[np.float64]
    """[D] standard deviation along each of them."""
    residual_scale: NDArray[np.float64]
    """[] standard deviation along each of the E - D other directions, the same for all."""
    limit: NDArray[np.float64]
    """[] a patch whose distance from the centre is larger than this is far."""

    def to_bytes(self) -> bytes:
        """As a safetensors file, float32."""
        return save_safetensors({name: np.asarray(getattr(self, name), np.float32) for name in _SHAPES})


def parse_reference(content: bytes) -> Reference:
    """Read what `to_bytes` wrote; raises ValueError naming the tensor that is missing, misshapen or impossible."""
    try:
        tensors = load_safetensors(content)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from error
    if set(tensors) != set(_SHAPES):
        raise ValueError(f"its tensors must be {', '.join(_SHAPES)}, not {', '.join(sorted(tensors)) or 'none'}")
    found = {name: tensors[name].astype(np.float64) for name in _SHAPES}
    _check_shapes({name: values.shape for name, values in found.items()})
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are not finite")
        if name in ("scales", "residual_scale", "limit") and not (values > 0).all():
            raise ValueError(f"{name} must be above 0")
    if (found["statistics_low"] > found["statistics_high"]).any():
        raise ValueError("statistics_low lies above statistics_high")
    return Reference(**found)


def _check_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    """One letter of _SHAPES means one size, at least 1, in every tensor."""
    sizes: dict[str, int] = {}
    for name, letters in _SHAPES.items():
        shape = shapes[name]
        fits = len(shape) == len(letters) and all(shape)
        if not fits or any(sizes.setdefault(a, size) != size for a, size in zip(letters, shape, strict=True)):
            known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
            raise ValueError(f"{name} has the shape {list(shape)}, expected [{', '.join(letters)}] ({known})")


def marks(
    reference: Reference, statistics_NS: NDArray[np.float64], embeddings_NE: NDArray[np.floating]
) -> list[Marks]:
    """The marks of each patch: none for one that looks like the reference.

    `intensity_outside`: a statistic beyond its bounds. `embedding_far`: its distance is above the limit. What is not
    a number bears the mark. Raises ValueError when statistics or embeddings are not of the reference's sizes.
    """
    if statistics_NS.shape[1:] != reference.statistics_low.shape:
        expected = len(reference.statistics_low)
        raise ValueError(f"the reference is made for {expected} intensity statistics, not {statistics_NS.shape[1]}")
    inside_NS = (reference.statistics_low <= statistics_NS) & (statistics_NS <= reference.statistics_high)
    near_N = distances(reference, embeddings_NE) <= reference.limit
    unlike_N2 = ~np.stack([inside_NS.all(axis=1), near_N], axis=1)
    return [tuple(mark for mark, borne in zip(MARKS, row, strict=True) if borne) for row in unlike_N2]


def rooted(embeddings_NE: NDArray[np.floating]) -> NDArray[np.float64]:
    """The root of each number, keeping its sign. Encoders end in a mean of rectified values, which is skewed: without
    the root a few bright textures of the domain stretch the ellipsoid until noise fits in.
    """
    x_NE = np.asarray(embeddings_NE, np.float64)
    rooted_NE: NDArray[np.float64] = np.sign(x_NE) * np.sqrt(np.abs(x_NE))
    return rooted_NE


def distances(reference: Reference, embeddings_NE: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mahalanobis distance of each rooted embedding from the reference's centre, [N].

    Its covariance is low-rank plus a multiple of the identity: `scales`² along `components`, `residual_scale`²
    elsewhere (Tipping and Bishop 1999, probabilistic principal components). One centre for all classes: on the
    phantom one centre per class (Lee et al. 2018) marked the same patches.
    """
    if embeddings_NE.shape[1:] != reference.mean.shape:
        expected = len(reference.mean)
        raise ValueError(f"the reference is made for embeddings of {expected}, not {embeddings_NE.shape[1]}")
    found_N: NDArray[np.float64] = np.empty(len(embeddings_NE))
    for i, rooted_E in enumerate(rooted(embeddings_NE)):
        # One patch at a time and without BLAS: its bits depend on no neighbour and on no number of threads.
        off_E = rooted_E - reference.mean
        along_D = (reference.components * off_E).sum(axis=1)
        rest = max(0.0, float((off_E**2).sum() - (along_D**2).sum()))
        found_N[i] = np.sqrt(((along_D / reference.scales) ** 2).sum() + rest / reference.residual_scale**2)
    return found_N
