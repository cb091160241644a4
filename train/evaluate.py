"""Runs a profile over synthetic slides with the bedside's assembler, calibration, marks, posterior and decision, in
eager fp32.

Decides no weights. Must not know how a profile was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors

from models.calibration import calibrate
from models.contract import Prediction
from models.decision import Decision, decide
from models.domain import Marks, Reference, marks
from models.posterior import Posterior, Tally, combine, to_fixed
from models.profile import LoadedProfile, Profile, load_profile
from models.srh.classifier import Classifier, build_classifier, load_state
from models.srh.config import SrhInput, srh_input, srh_network
from models.srh.intensity import intensity_statistics
from train.finetune import network_input
from train.foreign import Kind
from train.phantom_set import cut_slide, slide_of

BATCH = 8
Outputs = Callable[[NDArray[np.uint16]], Prediction]
"""Raw patches uint16 [N, 2, H, W] to what the head emits, float32 [N, K], and their "embedding", [N, E]."""


@dataclass(frozen=True)
class SlideResult:
    """What a profile said of one slide."""

    seed: int
    truth: int
    posterior: Posterior
    used_probabilities: NDArray[np.float64]
    """Calibrated probabilities of each used patch, [N, K]."""
    decision: Decision
    reason: str
    """Key of models.decision.REASONS."""

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


def outputs_of(network: Classifier, spec: SrhInput) -> Outputs:
    """A network as a function of raw patches; always in batches of 8, the last one padded, so that the batch
    a patch lies in does not change its bits."""
    judging = network.with_embedding().eval()

    def outputs(pixels_N2HW: NDArray[np.uint16]) -> Prediction:
        emitted, embeddings = [], []
        with torch.inference_mode():
            for start in range(0, len(pixels_N2HW), BATCH):
                part = pixels_N2HW[start : start + BATCH]
                padding = [(0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)]
                y_BK, embedding_BE = judging(network_input(np.pad(part, padding), spec))
                emitted.append(y_BK.numpy()[: len(part)])
                embeddings.append(embedding_BE.numpy()[: len(part)])
        return {network.emits: np.concatenate(emitted), "embedding": np.concatenate(embeddings)}

    return outputs


def evaluate_slides(
    spec: Profile,
    outputs: Outputs,
    reference: Reference | None,
    seeds: Iterable[int],
    height_px: int,
    foreign: Kind | None = None,
) -> Iterator[SlideResult]:
    """Judge one phantom slide per seed, or a foreign picture made of it, as the daemon does: cut, gate, predict,
    calibrate, mark, aggregate, decide."""
    rule = spec.aggregation
    for seed in seeds:
        slide = slide_of(seed, height_px)
        tally = Tally(len(spec.classes))
        inputs = list(cut_slide(slide, srh_input(spec), foreign))
        used = [item for item in inputs if item.rejected is None]
        p_NK = np.zeros((0, len(spec.classes)))
        if used:
            pixels_N2HW = np.stack([item.pixels for item in used])
            prediction = outputs(pixels_N2HW)
            p_NK = calibrate(prediction[srh_network(spec).emits], spec.calibration, srh_network(spec).emits)
            borne = _marks(reference, pixels_N2HW, prediction)
            for item, p_K, marks_of_patch in zip(used, p_NK, borne, strict=True):
                tally.use(item.key, to_fixed(p_K), marks_of_patch)
        for item in inputs:
            if item.rejected is not None:
                tally.reject(item.key, item.rejected)
        posterior = combine([tally], len(spec.classes), independence=rule.independence, mass=rule.interval)
        yield SlideResult(seed, slide.label, posterior, p_NK, *decide(posterior, spec, complete=True))


def _marks(
    reference: Reference | None, pixels_N2HW: NDArray[np.uint16], prediction: Prediction
) -> Sequence[Marks | None]:
    if reference is None:
        return [None] * len(pixels_N2HW)
    return marks(reference, intensity_statistics(pixels_N2HW), prediction["embedding"])
