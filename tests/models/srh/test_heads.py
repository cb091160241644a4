"""models.srh.heads: published keys, and the transformer head against explicit loops with the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.srh.heads import MlpHead, TransformerHead, sinusoids

Weights = Mapping[str, NDArray[np.float64]]
Vector = NDArray[np.float64]

BLOCK_KEYS = {
    "pos_encoder.pe": (5000, 1, 32),
    "self_attn.in_proj_weight": (96, 32),
    "self_attn.in_proj_bias": (96,),
    "self_attn.out_proj.weight": (32, 32),
    "self_attn.out_proj.bias": (32,),
    "linear1.weight": (128, 32),
    "linear1.bias": (128,),
    "linear2.weight": (32, 128),
    "linear2.bias": (32,),
    "norm1.weight": (32,),
    "norm1.bias": (32,),
    "norm2.weight": (32,),
    "norm2.bias": (32,),
}
OUTER_KEYS = {
    "input_projection.weight": (2048, 2048),
    "input_projection.bias": (2048,),
    "ffn.0.weight": (4, 2048),
    "ffn.0.bias": (4,),
    "output.weight": (4, 4),
    "output.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
}


def test_published_keys() -> None:
    """The published transformer head has exactly its 47 keys, with their shapes."""
    head = TransformerHead(2048, (), 4, published_quirks=True)
    blocks = {f"transformer_layers.{i}.{name}": shape for i in range(3) for name, shape in BLOCK_KEYS.items()}
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == blocks | OUTER_KEYS
    assert len(shapes) == 47


def test_keys_without_quirks() -> None:
    """Without the quirks there is no final norm and no stored position table; nothing else differs."""
    published = TransformerHead(128, (), 4, published_quirks=True).state_dict().keys()
    plain = TransformerHead(128, (), 4).state_dict().keys()
    extra = {"norm.weight", "norm.bias", *(f"transformer_layers.{i}.pos_encoder.pe" for i in range(3))}
    assert published - plain == extra
    assert plain <= published


def test_hidden_layer_names() -> None:
    """Hidden layers are ffn.0, ffn.3, ... in the transformer head and layers.0, layers.2, ... in the MLP."""
    transformer = TransformerHead(64, (16, 8), 4).state_dict()
    assert {key for key in transformer if key.startswith("ffn")} == {
        f"ffn.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")
    }
    assert MlpHead(64, (16,), 4).state_dict()["layers.2.weight"].shape == (4, 16)
    assert MlpHead(64, (), 4).state_dict()["layers.0.weight"].shape == (4, 64)


def test_positions_by_definition() -> None:
    """The position table is sin and cos of position / 10000^(2i/D), entry by entry."""
    table = sinusoids(70, 32)
    assert table.shape == (70, 1, 32)
    for position in range(70):
        for i in range(16):
            angle = position / 10000 ** (2 * i / 32)
            assert table[position, 0, 2 * i].item() == pytest.approx(math.sin(angle), abs=2e-5)
            assert table[position, 0, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=2e-5)


def _linear(w: Weights, name: str, x: Vector) -> Vector:
    return np.array([row @ x + b for row, b in zip(w[f"{name}.weight"], w[f"{name}.bias"], strict=True)])


def _layer_norm(w: Weights, name: str, x: Vector) -> Vector:
    normed: Vector = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
    return normed * w[f"{name}.weight"] + w[f"{name}.bias"]


def _gelu(x: Vector) -> Vector:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _softmax(x: Vector) -> Vector:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def _attention(w: Weights, name: str, tokens: list[Vector], heads: int) -> list[Vector]:
    """Attention token by token and head by head, as in Vaswani et al. 2017, section 3.2."""
    dim = len(tokens[0])
    size = dim // heads
    projected = [w[f"{name}.in_proj_weight"] @ token + w[f"{name}.in_proj_bias"] for token in tokens]
    mixed = []
    for query in projected:
        parts = []
        for head in range(heads):
            cut = [slice(k * dim + head * size, k * dim + (head + 1) * size) for k in range(3)]
            scores = np.array([query[cut[0]] @ key[cut[1]] / math.sqrt(size) for key in projected])
            weights = _softmax(scores)
            parts.append(sum(weight * value[cut[2]] for weight, value in zip(weights, projected, strict=True)))
        mixed.append(_linear(w, f"{name}.out_proj", np.concatenate(parts)))
    return mixed


def _written_out(w: Weights, embedding: Vector, token_dim: int, heads: int, *, quirks: bool) -> Vector:
    """The published head for one embedding, from its weights alone."""
    x = _linear(w, "input_projection", embedding)
    table = sinusoids(len(x) // token_dim, token_dim).double().numpy()[:, 0]
    for i in range(3):
        name = f"transformer_layers.{i}"
        tokens = [token + table[t] for t, token in enumerate(x.reshape(-1, token_dim))]
        normed = [_layer_norm(w, f"{name}.norm1", token) for token in tokens]
        mixed = _attention(w, f"{name}.self_attn", normed, heads)
        tokens = [token + extra for token, extra in zip(tokens, mixed, strict=True)]
        for t, token in enumerate(tokens):
            hidden = _gelu(_linear(w, f"{name}.linear1", _layer_norm(w, f"{name}.norm2", token)))
            tokens[t] = token + _linear(w, f"{name}.linear2", hidden)
        x = np.concatenate(tokens)
    scores = _linear(w, "output", _linear(w, "ffn.0", x))
    return _softmax(_layer_norm(w, "norm", scores)) if quirks else scores


@pytest.mark.parametrize("quirks", [True, False])
def test_transformer_arithmetic(quirks: bool) -> None:
    """The transformer head equals explicit loops over tokens and heads, with and without the published quirks."""
    torch.manual_seed(2)
    head = TransformerHead(96, (), 4, published_quirks=quirks).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    embeddings = torch.randn(3, 96)
    with torch.no_grad():
        found = head(embeddings).numpy()
    for row, embedding in zip(found, embeddings.double().numpy(), strict=True):
        np.testing.assert_allclose(row, _written_out(weights, embedding, 32, 8, quirks=quirks), rtol=2e-4, atol=2e-5)
    if quirks:
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_attention_equals_torch() -> None:
    """The attention's keys and numbers are those of torch.nn.MultiheadAttention."""
    torch.manual_seed(3)
    head = TransformerHead(128, (), 4).eval()
    ours = head.get_submodule("transformer_layers.0.self_attn")
    theirs = torch.nn.MultiheadAttention(32, 8, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x, x, x)[0], atol=1e-6, rtol=1e-5)


