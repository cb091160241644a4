"""models.srh.classifier: the whole network's keys, sizes, cost, and strict loading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.srh.classifier import Classifier, build_classifier, load_state, state_for_profile
from models.srh.config import SrhNetwork

NARROW = SrhNetwork(encoder="resnet18", width=4)


def narrow(**changes: object) -> Classifier:
    """A small network in evaluation mode."""
    torch.manual_seed(0)
    return build_classifier(NARROW.model_copy(update=changes), classes=4).eval()


def test_published_state_dict() -> None:
    """The published network has 365 keys under `model.`: 318 of the encoder and 47 of the head."""
    state = state_for_profile(build_classifier(SrhNetwork(published_quirks=True), classes=4))
    assert len(state) == 365
    assert sum(key.startswith("model.bb.") for key in state) == 318
    assert sum(key.startswith("model.head.") for key in state) == 47


def test_cost_of_the_full_network() -> None:
    """A 300 px patch costs 15.26 GFLOP (2 per multiply-add) with ResNet-50 and the transformer head."""
    network = build_classifier(SrhNetwork(), classes=4).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 300, 300))
    assert counter.get_total_flops() / 1e9 == pytest.approx(15.26, abs=0.01)


@pytest.mark.parametrize("head", ["transformer", "mlp"])
@pytest.mark.parametrize("classes", [2, 5])
def test_shapes(head: str, classes: int) -> None:
    """[B, 3, 300, 300] gives [B, K]; `embed` gives the embedding that the head reads."""
    network = build_classifier(NARROW.model_copy(update={"head": head}), classes=classes).eval()
    x = torch.rand(2, 3, 300, 300)
    with torch.no_grad():
        assert network(x).shape == (2, classes)
        assert network.embed(x).shape == (2, 32)
        torch.testing.assert_close(network.head(network.embed(x)), network(x))


@pytest.mark.parametrize("head", ["transformer", "mlp"])
def test_the_embedding_comes_beside_the_answer(head: str) -> None:
    """What engines compile gives the very bits of `forward` and of `embed`, in this order."""
    network = narrow(head=head)
    x = torch.rand(2, 3, 300, 300)
    with torch.no_grad():
        emitted, embedding = network.with_embedding()(x)
        assert torch.equal(emitted, network(x))
        assert torch.equal(embedding, network.embed(x))


@pytest.mark.parametrize(("quirks", "emits"), [(True, "probabilities"), (False, "logits")])
def test_says_what_it_emits(quirks: bool, emits: str) -> None:
    """`emits` names the output, and softmax inside the head means rows that sum to 1."""
    network = narrow(published_quirks=quirks)
    assert network.emits == emits
    with torch.no_grad():
        total = network(torch.rand(1, 3, 64, 64)).sum().item()
    assert (abs(total - 1) < 1e-5) == quirks


def test_narrow_weights_are_small() -> None:
    """The phantom's size (ResNet-18, width 16) stays below 4 MB with the transformer head."""
    state = state_for_profile(build_classifier(SrhNetwork(encoder="resnet18", width=16), classes=4))
    assert sum(value.numel() * value.element_size() for value in state.values()) < 4_000_000


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("quirks", [True, False])
def test_round_trip(prefix: str, quirks: bool) -> None:
    """Weights loaded under their published names, with or without prefix, give the same answers."""
    source, target = narrow(published_quirks=quirks), narrow(published_quirks=quirks)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {prefix + key.removeprefix("model."): value for key, value in state_for_profile(source).items()}
    load_state(target, state)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source(x), target(x))


def test_exported_weights_are_copies() -> None:
    """Training on does not change weights that were already taken."""
    network = narrow()
    state = state_for_profile(network)
    with torch.no_grad():
        network.bb.conv1.weight.zero_()
    assert state["model.bb.conv1.weight"].abs().sum() > 0


def test_published_positions_are_accepted() -> None:
    """A stored position table is accepted where the network computes its own, if the numbers agree."""
    stored = narrow(published_quirks=True)
    state = {k: v for k, v in state_for_profile(stored).items() if ".head.norm." not in k}
    load_state(narrow(), state)
    state["model.head.transformer_layers.1.pos_encoder.pe"] = torch.zeros(5000, 1, 32)
    with pytest.raises(ValueError, match=r"1 mismatched \(head.transformer_layers.1.pos_encoder.pe differs"):
        load_state(narrow(), state)


def _without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != key}


def test_misfits_are_listed_and_nothing_is_loaded() -> None:
    """Missing, unexpected and mismatched keys are all named, and the module keeps its weights."""
    network = narrow()
    before = state_for_profile(network)
    state = {key: value + 1 for key, value in _without(before, "model.head.output.bias").items()}
    state["model.extra"] = torch.zeros(1)
    state["model.bb.bn1.weight"] = torch.zeros(5)
    state["model.bb.bn1.bias"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError) as caught:
        load_state(network, state)
    text = str(caught.value)
    assert "1 missing (head.output.bias)" in text
    assert "1 unexpected (extra)" in text
    assert "bb.bn1.weight is [5], expected [4]" in text
    assert "bb.bn1.bias is torch.int64, expected torch.float32" in text
    assert all(torch.equal(value, before[key]) for key, value in state_for_profile(network).items())


def test_no_weights_at_all() -> None:
    """An empty file is refused, not loaded."""
    with pytest.raises(ValueError, match="missing"):
        load_state(narrow(), {})
