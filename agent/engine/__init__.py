"""Engines: which backends exist, and which engine runs.

The daemon takes the first usable one of an ordered list and knows the reason for each that was passed over.
Must not know modalities or how a backend works inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import Backend, Engine, predict_padded
from agent.engine.eager import EagerBackend
from agent.engine.inductor import InductorBackend
from agent.engine.manifest import Artefacts, Manifest, ProfileRef, read_engine
from agent.engine.openvino import OpenVinoBackend
from agent.engine.order import Candidate, built_engines, candidates, parse_entry
from agent.engine.tensorrt import TensorRtBackend
from agent.engine_limits import STRICT, EngineLimits
from agent.errors import EngineError, SettingsError
from models.calibration import softmax
from models.contract import Prediction
from models.domain import marks
from models.profile import LoadedProfile
from models.registry import MODALITIES

__all__ = [
    "BACKENDS",
    "Backend",
    "Choice",
    "Engine",
    "built_engines",
    "choose",
    "find_backend",
    "load_built",
    "predict_padded",
    "self_test",
]

BACKENDS: dict[str, Backend] = {
    b.name: b for b in (TensorRtBackend(), InductorBackend(), OpenVinoBackend(), EagerBackend())
}
"""Every backend by name: a new one is one file and its name here."""


@dataclass(frozen=True)
class Choice:
    """The engine in service and why the ones before it are not."""

    engine: Engine
    passed_over: dict[str, str] = field(default_factory=dict)
    """Backend or engine folder → reason, in the order tried."""
    manifest: Manifest | None = None
    """Of the built engine; None for one that runs straight from the profile."""
    label: str = ""
    """How people are told of this engine: its folder, or the backend."""


def find_backend(name: str) -> Backend:
    """The backend of this name; raises SettingsError naming the known ones."""
    if name not in BACKENDS:
        raise SettingsError(f"unknown engine {name!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def choose(
    profile_dir: Path,
    profile: LoadedProfile,
    order: Sequence[str],
    threads: int,
    limits: EngineLimits = STRICT,
    public_key: Path | None = None,
) -> Choice:
    """Load the first usable engine of `order`, warm and self-tested on the golden pair; the entries are those of the
    setting `engine.order`. `threads` 0 takes every core. With a `public_key` a built engine must be signed by its
    owner.

    Raises SettingsError for an unknown name, EngineError with every reason when nothing can be used.
    """
    passed_over: dict[str, str] = {}
    choice = next(usable(profile_dir, profile, order, threads, passed_over, limits, public_key), None)
    if choice is None:
        raise nothing_left(passed_over)
    return choice


def usable(
    profile_dir: Path,
    profile: LoadedProfile,
    order: Sequence[str],
    threads: int,
    passed_over: dict[str, str],
    limits: EngineLimits = STRICT,
    public_key: Path | None = None,
) -> Iterator[Choice]:
    """Each usable engine of `order`, loaded when it is asked for; `passed_over` takes the reasons of the others.

    Raises SettingsError for an unknown name anywhere in it.
    """
    entries = [parse_entry(name, BACKENDS) for name in order]
    for candidate in candidates(profile_dir, entries, public_key):
        try:
            engine, manifest = _load(candidate, profile, profile_dir, threads, limits, public_key)
        except EngineError as error:
            passed_over[candidate.label] = str(error)
        else:
            yield Choice(engine, dict(passed_over), manifest, candidate.label)


def nothing_left(passed_over: Mapping[str, str]) -> EngineError:
    """The error that no engine can be used, with every reason."""
    reasons = "; ".join(f"{label}: {reason}" for label, reason in passed_over.items())
    return EngineError(f"no engine can be used: {reasons or 'the order of engines is empty'}")


def load_built(
    profile: LoadedProfile,
    folder: Path,
    threads: int,
    limits: EngineLimits = STRICT,
    public_key: Path | None = None,
) -> Engine:
    """Load one built engine as `choose` would: verified and self-tested; raises EngineError with the reason."""
    engine, _ = _open_verified(profile, folder, threads, limits, public_key)
    self_test(engine, profile, limits)
    return engine


def open_built(profile: LoadedProfile, folder: Path, threads: int, *, unproven: bool = False) -> Engine:
    """Load one built engine, verified but not self-tested: for the build's own gates. Raises EngineError."""
    return _open_verified(profile, folder, threads, STRICT, None, unproven=unproven)[0]


