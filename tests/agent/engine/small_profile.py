"""A profile folder with a small network and random weights, for tests of the engines."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from models.profile import LoadedProfile, load_profile
from models.srh.channels import to_network_input
from models.srh.classifier import build_classifier, state_for_profile
from models.srh.config import SrhNetwork

SIDE = 64


def need_openvino() -> None:
    """Skip without openvino; fail where the tests are the gate."""
    if importlib.util.find_spec("openvino") is None:
        if os.environ.get("CI"):
            pytest.fail("openvino is not installed")
        pytest.skip("openvino is not installed: pip install 'spinextract-agent[cpu]'")


def need_compiler() -> None:
    """Skip without a C++ compiler, which builds of inductor need; fail where the tests are the gate."""
    if shutil.which("g++") is None:
        if os.environ.get("CI"):
            pytest.fail("g++ is not installed")
        pytest.skip("g++ is not installed: make system-packages")


def textured(count: int, seed: int = 0) -> NDArray[np.uint16]:
    """Raw inputs [count, 2, SIDE, SIDE] whose texture differs in grain and level."""
    rng = np.random.default_rng(seed)
    inputs = np.empty((count, 2, SIDE, SIDE), np.uint16)
    for i in range(count):
        grain = (1, 4, 8, 16)[i % 4]
        coarse = rng.integers(3000 + 2000 * (i % 4), 18000, (2, SIDE // grain, SIDE // grain))
        inputs[i] = np.kron(coarse, np.ones((1, grain, grain)))
    return inputs


def write_profile(
    folder: Path, *, seed: int = 0, quirks: bool = False, sizes: dict[str, int] | None = None
) -> LoadedProfile:
    """Write profile.yaml, weights and golden pair, and load them. `sizes` go to the network section."""
    folder.mkdir(parents=True, exist_ok=True)
    network_section = {"encoder": "resnet18", "width": 8, "published_quirks": quirks, **(sizes or {})}
    torch.manual_seed(seed)
    network = build_classifier(SrhNetwork.model_validate(network_section), classes=4)
    for parameter in network.head.get_submodule("transformer_layers").parameters():
        torch.nn.init.normal_(
            parameter, std=0.3
        )  # at its initial weights the head hardly attends: errors would not show
    inputs = textured(6, seed)
    x = torch.from_numpy(to_network_input(inputs, scale=65536.0, third_channel_base=5000.0))
    with torch.no_grad():
        network.train()
        for _ in range(30):  # sensible BatchNorm statistics
            network(x)
        outputs = network.eval()(x).numpy()
    files = {
        "weights.safetensors": save_tensors(state_for_profile(network)),
        "golden.safetensors": save_arrays({"inputs": inputs, "outputs": outputs}),
    }
    manifest = {
        "name": "small",
        "version": 1,
        "modality": "srh",
        "classes": ["a", "b", "c", "d"],
        "input": {"size_px": SIDE},
        "network": network_section,
        "licence": "none",
        "intended_use": "tests",
        "source": "random",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "profile.yaml").write_text(yaml.safe_dump(manifest))
    return read_profile(folder)


def read_profile(folder: Path) -> LoadedProfile:
    """Load a profile folder."""
    return load_profile(lambda name: (folder / name).read_bytes())
