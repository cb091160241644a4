"""Hand-written stand-ins for seams that we own: an engine that answers at once, a folder that tells on command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.watch import Changes
from models.contract import Prediction
from models.domain import Reference
from models.profile import Profile, parse_profile

EMBEDDING = 8
"""Numbers in the fake engine's embedding."""
PROFILE_YAML = """
name: fake
version: 1
modality: srh
classes: [ependymoma, meningioma, metastasis, schwannoma]
input: {gate: {min_mean_counts: 0, min_std_counts: 10}}
network: {encoder: resnet18, width: 4, head: mlp}
calibration: {kind: none}
minimum_patches: 50
licence: none
intended_use: research use only
source: tests
files: {weights.safetensors: "0", golden.safetensors: "0"}
"""


def fake_profile() -> Profile:
    """A profile of the published geometry for the fake engine."""
    return parse_profile(PROFILE_YAML)


def fake_reference() -> Reference:
    """A reference that marks some patches of the fake engine for their brightness, some for their embedding."""
    return Reference(
        statistics_low=np.array([11_500.0, 0, 0, 0, 0]),
        statistics_high=np.array([30_000.0, 65_535, 65_535, 65_535, 1e9]),
        mean=np.full(EMBEDDING, 2.0),
        components=np.eye(EMBEDDING)[:3],
        scales=np.array([0.9, 0.8, 0.7]),
        residual_scale=np.array(0.8),
        limit=np.array(2.8),
    )


@dataclass
class FakeEngine:
    """Logits and an embedding that depend on every pixel of a patch, and on nothing else."""

    name: str = "fake"
    precision: str = "fp32"
    batch_size: int = 4
    embeds: bool = True
    """False: as engines were before they gave an embedding."""
    batches: int = 0
    closed: bool = False

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """Sums of the four quarters, as logits between -2 and 2; sums of the eighths, as numbers from 0 to 10."""
        assert x_BCHW.shape[0] == self.batch_size, "the caller pads"
        self.batches += 1
        flat_BN = x_BCHW.reshape(len(x_BCHW), -1).astype(np.int64)
        sums_BK = flat_BN.reshape(len(x_BCHW), 4, -1).sum(axis=2)
        logits_BK = ((sums_BK % 997) / 250 - 2).astype(np.float32)
        sums_BE = flat_BN.reshape(len(x_BCHW), EMBEDDING, -1).sum(axis=2)
        embedding = {"embedding": ((sums_BE % 101) / 10).astype(np.float32)} if self.embeds else {}
        return {"logits": logits_BK, **embedding}

    def close(self) -> None:
        """Nothing to free."""
        self.closed = True


@dataclass
class ToldFolder:
    """A folder whose changes the test announces (agent.intake.Folder)."""

    folder: Path
    touched: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    busy: bool = False
    """True: something new waits at every moment, so that each poll looks at one file only."""

    def poll(self, now: float) -> Changes:
        """What was announced since the last poll."""
        changes = Changes(list(dict.fromkeys(self.touched)), list(dict.fromkeys(self.removed)))
        self.touched, self.removed = [], []
        return changes

    def wait_s(self, now: float) -> float:
        """Only the test knows."""
        return 0.0 if self.busy else 3600.0

    def modified_ns(self, path: str) -> int | None:
        """As the disk has it."""
        try:
            return (self.folder / path).stat().st_mtime_ns
        except OSError:
            return None
