"""The one builder that holds the sizes of encoder and head, and the names of their weights in a profile.

Must not know files: weights come and go as mappings of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.srh.config import SrhNetwork
from models.srh.heads import MlpHead, TransformerHead
from models.srh.resnet import ResNet

PREFIX = "model."
"""What the published checkpoints put before every key."""
_POSITIONS = ".pos_encoder.pe"


class Classifier(nn.Module):
    """Encoder `bb` and `head` under their published names; `emits` says what `forward` returns."""

    def __init__(self, bb: ResNet, head: TransformerHead | MlpHead, emits: str) -> None:
        super().__init__()
        self.emits = emits
        self.bb = bb
        self.head = head

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """Network input float32 [B, 3, H, W] to embeddings [B, E]."""
        embedding_BE: Tensor = self.bb(x_BCHW)
        return embedding_BE

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Network input float32 [B, 3, H, W] to what the head emits, [B, K] (see SrhNetwork.emits)."""
        scores_BK: Tensor = self.head(self.embed(x_BCHW))
        return scores_BK

    def with_embedding(self) -> WithEmbedding:
        """The same network, giving its embedding beside what the head emits."""
        return WithEmbedding(self)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a profile's weights; raises ValueError (see `load_state`)."""
        load_state(self, tensors)


class WithEmbedding(nn.Module):
    """What engines compile: one pass gives what the head emits and the embedding that it read."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Network input float32 [B, 3, H, W] to ([B, K], [B, E])."""
        embedding_BE = self.network.embed(x_BCHW)
        return self.network.head(embedding_BE), embedding_BE


def build_classifier(spec: SrhNetwork, classes: int) -> Classifier:
    """An untrained network in training mode, initialised from torch's random state.

    Raises ValueError when the sizes of `spec` do not fit each other.
    """
    bb = ResNet(spec.encoder, spec.width)
    head: TransformerHead | MlpHead
    if spec.head == "mlp":
        head = MlpHead(bb.embedding_dim, spec.hidden, classes)
    else:
        head = TransformerHead(
            bb.embedding_dim,
            spec.hidden,
            classes,
            token_dim=spec.token_dim,
            layers=spec.layers,
            attention_heads=spec.attention_heads,
            feedforward_dim=spec.feedforward_dim,
            published_quirks=spec.published_quirks,
        )
    return Classifier(bb, head, spec.emits)


def state_for_profile(module: nn.Module) -> dict[str, Tensor]:
    """The weights under their published keys (`model.bb.*`, `model.head.*`), contiguous copies on the CPU."""
    return {
        PREFIX + name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()
    }


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a profile's weights into the module, strictly.

    Keys may carry the published `model.` prefix (all or none). A position table where the module computes its own
    is accepted when it holds the same numbers.
    Raises ValueError that lists missing, unexpected and mismatched keys; the module is unchanged then.
    """
    prefix = PREFIX if tensors and all(key.startswith(PREFIX) for key in tensors) else ""
    given = {key.removeprefix(prefix): value for key, value in tensors.items()}
    own = module.state_dict()
    computed = {name: value for name, value in module.named_buffers() if name not in own}
    unexpected, mismatched = [], []
    for key, value in given.items():
        if key in own:
            if value.shape != own[key].shape:
                mismatched.append(f"{key} is {list(value.shape)}, expected {list(own[key].shape)}")
            elif value.is_floating_point() != own[key].is_floating_point():
                mismatched.append(f"{key} is {value.dtype}, expected {own[key].dtype}")
        elif key in computed and key.endswith(_POSITIONS):
            if not _same_positions(value, computed[key]):
                mismatched.append(f"{key} differs from the computed position table")
        else:
            unexpected.append(key)
    problems = {"missing": sorted(own.keys() - given.keys()), "unexpected": unexpected, "mismatched": mismatched}
    if any(problems.values()):
        raise ValueError("weights do not fit the network: " + _listed(problems))
    module.load_state_dict({key: given[key] for key in own})


def _same_positions(given: Tensor, computed: Tensor) -> bool:
    if given.shape[1:] != computed.shape[1:] or given.shape[0] < computed.shape[0]:
        return False
    return torch.allclose(given[: computed.shape[0]].to(computed.dtype), computed, atol=1e-5)


def _listed(problems: Mapping[str, list[str]], limit: int = 5) -> str:
    parts = []
    for word, keys in problems.items():
        if keys:
            more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
            parts.append(f"{len(keys)} {word} ({', '.join(keys[:limit])}{more})")
    return "; ".join(parts)
