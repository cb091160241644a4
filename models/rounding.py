"""Rounding a layer's weights so that its outputs change least. numpy only.

Rounding each weight to its nearest value fails where the inputs share a large mean, as those of bright patches do:
the errors of a filter's weights add up. So weights are rounded one input after the other, and each error moves those
still to come by what makes up for it best under the inputs' second moments.
Source: GPTQ (Frantar et al. 2022, arXiv:2210.17323), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01
"""Share of the mean second moment that is added to each, so that they can be inverted."""
_BLOCK = 64


def compensated(
    weights_OK: NDArray[np.floating],
    moments_KK: NDArray[np.float64],
    nearest: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Filters [O, K] whose every value `nearest` leaves as it is; it takes and gives one input's weights [O].

    `moments_KK` are the mean products of every two of the K inputs.
    """
    work_OK = weights_OK.astype(np.float64)
    filters, inputs = work_OK.shape
    damped_KK = moments_KK + np.eye(inputs) * max(DAMPING * np.trace(moments_KK) / inputs, 1e-12)
    upper_KK = np.linalg.cholesky(np.linalg.inv(damped_KK)).T
    rounded_OK = np.empty_like(work_OK)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors_OB = np.empty((filters, end - start))
        for i in range(start, end):
            rounded_OK[:, i] = nearest(work_OK[:, i])
            error_O = (work_OK[:, i] - rounded_OK[:, i]) / upper_KK[i, i]
            work_OK[:, i + 1 : end] -= np.outer(error_O, upper_KK[i, i + 1 : end])
            errors_OB[:, i - start] = error_O
        work_OK[:, end:] -= errors_OB @ upper_KK[start:end, end:]
    return rounded_OK


def to_bf16(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The nearest numbers that bf16 can hold, ties to even, as float64. Finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)
