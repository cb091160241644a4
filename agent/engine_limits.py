"""How far an engine may differ from eager fp32 and still be used: settings, with strict defaults by precision.

Decides numbers only; agent.engine.gates measures, and an engine's manifest keeps what it passed under.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agent.typed_yaml import Section

Bound = Literal["at most", "at least"]
MaxDp = Annotated[
    float, Field(gt=0, le=1, description="Largest difference of a probability, golden pair and other inputs alike.")
]
MeanDp = Annotated[float, Field(gt=0, le=1, description="Largest mean difference of a probability.")]
ArgmaxAgreement = Annotated[
    float,
    Field(ge=0, le=1, description="Least share of inputs with the same class; ties within max_dp count."),
]
EmbeddingDifference = Annotated[
    float, Field(gt=0, le=1, description="Largest distance of an embedding from eager's, as a share of its length.")
]
FarAgreement = Annotated[
    float, Field(ge=0, le=1, description="Least share of inputs that both call far from the reference, or both near.")
]
SlideChange = Annotated[
    float, Field(gt=0, le=1, description="Largest change of a probability of a whole slide's calibrated posterior.")
]
LayerShare = Annotated[
    float, Field(ge=0, le=1, description="Least share of the arithmetic layers that run in this precision.")
]
SpeedRatio = Annotated[
    float, Field(ge=0, description="Least rate over that of eager fp32, measured in turns on the same device.")
]


class PrecisionLimits(Section):
    """Limits of one precision. Probabilities are compared uncalibrated, patch by patch, unless said otherwise."""

    max_dp: MaxDp
    mean_dp: MeanDp
    argmax_agreement: ArgmaxAgreement
    embedding_difference: EmbeddingDifference
    far_agreement: FarAgreement
    slide_change: SlideChange
    layer_share: LayerShare
    speed_ratio: SpeedRatio = 1.0


class Fp32Limits(PrecisionLimits):
    """The same answers but for the order of additions."""

    max_dp: MaxDp = 1e-4
    mean_dp: MeanDp = 1e-4
    argmax_agreement: ArgmaxAgreement = 0.999
    embedding_difference: EmbeddingDifference = 1e-3
    far_agreement: FarAgreement = 0.99
    slide_change: SlideChange = 1e-4
    layer_share: LayerShare = 0.9


class HalfLimits(PrecisionLimits):
    """bf16 and fp16."""

    max_dp: MaxDp = 0.02
    mean_dp: MeanDp = 0.02
    argmax_agreement: ArgmaxAgreement = 0.999
    embedding_difference: EmbeddingDifference = 0.05
    far_agreement: FarAgreement = 0.97
    slide_change: SlideChange = 0.01
    layer_share: LayerShare = 0.9


class Int8Limits(PrecisionLimits):
    """int8 and fp8; layers that need a higher precision keep it, so that fewer need to run in this one."""

    max_dp: MaxDp = 0.05
    mean_dp: MeanDp = 0.003
    argmax_agreement: ArgmaxAgreement = 0.995
    embedding_difference: EmbeddingDifference = 0.1
    far_agreement: FarAgreement = 0.95
    slide_change: SlideChange = 0.01
    layer_share: LayerShare = 0.4


BOUNDS: dict[str, Bound] = {
    "max_dp": "at most",
    "mean_dp": "at most",
    "argmax_agreement": "at least",
    "embedding_difference": "at most",
    "far_agreement": "at least",
    "slide_change": "at most",
    "layer_share": "at least",
    "speed_ratio": "at least",
}
"""Which way each limit holds."""


class EngineLimits(Section):
    """What a built engine must keep, by precision; loosening one lets an engine run that is refused by default."""

    fp32: Fp32Limits = Fp32Limits()
    """Engines in fp32."""
    bf16: HalfLimits = HalfLimits()
    """Engines in bf16."""
    fp16: HalfLimits = HalfLimits()
    """Engines in fp16."""
    int8: Int8Limits = Int8Limits()
    """Engines in int8."""
    fp8: Int8Limits = Int8Limits()
    """Engines in fp8."""

    def of(self, precision: str) -> PrecisionLimits:
        """The limits of a precision; those of fp32 for one that this version does not know."""
        found = getattr(self, precision, None)
        found = found if isinstance(found, PrecisionLimits) else self.fp32
        return PrecisionLimits(**found.model_dump())


STRICT = EngineLimits()
"""The defaults."""
