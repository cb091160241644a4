"""Two optional corrections of a profile: CH3 shifted onto CH2, and the flat field of a patch."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

BLUR_PX = 301
BLUR_SIGMA_PX = 301.0
FLAT_LEVEL = 10_000.0


def translation(fixed_HW: NDArray[np.uint16], moving_HW: NDArray[np.uint16], limit_px: int) -> tuple[int, int]:
    """How far (dy, dx) `moving` is displaced against `fixed`: moving[y + dy, x + dx] ≈ fixed[y, x].

    Phase correlation (Kuglin and Hines 1975) on mean-free, Hann-windowed images; whole pixels within ±limit_px.
    """
    window_HW = np.hanning(fixed_HW.shape[0])[:, None] * np.hanning(fixed_HW.shape[1])[None, :]
    a = np.fft.rfft2((fixed_HW - fixed_HW.mean()) * window_HW)
    b = np.fft.rfft2((moving_HW - moving_HW.mean()) * window_HW)
    cross = b * a.conj()
    cross /= np.maximum(np.abs(cross), 1e-12)
    peak_HW = np.fft.irfft2(cross, s=fixed_HW.shape)
    reach = np.arange(-limit_px, limit_px + 1)
    near = peak_HW[np.ix_(reach, reach)]
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    return int(reach[row]), int(reach[column])


def flat_field(patch_2HW: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """x / GaussianBlur(301, σ 301) × 10000 per channel, clipped to uint16 (SRH-FACTS, "From strip to network input").

    Borders are mirrored without repeating the edge pixel. A blank patch stays zero.
    """
    rows_HH, columns_WW = _blur_matrix(patch_2HW.shape[1]), _blur_matrix(patch_2HW.shape[2])
    x_2HW = patch_2HW.astype(np.float64)
    blurred_2HW = rows_HH @ x_2HW @ columns_WW.T
    flat_2HW = np.divide(x_2HW * FLAT_LEVEL, blurred_2HW, out=np.zeros_like(x_2HW), where=blurred_2HW > 0)
    return np.clip(np.rint(flat_2HW), 0, 65535).astype(np.uint16)


@cache
def _blur_matrix(length: int) -> NDArray[np.float64]:
    """[L, L]: row i holds the weights that blur sample i, mirrored borders folded in."""
    reach = np.arange(BLUR_PX) - BLUR_PX // 2
    kernel = np.exp(-(reach.astype(np.float64) ** 2) / (2 * BLUR_SIGMA_PX**2))
    kernel /= kernel.sum()
    period = 2 * (length - 1)
    matrix = np.zeros((length, length))
    for i in range(length):
        source = np.abs(i + reach) % period
        np.add.at(matrix[i], np.where(source >= length, period - source, source), kernel)
    return matrix