def test_mlp_arithmetic() -> None:
    """The MLP head is linear layers with ReLU between and raw logits at the end."""
    torch.manual_seed(4)
    head = MlpHead(10, (6,), 4).double()
    weights = {name: value.numpy() for name, value in head.state_dict().items()}
    x = torch.randn(3, 10, dtype=torch.float64)
    with torch.no_grad():
        found = head(x).numpy()
    for row, embedding in zip(found, x.numpy(), strict=True):
        hidden = np.maximum(_linear(weights, "layers.0", embedding), 0)
        np.testing.assert_allclose(row, _linear(weights, "layers.2", hidden))


def test_dropout_in_training_only() -> None:
    """Two passes differ in training mode and agree in evaluation mode."""
    torch.manual_seed(5)
    head = TransformerHead(64, (), 4)
    x = torch.randn(2, 64)
    with torch.no_grad():
        assert not torch.equal(head(x), head(x))
        head.eval()
        assert torch.equal(head(x), head(x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"token_dim": 30}, "token_dim 30"), ({"token_dim": 32, "attention_heads": 5}, "attention_heads 5")],
)
def test_sizes_that_do_not_divide(sizes: dict[str, int], message: str) -> None:
    """Sizes that do not divide each other are refused by name."""
    with pytest.raises(ValueError, match=message):
        TransformerHead(128, (), 4, **sizes)  # type: ignore[arg-type]
