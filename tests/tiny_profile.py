"""A profile whose slides are tiny, so that hundreds of them take seconds; its real network overflows on one patch.

Two scan strips of 128 x 68 px give two patches each. Weights are random: answers mean nothing, bits do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from agent.imager import Layout, plan
from models.profile import LoadedProfile, load_profile
from models.srh.channels import to_network_input
from models.srh.classifier import Classifier, build_classifier, state_for_profile
from models.srh.config import SrhNetwork

SIDE, HEIGHT, WIDTH, STRIPS = 64, 128, 68, 2
PATCHES = STRIPS * HEIGHT // SIDE
"""Of one slide."""
INPUT = {
    "size_px": SIDE,
    "strip_width_px": WIDTH,
    "trim_px": 2,
    "strips_by_height": {str(HEIGHT): STRIPS},
    "gate": {"min_mean_counts": 0, "min_std_counts": 10, "max_saturated_fraction": 1, "min_ch3_ch2_ratio": 0},
}
NETWORK = {"encoder": "resnet18", "width": 4, "head": "mlp", "hidden": [8, 8, 8]}
Pixels = NDArray[np.uint16]


def texture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Unlike any other seed's, uint16 [2, height, width], and dim: below 12,000 counts."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(3000, 12_000, (2, -(-height // 8), -(-width // 8)))
    return np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width].astype(np.uint16)


def poison(height: int = SIDE, width: int = SIDE) -> Pixels:
    """What the network overflows on: a chequerboard of full contrast, its channels apart."""
    rows, columns = np.mgrid[:height, :width]
    board = np.where((rows // 8 + columns // 8) % 2, 65_535, 0)
    return np.stack([board, 65_535 - board]).astype(np.uint16)


def strips_of(seed: int) -> list[Pixels]:
    """The scan strips of one slide."""
    return [texture(STRIPS * seed + index) for index in range(STRIPS)]


def poisoned(strips: list[Pixels]) -> list[Pixels]:
    """The same slide, its first patch replaced by one that the network cannot run."""
    first = strips[0].copy()
    first[:, :SIDE] = poison(SIDE, WIDTH)
    return [first, *strips[1:]]


def write_slide(folder: Path, strips: list[Pixels], patient: str, slide: str, layout: Layout = "strips-b") -> int:
    """Write the files of a slide below `folder`; returns their number."""
    files = list(plan(strips, layout, patient, slide))
    for file in files:
        path = folder / PurePosixPath(file.relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    return len(files)


def write_tiny_profile(folder: Path) -> LoadedProfile:
    """Write profile.yaml, weights and golden pair, and load them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_classifier(SrhNetwork.model_validate(NETWORK), classes=4)
    golden = np.stack([texture(seed, SIDE, SIDE) for seed in range(10_000, 10_006)])
    with torch.no_grad():
        network.train()
        for _ in range(30):  # sensible BatchNorm statistics
            network(_prepared(golden))
        _make_overflow(network.eval(), golden)
        outputs = network(_prepared(golden)).numpy()
    files = {
        "weights.safetensors": save_tensors(state_for_profile(network)),
        "golden.safetensors": save_arrays({"inputs": golden, "outputs": outputs}),
    }
    manifest = {
        "name": "tiny",
        "version": 1,
        "modality": "srh",
        "classes": ["a", "b", "c", "d"],
        "input": INPUT,
        "network": NETWORK,
        "minimum_patches": 1,
        "licence": "none",
        "intended_use": "tests",
        "source": "random",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "profile.yaml").write_text(yaml.safe_dump(manifest))
    return load_profile(lambda name: (folder / name).read_bytes())


def _prepared(x_NCHW: Pixels) -> torch.Tensor:
    return torch.from_numpy(to_network_input(x_NCHW, scale=65536.0, third_channel_base=5000.0))


def _make_overflow(network: Classifier, healthy: Pixels) -> None:
    """Scale the head's layers up and down again by powers of two, which changes no bit of an answer, so far that the
    one patch alone leaves the range of fp32.
    """
    linear = [network.head.get_submodule(f"layers.{2 * number}") for number in range(4)]
    linear[1].weight.abs_()  # type: ignore[operator]
    largest = {name: float(_second_layer(network, x).abs().max()) for name, x in _inputs(healthy).items()}
    assert largest["poison"] > 4 * largest["healthy"], largest
    up = 126 - int(np.ceil(np.log2(largest["healthy"])))
    total = 0
    for layer, scale in zip(linear, (up // 2, up - up // 2, -(up // 2), up // 2 - up), strict=True):
        total += scale
        layer.weight.mul_(2.0**scale)  # type: ignore[operator]
        layer.bias.mul_(2.0**total)  # type: ignore[operator]


def _inputs(healthy: Pixels) -> dict[str, Pixels]:
    return {"healthy": healthy, "poison": poison()[np.newaxis]}


def _second_layer(network: Classifier, x_NCHW: Pixels) -> torch.Tensor:
    found: torch.Tensor = network.head.layers[:3](network.embed(_prepared(x_NCHW)))  # type: ignore[index, operator]
    return found
