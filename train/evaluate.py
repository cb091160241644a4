"""Runs a profile over synthetic slides with the assembler, calibration and posterior of the bedside, in eager fp32.

Decides no weights. Must not know how a profile was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import nn

from models.calibration import calibrate
from models.posterior import Posterior, Tally, combine, to_fixed
from models.profile import LoadedProfile, Profile, load_profile
from models.srh.classifier import build_classifier, load_state
from models.srh.config import SrhInput, srh_input, srh_network
from train.finetune import network_input
from train.phantom_set import cut_slide, slide_of

BATCH = 8
Outputs = Callable[[NDArray[np.uint16]], NDArray[np.float32]]
"""Raw patches uint16 [N, 2, H, W] to what the head emits, float32 [N, K]."""


@dataclass(frozen=True)
class SlideResult:
    """What a profile said of one slide."""

    seed: int
    truth: int
    posterior: Posterior
    used_probabilities: NDArray[np.float64]
    """Calibrated probabilities of each used patch, [N, K]."""

    @property
    def correct(self) -> bool:
        """Whether the most probable class is the truth; False when nothing was used."""
        return self.posterior.predicted == self.truth


def read_profile(folder: Path) -> LoadedProfile:
    """Load and verify a profile folder; raises ProfileInvalid or OSError."""
    return load_profile(lambda name: (folder / name).read_bytes())


def eager(spec: Profile, weights: bytes) -> Outputs:
    """The profile's network in eager fp32, in batches of 8; raises ValueError when the weights do not fit."""
    network = build_classifier(srh_network(spec), classes=len(spec.classes))
    load_state(network, load_tensors(weights))
    return outputs_of(network, srh_input(spec))


def outputs_of(network: nn.Module, spec: SrhInput) -> Outputs:
    """A network as a function of raw patches; always in batches of 8, the last one padded, so that the batch
    a patch lies in does not change its bits."""
    network.eval()

    def outputs(pixels_N2HW: NDArray[np.uint16]) -> NDArray[np.float32]:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(pixels_N2HW), BATCH):
                part = pixels_N2HW[start : start + BATCH]
                padding = [(0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)]
                rows.append(network(network_input(np.pad(part, padding), spec)).numpy()[: len(part)])
        return np.concatenate(rows)

    return outputs


def evaluate_slides(spec: Profile, outputs: Outputs, seeds: Iterable[int], height_px: int) -> Iterator[SlideResult]:
    """Judge one phantom slide per seed: cut, gate, predict, calibrate, aggregate, as the daemon does."""
    emits = srh_network(spec).emits
    rule = spec.aggregation
    for seed in seeds:
        slide = slide_of(seed, height_px)
        tally = Tally(len(spec.classes))
        inputs = list(cut_slide(slide, srh_input(spec)))
        used = [item for item in inputs if item.rejected is None]
        p_NK = np.zeros((0, len(spec.classes)))
        if used:
            p_NK = calibrate(outputs(np.stack([item.pixels for item in used])), spec.calibration, emits)
        for item, p_K in zip(used, p_NK, strict=True):
            tally.use(item.key, to_fixed(p_K))
        for item in inputs:
            if item.rejected is not None:
                tally.reject(item.key, item.rejected)
        posterior = combine([tally], len(spec.classes), independence=rule.independence, mass=rule.interval)
        yield SlideResult(seed, slide.label, posterior, p_NK)
