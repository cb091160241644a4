"""Stimulated Raman histology: CH2/CH3 scan strips, 300 px patches, ResNet encoder and head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contract import Assembler, Modality, PatchLayout
from models.profile import Profile
from models.srh.config import srh_input, srh_network


def _make_assembler(profile: Profile) -> Assembler:
    from models.srh.patches import PatchAssembler

    return PatchAssembler(srh_input(profile))


def _build_network(profile: Profile) -> Any:
    from models.srh.classifier import build_classifier

    return build_classifier(srh_network(profile), classes=len(profile.classes))


def _to_network_input(profile: Profile, x_BCHW: NDArray[np.uint16]) -> NDArray[np.float32]:
    from models.srh.channels import to_network_input

    spec = srh_input(profile)
    return to_network_input(x_BCHW, scale=spec.scale, third_channel_base=spec.third_channel_base)


def _build_scaling(profile: Profile) -> Any:
    from models.srh.scaling import Scaling

    spec = srh_input(profile)
    return Scaling(spec.scale, spec.third_channel_base)


def _intensity_statistics(profile: Profile, x_BCHW: NDArray[np.uint16]) -> NDArray[np.float64]:
    from models.srh.intensity import intensity_statistics

    return intensity_statistics(x_BCHW)


def _patch_layout(profile: Profile) -> PatchLayout:
    spec = srh_input(profile)
    return PatchLayout(spec.size_px, spec.strip_width_px - 2 * spec.trim_px)


def _phantom_slide(profile: Profile, number: int) -> NDArray[np.uint16]:
    from models.srh.phantom_inputs import phantom_inputs

    return phantom_inputs(srh_input(profile), number)


def _check(profile: Profile) -> None:
    srh_input(profile)
    srh_network(profile)


SRH = Modality(
    name="srh",
    channels=("CH2", "CH3"),
    make_assembler=_make_assembler,
    build_network=_build_network,
    to_network_input=_to_network_input,
    build_scaling=_build_scaling,
    intensity_statistics=_intensity_statistics,
    patch_layout=_patch_layout,
    phantom_slide=_phantom_slide,
    check=_check,
)
