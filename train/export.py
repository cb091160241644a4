"""Writes a profile: its files and their manifest. Must not know how the weights came about."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors
from torch import nn

from models.profile import MANIFEST, Profile
from models.srh.classifier import state_for_profile


def weights_of(network: nn.Module) -> bytes:
    """The network's parameters as a safetensors file under the published keys."""
    return save_tensors(state_for_profile(network))


def golden_pair(inputs_N2HW: NDArray[np.uint16], outputs_NK: NDArray[np.float32]) -> bytes:
    """Raw patches and what the head emits for them in eager fp32, as a safetensors file."""
    return save_arrays(
        {"inputs": np.ascontiguousarray(inputs_N2HW), "outputs": np.ascontiguousarray(outputs_NK, np.float32)}
    )


def manifest_of(fields: dict[str, Any], contents: dict[str, bytes]) -> Profile:
    """A profile with the sha256 of every file; raises pydantic's ValidationError (a ValueError)."""
    return Profile(**fields, files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})


def write_profile(out: Path, fields: dict[str, Any], contents: dict[str, bytes]) -> Profile:
    """Write a profile folder, the manifest last, so that a half-written one never loads.

    `fields` are the Profile's fields but `files`. Raises ValueError for fields that do not fit, OSError.
    """
    spec = manifest_of(fields, contents)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    for name, data in contents.items():
        (out / name).write_bytes(data)
    document = spec.model_dump(mode="json")
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    (out / MANIFEST).write_text(text, encoding="utf-8")
    return spec
