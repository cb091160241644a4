"""SRH's own sections of a profile: geometry of the scan strips, network input, tissue gate, network sizes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from models.profile import Frozen, Profile


class GateSpec(Frozen):
    """Rule-based tissue gate on raw counts, judged on every fourth pixel of both axes (see models.srh.gate)."""

    min_mean_counts: float = 2500.0
    """A patch whose CH3 mean is below this is `empty`."""
    min_std_counts: float = 400.0
    """A patch whose CH3 standard deviation is below this is `textureless`."""
    max_saturated_fraction: float = Field(0.25, ge=0, le=1)
    """A patch with more than this share of pixels at 65535 in either channel is `saturated`."""
    min_ch3_ch2_ratio: float = 0.0
    """A patch whose CH3 mean over CH2 mean is below this is `blood` (haemoglobin raises CH2 over CH3)."""


class SrhInput(Frozen):
    """The `input` section of an SRH profile."""

    channels: tuple[str, str] = ("CH2", "CH3")
    size_px: int = Field(300, ge=32)
    """Side of a patch."""
    scale: float = Field(65536.0, gt=0)
    """Counts are divided by this."""
    third_channel_base: float = 5000.0
    """CH1 = CH3 − CH2 + base, in counts."""
    flatten: Literal["none", "per_patch"] = "none"
    """Flat-field: x / Gaussian blur × 10000 per patch and channel, before the network."""
    registration: Literal["none", "translation"] = "none"
    """Shift CH3 onto CH2 by phase correlation per row of patches."""
    max_shift_px: int = Field(8, ge=1, le=50)
    """Largest shift that registration may apply."""
    strip_width_px: int = 1000
    trim_px: int = Field(50, ge=0)
    """Columns that overlap the neighbouring strip on either side and are left out of the grid."""
    strips_by_height: dict[int, int] = {2000: 2, 4000: 4, 6000: 6, 10000: 10}
    """Height of a scan strip (pixels) → scan strips of the slide."""
    gate: GateSpec = GateSpec()

    @model_validator(mode="after")
    def _grid_fits(self) -> SrhInput:
        if self.strip_width_px - 2 * self.trim_px < self.size_px:
            raise ValueError("a patch does not fit between the trimmed columns of a scan strip")
        if any(height < self.size_px or count < 1 for height, count in self.strips_by_height.items()):
            raise ValueError("strips_by_height needs heights of at least one patch and counts of at least 1")
        return self


class SrhNetwork(Frozen):
    """The `network` section of an SRH profile; every size of encoder and head."""

    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: int = Field(64, ge=4)
    """Channels after the stem; 64 is the published network, the phantom's is narrow."""
    head: Literal["transformer", "mlp"] = "transformer"
    hidden: tuple[int, ...] = ()
    """Hidden layers of the MLP head, or of the transformer head's feed-forward part."""
    token_dim: int = 32
    layers: int = 3
    attention_heads: int = 8
    feedforward_dim: int = 128
    published_quirks: bool = False
    """LayerNorm on the logits and softmax inside the head, as in the published transformer head."""

    @property
    def emits(self) -> Literal["logits", "probabilities"]:
        """What the head returns."""
        return "probabilities" if self.head == "transformer" and self.published_quirks else "logits"


def srh_input(profile: Profile) -> SrhInput:
    """The typed `input` section; raises pydantic's ValidationError (a ValueError)."""
    return SrhInput.model_validate(profile.input)


def srh_network(profile: Profile) -> SrhNetwork:
    """The typed `network` section; raises pydantic's ValidationError (a ValueError)."""
    return SrhNetwork.model_validate(profile.network)