def _open_verified(
    profile: LoadedProfile,
    folder: Path,
    threads: int,
    limits: EngineLimits,
    public_key: Path | None,
    *,
    unproven: bool = False,
) -> tuple[Engine, Manifest]:
    artefacts = read_engine(folder, ProfileRef.of(profile), limits, public_key, unproven=unproven)
    backend = BACKENDS.get(artefacts.manifest.backend)
    if backend is None:
        raise EngineError(f"{folder.name}: this version has no backend {artefacts.manifest.backend!r}")
    return _opened(backend, profile, artefacts, threads), artefacts.manifest


def self_test(engine: Engine, profile: LoadedProfile, limits: EngineLimits = STRICT) -> float:
    """Largest difference of a probability on the golden pair; warms the engine's one batch shape.

    Raises EngineError when the engine fails on it, beyond the limit of its precision, for values not finite, or when
    its embeddings cannot be compared with the profile's reference.
    """
    try:
        prediction = predict_padded(engine, profile.golden_inputs)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"golden pair cannot be run: {' '.join(str(error).split())[:500]}") from error
    golden = dict.fromkeys(prediction, profile.golden_outputs)
    difference = float(np.abs(class_probabilities(prediction) - class_probabilities(golden)).max())
    limit = limits.of(engine.precision).max_dp
    if not difference <= limit:
        raise EngineError(f"golden pair differs by {difference:.2g}, {engine.precision} allows {limit:g}")
    if profile.reference is not None:
        modality = MODALITIES[profile.spec.modality]
        try:
            statistics_NS = modality.intensity_statistics(profile.spec, profile.golden_inputs)
            marks(profile.reference, statistics_NS, prediction["embedding"])
        except (KeyError, ValueError) as error:
            raise EngineError(f"golden pair cannot be compared with the profile's reference: {error}") from error
    return difference


def class_probabilities(prediction: Prediction) -> NDArray[np.float64]:
    """Uncalibrated probabilities, float64 [N, K], of a prediction."""
    if "probabilities" in prediction:
        return prediction["probabilities"].astype(np.float64)
    return softmax(prediction["logits"].astype(np.float64))


def _load(
    candidate: Candidate,
    profile: LoadedProfile,
    profile_dir: Path,
    threads: int,
    limits: EngineLimits,
    public_key: Path | None,
) -> tuple[Engine, Manifest | None]:
    backend, command = candidate.entry.backend, candidate.entry.mend(profile_dir)
    reason = backend.unavailable()
    if reason:
        raise EngineError(reason)
    if candidate.folder is None and backend.needs_build:
        raise EngineError(f"not built; run: {command}")
    if candidate.folder is None:
        return _proven(_opened(backend, profile, None, threads), profile, limits), None
    try:
        built, manifest = _open_verified(profile, candidate.folder, threads, limits, public_key)
        return _proven(built, profile, limits), manifest
    except EngineError as error:
        said = str(error)
        raise EngineError(said if "; run: " in said else f"{said}; run: {command}") from error


def _proven(engine: Engine, profile: LoadedProfile, limits: EngineLimits) -> Engine:
    """The engine, self-tested; closed when it fails."""
    try:
        self_test(engine, profile, limits)
    except EngineError:
        engine.close()
        raise
    return engine


def _opened(backend: Backend, profile: LoadedProfile, artefacts: Artefacts | None, threads: int) -> Engine:
    try:
        return backend.load(profile, artefacts, threads)
    except (ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise EngineError(f"{backend.name} cannot be loaded: {' '.join(str(error).split())[:500]}") from error
