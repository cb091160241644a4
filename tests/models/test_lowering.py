"""models.lowering: the same network in fewer bits, and as few roundings as possible."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agent.engine.eager import load_network
from models.lowering import LARGEST, Autocast, Converted, arithmetic_census, columns, exported, folded, settled
from models.profile import LoadedProfile
from models.registry import MODALITIES
from tests.agent.engine.small_profile import textured, write_profile


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LoadedProfile:
    """A small network of random weights."""
    return write_profile(Path(tmp_path_factory.mktemp("profile")), sizes={"layers": 1})


@pytest.mark.parametrize("is_careful", [True, False])
def test_what_is_compiled_computes_in_the_precision_asked_for(is_careful: bool, profile: LoadedProfile) -> None:
    """Every convolution and product of the exported graph is bf16, inputs and outputs are fp32, and it is the same
    network: close to eager.
    """
    network = load_network(profile)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.with_embedding()(x)
        whole = network.with_embedding()
        module = Autocast(whole, "bf16", "cpu") if is_careful else Converted(whole, "bf16")
        program = exported(module, x)
        found = module(x)
    census = arithmetic_census(program)
    assert census.keys() == {"bf16"} and census["bf16"] >= 20 + 6
    assert columns(program) == [4, 64]
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert 0 < float((value - reference).abs().max()) < 0.05 * float(reference.abs().max())


def test_folding_changes_rounding_only(profile: LoadedProfile) -> None:
    """Every BatchNorm of the encoder is folded, the numbers stay, and the network that was given is as it was."""
    network, x = load_network(profile).with_embedding(), torch.rand(2, 3, 64, 64)
    without = folded(network, x)
    kinds = [type(module) for whole in (network, without) for module in whole.modules()]
    assert kinds.count(torch.nn.BatchNorm2d) == 20  # of ResNet-18, none of them in the folded one
    with torch.no_grad():
        for found, expected in zip(without(x), network(x), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Branching(torch.nn.Module):
    """A convolution that two read, one that is used twice, and one that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Conv2d(3, 3, 1) for _ in range(3))
        self.d, self.e, self.f = (torch.nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Some sum."""
        shared = self.a(x)
        y: torch.Tensor = self.d(shared) + shared + self.e(self.b(x)) + self.b(x) + self.f(self.c(x))
        return y


def test_only_what_may_be_folded_is() -> None:
    """A convolution whose values or weights serve somebody else as well stays as it is."""
    torch.manual_seed(0)
    network, x = Branching(), torch.rand(2, 3, 4, 4)
    for _ in range(3):
        network(x)
    without = folded(network.eval(), x)
    assert isinstance(without, Branching)
    assert [type(m).__name__ for m in (without.d, without.e, without.f)] == ["BatchNorm2d", "BatchNorm2d", "Identity"]
    with torch.no_grad():
        torch.testing.assert_close(without(x), network(x))


def test_raw_counts_in_front_of_the_network(profile: LoadedProfile) -> None:
    """With the scaling inside, the module takes the bits of raw counts and gives the same bits as behind the host's
    scaling: that is what runs on a card.
    """
    modality = MODALITIES[profile.spec.modality]
    network = load_network(profile).with_embedding()
    inputs = textured(3)
    with torch.no_grad():
        outside = Autocast(network, "bf16", "cpu")(torch.from_numpy(modality.to_network_input(profile.spec, inputs)))
        scaling = modality.build_scaling(profile.spec)
        inside = Autocast(network, "bf16", "cpu", scaling)(torch.from_numpy(inputs.view(np.int16)))
    assert [torch.equal(a, b) for a, b in zip(inside, outside, strict=True)] == [True, True]
    program = exported(Autocast(network, "fp16", "cpu", scaling), torch.from_numpy(inputs.view(np.int16)))
    assert arithmetic_census(program).keys() == {"fp16"}


def test_settled_convolutions_are_in_bf16_and_lose_less() -> None:
    """Filters and offsets are numbers that bf16 holds, and on bright inputs the network moves far less than with
    weights rounded to the nearest. The given network is not touched."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    x_NCHW = 5 + 0.1 * torch.randn(4, 3, 48, 48)
    before = [p.clone() for p in network.parameters()]
    found = settled(network, x_NCHW, "bf16")
    nearest = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in nearest.parameters():
            parameter.copy_(parameter.bfloat16().float())
        expected = network(x_NCHW)
        moved = [float((other(x_NCHW) - expected).abs().mean()) for other in (found, nearest)]
    assert all(torch.equal(p, p.bfloat16().float()) for p in found.parameters())
    assert moved[0] < 0.3 * moved[1]
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_other_precisions_and_large_convolutions_stay_as_they_are() -> None:
    """fp32 needs no rounding; a convolution of very many inputs gains little from it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(200, 2, 3)).eval()
    x_NCHW = torch.randn(1, 200, 5, 5)
    assert settled(network, x_NCHW, "fp32") is network
    assert LARGEST < 200 * 9
    found = settled(network, x_NCHW, "bf16")
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), found.parameters(), strict=True))
