"""models.srh.resnet: published names and sizes, and arithmetic against a plain loop over the blocks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.srh.resnet import ResNet

# Parameters without fc, and state-dict keys: torchvision's models less their classifier.
PUBLISHED = {
    "resnet18": (11_176_512, 120, 512),
    "resnet34": (21_284_672, 216, 512),
    "resnet50": (23_508_032, 318, 2048),
    "resnet101": (42_500_160, 624, 2048),
}


@pytest.mark.parametrize("encoder", PUBLISHED)
def test_published_sizes(encoder: str) -> None:
    """Parameter count, key count and embedding length are those of the published networks."""
    network = ResNet(encoder)
    parameters, keys, embedding = PUBLISHED[encoder]
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == keys
    assert network.embedding_dim == embedding


def test_published_names_and_shapes() -> None:
    """ResNet-50 has torchvision's names, and strides on the 3x3 convolution."""
    network = ResNet("resnet50")
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.running_mean"] == (256,)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["layer3.5.bn2.num_batches_tracked"] == ()
    assert not any(name.startswith("fc") for name in shapes)
    block = network.get_submodule("layer2.0")
    assert block.get_submodule("conv1").stride == (1, 1)
    assert block.get_submodule("conv2").stride == (2, 2)


@pytest.mark.parametrize(("encoder", "width", "expected"), [("resnet18", 16, 128), ("resnet50", 8, 256)])
def test_embedding_shape(encoder: str, width: int, expected: int) -> None:
    """A batch of 300 px inputs gives one embedding of width * 8 * expansion each."""
    network = ResNet(encoder, width).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 300, 300)).shape == (2, expected)


def test_unknown_encoder() -> None:
    """An unknown encoder is refused with the known ones."""
    with pytest.raises(ValueError, match="resnet18, resnet34, resnet50, resnet101"):
        ResNet("resnet19")


def _norm(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    scale = w[f"{name}.weight"] / torch.sqrt(variance + 1e-5)
    return (x - mean[:, None, None]) * scale[:, None, None] + w[f"{name}.bias"][:, None, None]


def _written_out(w: Mapping[str, Tensor], x: Tensor, counts: tuple[int, ...], convolutions: int) -> Tensor:
    """The network from its weights alone, in float64, block by block."""
    strided = 1 if convolutions == 2 else 2
    x = F.conv2d(x, w["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(torch.relu(_norm(x, w, "bn1")), 3, stride=2, padding=1)
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            name, y, shortcut = f"layer{stage}.{block}", x, x
            stride = 2 if stage > 1 and block == 0 else 1
            for i in range(1, convolutions + 1):
                kernel = w[f"{name}.conv{i}.weight"]
                y = F.conv2d(y, kernel, stride=stride if i == strided else 1, padding=kernel.shape[-1] // 2)
                y = _norm(y, w, f"{name}.bn{i}")
                y = torch.relu(y) if i < convolutions else y
            if f"{name}.downsample.0.weight" in w:
                shortcut = F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
                shortcut = _norm(shortcut, w, f"{name}.downsample.1")
            x = torch.relu(y + shortcut)
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("encoder", "counts", "convolutions"), [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)]
)
def test_arithmetic(encoder: str, counts: tuple[int, ...], convolutions: int) -> None:
    """The module computes what its weights say when the blocks are written out one after another."""
    torch.manual_seed(1)
    network = ResNet(encoder, width=8)
    x = torch.rand(2, 3, 64, 48)
    network.train()
    with torch.no_grad():
        network(x)  # statistics that are not 0 and 1
        network.eval().double()
        expected = _written_out(network.state_dict(), x.double(), counts, convolutions)
        torch.testing.assert_close(network(x.double()), expected)
