"""Supervised training of the SRH network on labelled patches: cross-entropy on logits, reproducible to the bit.

Must not know where patches come from or what a profile's files look like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.srh.channels import to_network_input
from models.srh.classifier import Classifier, build_classifier
from models.srh.config import SrhInput
from train.phantom_set import PatchSet
from train.recipes import Optimisation, Recipe

Report = Callable[[int, int, float], None]
"""Called after each step with (step, steps, loss)."""


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed torch, allow only deterministic algorithms and fix the thread count; put everything back after."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Linear warm-up to `peak`, then a half cosine to 0 at `steps`. Steps count from 0."""
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def augment(patch_2HW: NDArray[np.uint16], crop_px: int, random: np.random.Generator) -> NDArray[np.uint16]:
    """A random crop, turned by a multiple of 90° and mirrored: uint16 [2, crop_px, crop_px]."""
    height, width = patch_2HW.shape[1:]
    y, x, turns, mirror = random.integers((height - crop_px + 1, width - crop_px + 1, 4, 2))
    crop_2hw = np.rot90(patch_2HW[:, y : y + crop_px, x : x + crop_px], turns, axes=(1, 2))
    return crop_2hw[:, :, ::-1] if mirror else crop_2hw


def network_input(pixels_B2HW: NDArray[np.uint16], spec: SrhInput) -> torch.Tensor:
    """Counts uint16 [B, 2, H, W] to the network's float32 [B, 3, H, W]."""
    return torch.from_numpy(
        to_network_input(pixels_B2HW, scale=spec.scale, third_channel_base=spec.third_channel_base)
    )


def _batches(
    data: PatchSet, plan: Optimisation, random: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.int64]]]:
    """Every epoch of every stage: shuffled whole batches of augmented patches with their labels."""
    batch = min(plan.batch, len(data))
    for stage in plan.stages:
        for _ in range(stage.epochs):
            order = random.permutation(len(data))
            for start in range(0, len(data) - batch + 1, batch):
                chosen = order[start : start + batch]
                crops = [augment(data.pixels[i], stage.crop_px, random) for i in chosen]
                yield np.stack(crops), data.labels[chosen]


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and filters only, not on offsets and normalisation."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    other = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


def _lay_out(network: nn.Module, order: torch.memory_format) -> None:
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)


def finetune(recipe: Recipe, data: PatchSet, report: Report) -> Classifier:
    """Train the recipe's network from scratch and return it in evaluation mode.

    The same recipe, patches and machine give the same bits. Raises TrainingDiverged at the first loss that is
    not finite.
    """
    plan = recipe.optimisation
    random = np.random.Generator(np.random.PCG64(recipe.seed))
    steps = sum(stage.epochs for stage in plan.stages) * (len(data) // min(plan.batch, len(data)))
    with reproducible(recipe.seed, plan.threads):
        network = build_classifier(recipe.network, len(recipe.classes)).train()
        _lay_out(network, torch.channels_last)  # twice as fast on a CPU
        optimiser = torch.optim.AdamW(_groups(network, plan.weight_decay), lr=plan.learning_rate)
        for step, (pixels_B2HW, labels_B) in enumerate(_batches(data, plan, random)):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, plan.learning_rate, plan.warmup_fraction)
            x_BCHW = network_input(pixels_B2HW, recipe.input).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(network(x_BCHW), torch.from_numpy(labels_B))
            if not math.isfinite(loss.item()):
                raise TrainingDiverged(f"the loss is {loss.item()} at step {step} of {steps}")
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            report(step + 1, steps, loss.item())
    _lay_out(network, torch.contiguous_format)
    return network.eval()
