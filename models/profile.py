"""The deployable manifest: what travels with weights, and the checks that make it trustworthy.

Pure: files are read through a function that the caller passes in; nothing here opens a path or a pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from models.bounded_yaml import read_yaml
from models.domain import Reference, parse_reference

MANIFEST = "profile.yaml"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
REFERENCE = "reference.safetensors"
"""Optional: what patches of the profile's domain look like (models.domain)."""
CARD = "MODEL_CARD.md"


class Frozen(BaseModel):
    """Base of every typed record: immutable, unknown keys refused, field docstrings kept for JSON Schemas."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CalibrationSpec(Frozen):
    """The map from what the head emits to frequencies (see models.calibration)."""

    kind: Literal["none", "temperature", "one_vs_rest_sigmoid"] = "none"
    input: Literal["logits", "probabilities", "softmax_of_probabilities"] = "logits"
    """What the map was fitted on. `softmax_of_probabilities` is the published calibrators' input."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by this before softmax (kind `temperature`)."""
    weights: tuple[tuple[float, ...], ...] = ()
    """[F][K] slope of each class's sigmoid, per fold; folds are averaged after the sigmoid."""
    biases: tuple[tuple[float, ...], ...] = ()
    """[F][K] offset of each class's sigmoid, per fold."""

    @model_validator(mode="after")
    def _complete(self) -> CalibrationSpec:
        if self.kind == "one_vs_rest_sigmoid" and (
            not self.weights
            or len(self.weights) != len(self.biases)
            or len({len(row) for row in (*self.weights, *self.biases)}) != 1
        ):
            raise ValueError("one_vs_rest_sigmoid needs weights and biases of the same [folds][classes] shape")
        return self


class AggregationSpec(Frozen):
    """How patches become a posterior (see models.posterior)."""

    rule: Literal["mean_probability"] = "mean_probability"
    independence: float = Field(0.1, gt=0, le=1)
    """Neighbouring patches repeat each other: each counts as this many independent observations in the
    credible interval. An assumption, stated with every profile; the posterior's mean does not depend on it."""
    interval: float = Field(0.95, gt=0.5, lt=1)
    """Mass of the credible interval."""


class DecisionSpec(Frozen):
    """When a result may be called what (see models.decision)."""

    least_lower_bound: float = Field(0.5, ge=0, lt=1)
    """`high_confidence` also needs the predicted class's credible interval to start here or higher."""
    most_marked: float = Field(0.5, gt=0, le=1)
    """From this share of judged patches with the same mark on, a result is `out_of_domain` (see models.domain)."""


class Profile(Frozen):
    """The contents of profile.yaml."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: int = Field(ge=1)
    modality: str
    classes: tuple[str, ...] = Field(min_length=2)
    """Class names in label order."""
    input: dict[str, Any]
    """The modality's own section: channels, size, geometry, tissue gate (models/<modality>/config.py)."""
    network: dict[str, Any]
    """The modality's own section: encoder, head and sizes, what the head emits."""
    calibration: CalibrationSpec = CalibrationSpec()
    aggregation: AggregationSpec = AggregationSpec()
    operating_points: dict[str, float] = Field(default={"high_confidence": 0.77})
    decision: DecisionSpec = DecisionSpec()
    minimum_patches: int = Field(50, ge=0)
    """Below this many used patches a result says that there was little tissue."""
    licence: str
    intended_use: str
    source: str
    files: dict[str, str]
    """sha256 (hex) of every file beside profile.yaml."""

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be distinct")
        missing = {WEIGHTS, GOLDEN} - set(self.files)
        if missing:
            raise ValueError(f"files must list the sha256 of {', '.join(sorted(missing))}")
        if "high_confidence" not in self.operating_points:
            raise ValueError("operating_points must state high_confidence")
        strange = [name for name in self.files if "/" in name or name.startswith(".") or name == MANIFEST]
        if strange:
            raise ValueError(f"files must be plain names beside {MANIFEST}, not {', '.join(strange)}")
        columns = {len(row) for row in self.calibration.weights}
        if columns and columns != {len(self.classes)}:
            raise ValueError(f"calibration has {columns.pop()} columns for {len(self.classes)} classes")
        return self


class ProfileInvalid(ValueError):
    """The profile's manifest or one of its files must not be used; the text says which and why."""


@dataclass(frozen=True)
class LoadedProfile:
    """A profile whose every file agreed with its sha256."""

    spec: Profile
    sha256: str
    """sha256 (hex) of profile.yaml, which covers every other file through its own."""
    weights: bytes
    """The safetensors file with the network's parameters, state-dict keys as published."""
    golden_inputs: NDArray[np.uint16]
    """[N, *raw input shape]: inputs of the golden pair."""
    golden_outputs: NDArray[np.float32]
    """[N, K]: what the head emits for them in eager fp32."""
    reference: Reference | None = None
    """None: no patch is compared with anything, and no result is `out_of_domain`."""


def parse_profile(text: str | bytes) -> Profile:
    """Read profile.yaml; raises ProfileInvalid naming every wrong field."""
    try:
        document = read_yaml(text if isinstance(text, str) else text.decode())[1]
    except ValueError as error:
        raise ProfileInvalid(f"{MANIFEST} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ProfileInvalid(f"{MANIFEST} must be a mapping")
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or MANIFEST}: {e['msg']}" for e in error.errors()]
        raise ProfileInvalid(f"{MANIFEST}: " + "; ".join(lines)) from error


def load_profile(read: Callable[[str], bytes]) -> LoadedProfile:
    """Read and verify a profile. `read(name)` returns a file's bytes; its OSError passes through.

    Raises ProfileInvalid when the manifest, a checksum, the golden pair or the reference is wrong.
    """
    manifest = read(MANIFEST)
    spec = parse_profile(manifest)
    contents = {name: read(name) for name in spec.files}
    for name, expected in spec.files.items():
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise ProfileInvalid(f"{name} has sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…")
    inputs, outputs = _golden_pair(contents[GOLDEN], len(spec.classes))
    reference = _reference(contents[REFERENCE]) if REFERENCE in contents else None
    sha256 = hashlib.sha256(manifest).hexdigest()
    return LoadedProfile(spec, sha256, contents[WEIGHTS], inputs, outputs, reference)


def _golden_pair(content: bytes, classes: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    try:
        golden = load_safetensors(content)
        inputs, outputs = golden["inputs"], golden["outputs"]
    except SafetensorError as error:
        raise ProfileInvalid(f"{GOLDEN} is not safetensors: {error}") from error
    except KeyError as error:
        raise ProfileInvalid(f"{GOLDEN} lacks the tensor {error}") from error
    if inputs.dtype != np.uint16 or inputs.ndim == 0 or len(inputs) == 0 or outputs.shape != (len(inputs), classes):
        raise ProfileInvalid(f"{GOLDEN}: inputs {inputs.dtype} {inputs.shape}, outputs {outputs.shape} do not fit")
    return inputs, outputs.astype(np.float32)


def _reference(content: bytes) -> Reference:
    try:
        return parse_reference(content)
    except ValueError as error:
        raise ProfileInvalid(f"{REFERENCE}: {error}") from error
