"""Training: reproducible to the bit, augmentation and schedule as stated, trouble reported at once."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from models.srh.config import SrhInput
from train.export import weights_of
from train.finetune import TrainingDiverged, augment, finetune, learning_rate, reproducible
from train.phantom_set import PatchSet, collect, cut_strip, slide_of
from train.recipes import Recipe, load_recipe

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "phantom.yaml"
SHORT = ["optimisation.batch=4", "optimisation.stages=[{crop_px: 64, epochs: 2}, {crop_px: 96, epochs: 1}]"]


def short_recipe(*overrides: str) -> Recipe:
    """The shipped recipe with a tiny network and three epochs."""
    return load_recipe(RECIPE, [*SHORT, "network.width=4", "network.token_dim=16", *overrides])


@pytest.fixture(scope="module")
def patches() -> PatchSet:
    """Sixteen patches of four slides."""
    return collect(range(4), 2000, 4, load_recipe(RECIPE).input)


def test_same_recipe_gives_the_same_bits(patches: PatchSet) -> None:
    """Two runs of a recipe give identical weight files and losses; another seed gives others."""

    def run(seed: int) -> tuple[bytes, list[float]]:
        losses: list[float] = []
        network = finetune(short_recipe(f"seed={seed}"), patches, lambda _step, _steps, loss: losses.append(loss))
        assert not network.training
        return weights_of(network), losses

    first = run(1)
    assert run(1) == first
    assert run(2)[0] != first[0]
    assert len(first[1]) == 12


def test_random_state_and_settings_are_put_back(patches: PatchSet) -> None:
    """A run leaves torch's random state, threads and determinism as they were, and does not depend on them."""
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = weights_of(finetune(short_recipe(), patches, lambda *_: None))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(4)
    assert weights_of(finetune(short_recipe(), patches, lambda *_: None)) == first


def test_settings_are_put_back_after_an_error() -> None:
    """Also when the run fails, torch is as it was."""
    with pytest.raises(RuntimeError, match="trouble"), reproducible(1, 1):
        raise RuntimeError("trouble")
    assert not torch.are_deterministic_algorithms_enabled()


def test_loss_that_is_not_finite_stops_the_run(patches: PatchSet) -> None:
    """A diverging run ends at once and says at which step."""
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 12"):
        finetune(short_recipe("optimisation.learning_rate=1e30"), patches, lambda *_: None)


def test_learning_rate_rises_and_falls() -> None:
    """Linear to the peak over the warm-up, half a cosine down to nearly nothing, never above the peak."""
    rates = [learning_rate(step, 100, 2e-3, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3])
    assert rates[5] == 2e-3
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert rates[52] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 47 / 95)))
    assert rates[-1] < 2e-6
    assert learning_rate(0, 10, 1.0, 0.0) == 1.0


def test_augmentation_only_moves_pixels() -> None:
    """A crop is one of the eight turned and mirrored forms of a window; both channels move together."""
    patch = np.arange(2 * 12 * 12, dtype=np.uint16).reshape(2, 12, 12)
    random = np.random.Generator(np.random.PCG64(0))
    forms = set()
    for _ in range(400):
        crop = augment(patch, 9, random)
        assert crop.shape == (2, 9, 9)
        assert np.array_equal(crop[1].astype(int) - crop[0], np.full((9, 9), 144))
        least = int(crop[0].min())
        window = patch[:, least // 12 : least // 12 + 9, least % 12 : least % 12 + 9]
        candidates = [np.rot90(w, k, (1, 2)) for w in (window, window[:, :, ::-1]) for k in range(4)]
        matches = [i for i, c in enumerate(candidates) if np.array_equal(c, crop)]
        assert len(matches) == 1
        forms.add((matches[0], least))
    assert {form for form, _ in forms} == set(range(8))
    assert len({least for _, least in forms}) == 16


def test_set_holds_only_gated_patches_of_the_assembler(patches: PatchSet) -> None:
    """Every patch of a set is one that the bedside's assembler cut and accepted, with its slide's label."""
    assert len(patches) == 16
    assert patches.pixels.shape == (16, 2, 300, 300)
    for seed in range(4):
        mine = patches.seeds == seed
        assert set(patches.labels[mine]) == {seed % 4}
        cut = cut_strip(slide_of(seed, 2000), 0, load_recipe(RECIPE).input)
        accepted = [item.pixels for item in cut if item.rejected is None]
        assert len(cut) == 21
        for pixels in patches.pixels[mine]:
            assert any(np.array_equal(pixels, other) for other in accepted)


def test_set_without_tissue_is_refused() -> None:
    """When the gate rejects everything there is nothing to train on, and that is said."""
    closed = SrhInput.model_validate({"gate": {"min_mean_counts": 65535.0}})
    with pytest.raises(ValueError, match="no patch of these slides"):
        collect([0], 2000, 4, closed)
