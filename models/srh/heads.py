"""From an embedding to scores for one patch: the published transformer head and the MLP head, with their key names.

Decides the head's arithmetic only; sizes come from models.srh.classifier. Must not know images or calibration.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

PUBLISHED_POSITIONS = 5000
"""Length of the position table in the published state dict."""


def sinusoids(positions: int, dim: int) -> Tensor:
    """Position table float32 [positions, 1, dim], base 10,000 (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(positions, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
    table = torch.empty(positions, 1, dim)
    table[:, 0, 0::2] = torch.sin(position * rate)
    table[:, 0, 1::2] = torch.cos(position * rate)
    return table


class PositionEncoding(nn.Module):
    """Adds the position table to tokens [B, T, D].

    Persistent tables have the published length and are part of the state dict, so that a published checkpoint's
    own numbers are used; otherwise the table is computed and costs no bytes in a profile.
    """

    def __init__(self, tokens: int, dim: int, dropout: float, *, persistent: bool) -> None:
        super().__init__()
        length = max(tokens, PUBLISHED_POSITIONS) if persistent else tokens
        self.pe: Tensor
        self.register_buffer("pe", sinusoids(length, dim), persistent=persistent)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens plus their positions; shape unchanged."""
        y_BTD: Tensor = self.dropout(x_BTD + self.pe[: x_BTD.shape[1], 0])
        return y_BTD


class SelfAttention(nn.Module):
    """Scaled dot-product attention among the tokens of one patch: [B, T, D] to [B, T, D].

    Keys as in torch.nn.MultiheadAttention, whose inference fast path cannot be exported. The products are einsums on
    purpose: where tokens and heads are equally many, OpenVINO 2026.4 fuses the usual forms (matmul or
    `scaled_dot_product_attention`) wrongly, and in bf16 with a race between threads. It does not fuse these.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"token_dim {dim} is not a multiple of attention_heads {heads}")
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Attention of every token to every token of the same patch."""
        batch, tokens, dim = x_BTD.shape
        size = dim // self.heads
        projected = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q_BHTd, k_BHTd, v_BHTd = (part.view(batch, tokens, self.heads, size).transpose(1, 2) for part in projected)
        scores_BHTT = torch.einsum("bhtd,bhsd->bhts", q_BHTd, k_BHTd) / math.sqrt(size)
        weights_BHTT = self.dropout(torch.softmax(scores_BHTT, dim=-1))
        mixed_BHTd = torch.einsum("bhts,bhsd->bhtd", weights_BHTT, v_BHTd)
        y_BTD: Tensor = self.out_proj(mixed_BHTd.transpose(1, 2).reshape(batch, tokens, dim))
        return y_BTD


class TransformerBlock(nn.Module):
    """Positions, pre-norm attention and pre-norm feed-forward, both with residuals: [B, T, D] to [B, T, D].

    Every block adds the positions again, as the published head does.
    """

    def __init__(
        self, tokens: int, dim: int, heads: int, feedforward_dim: int, dropout: float, *, persistent: bool
    ) -> None:
        super().__init__()
        self.pos_encoder = PositionEncoding(tokens, dim, dropout, persistent=persistent)
        self.self_attn = SelfAttention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """One encoder block."""
        x_BTD = self.pos_encoder(x_BTD)
        x_BTD = x_BTD + self.dropout(self.self_attn(self.norm1(x_BTD)))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(x_BTD))))
        y_BTD: Tensor = x_BTD + self.dropout(self.linear2(hidden))
        return y_BTD


class TransformerHead(nn.Module):
    """Embedding [B, E] to scores [B, K]: the embedding is cut into E / token_dim tokens that attend to each other.

    With `published_quirks` the scores pass LayerNorm and softmax inside the head and the result is probabilities
    (the published network); without, `norm` and the softmax do not exist and the result is logits. The square
    `output` layer stays in both, so that the two differ only in what follows it.
    Dropout 0.1 as published; active in training only.
    Raises ValueError when sizes do not divide. Source: published SpineXtract `TransformerHead`.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden: Sequence[int],
        classes: int,
        *,
        token_dim: int = 32,
        layers: int = 3,
        attention_heads: int = 8,
        feedforward_dim: int = 128,
        published_quirks: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if embedding_dim % token_dim or token_dim % 2:
            raise ValueError(f"token_dim {token_dim} must be even and divide the embedding's {embedding_dim}")
        self.tokens, self.token_dim = embedding_dim // token_dim, token_dim
        self.input_projection = nn.Linear(embedding_dim, embedding_dim)
        self.transformer_layers = nn.ModuleList(
            TransformerBlock(
                self.tokens, token_dim, attention_heads, feedforward_dim, dropout, persistent=published_quirks
            )
            for _ in range(layers)
        )
        self.ffn = _feed_forward(embedding_dim, hidden, classes, dropout)
        self.output = nn.Linear(classes, classes)
        self.norm = nn.LayerNorm(classes) if published_quirks else None

    def forward(self, embedding_BE: Tensor) -> Tensor:
        """Scores [B, K]: probabilities with the published quirks, logits without."""
        x_BTD = self.input_projection(embedding_BE).view(-1, self.tokens, self.token_dim)
        for block in self.transformer_layers:
            x_BTD = block(x_BTD)
        scores_BK: Tensor = self.output(self.ffn(x_BTD.flatten(1)))
        if self.norm is None:
            return scores_BK
        return torch.softmax(self.norm(scores_BK), dim=-1)


def _feed_forward(inputs: int, hidden: Sequence[int], outputs: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, Dropout per layer with the last two dropped: `ffn.0`, `ffn.3`, ... as published."""
    sizes = [inputs, *hidden, outputs]
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        modules += [nn.Linear(a, b), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*modules[:-2])


class MlpHead(nn.Module):
    """Embedding [B, E] to logits [B, K]: linear layers with ReLU between (`layers.0`, `layers.2`, ...).

    Source: published SpineXtract and OpenSRH `MLP`, with its initial weights (Xavier, bias .01).
    """

    def __init__(self, embedding_dim: int, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        sizes = [embedding_dim, *hidden, classes]
        modules: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            linear = nn.Linear(a, b)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.constant_(linear.bias, 0.01)
            modules += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*modules[:-1])

    def forward(self, embedding_BE: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.layers(embedding_BE)
        return logits_BK
