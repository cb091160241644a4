"""The published way: one TIFF per patch, read and transformed one by one, a DataLoader, eager fp32 in batches of 32.

Written after the public evaluation scripts of SpineXtract and OpenSRH, to have something to compare with; shares
nothing with the agent but the network and its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.profile import LoadedProfile
from models.srh.config import srh_input

BATCH = 32


class PatchFiles(Dataset[Tensor]):
    """Two-page TIFFs of 2 × 300 × 300 counts as float32 network inputs [3, H, W]."""

    def __init__(self, paths: Sequence[Path], scale: float, third_channel_base: float) -> None:
        self._paths = paths
        self._scale = scale
        self._base = third_channel_base

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        return to_input(tifffile.imread(self._paths[index]), self._scale, self._base)


def to_input(counts_2HW: NDArray[np.uint16], scale: float, third_channel_base: float) -> Tensor:
    """One patch of raw counts as the network's float32 input [3, H, W]."""
    x_2HW = torch.from_numpy(counts_2HW.astype(np.float32))
    subtracted_HW = x_2HW[1] - x_2HW[0] + third_channel_base
    return torch.clamp(torch.stack((subtracted_HW, x_2HW[0], x_2HW[1])) / scale, 0.0, 1.0)


def published_way(paths: Sequence[Path], profile: LoadedProfile, network: Any) -> NDArray[np.float32]:
    """What the head emits for patch files, float32 [N, K], in the order of `paths`.

    `network` is the profile's torch module in evaluation mode, contiguous, fp32. The files are read in the process
    itself: with a core or two, worker processes take from the network what they give.
    """
    spec = srh_input(profile.spec)
    loader = DataLoader(PatchFiles(paths, spec.scale, spec.third_channel_base), batch_size=BATCH, shuffle=False)
    with torch.no_grad():
        emitted = [network(x_BCHW) for x_BCHW in loader]
    return torch.cat(emitted).numpy()
