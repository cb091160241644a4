"""Engines: which backends exist, and which engine runs.

The daemon takes the first usable one of an ordered list and knows the reason for each that was passed over.
Must not know modalities or how a backend works inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import Backend, Engine, predict_padded
from agent.engine.eager import EagerBackend
from agent.engine.manifest import (
    ENGINES,
    MANIFEST,
    Artefacts,
    Manifest,
    ProfileRef,
    mend,
    parse_manifest,
    read_engine,
    read_signed,
)
from agent.engine.openvino import OpenVinoBackend
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
    "choose",
    "find_backend",
    "load_built",
    "predict_padded",
    "self_test",
]

BACKENDS: dict[str, Backend] = {b.name: b for b in (OpenVinoBackend(), EagerBackend())}
"""Every backend by name: a new one is one file and its name here."""


@dataclass(frozen=True)
class Choice:
    """The engine in service and why the ones before it are not."""

    engine: Engine
    passed_over: dict[str, str] = field(default_factory=dict)
    """Backend or engine folder → reason, in the order tried."""
    manifest: Manifest | None = None
    """Of the built engine; None for one that runs straight from the profile."""


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
    """Load the first usable engine of `order` (backend names), warm and self-tested on the golden pair.

    Of several engines of one backend the one built last comes first. `threads` 0 takes every core. With a
    `public_key` a built engine must be signed by its owner.
    Raises SettingsError for an unknown name, EngineError with every reason when nothing can be used.
    """
    passed_over: dict[str, str] = {}
    for backend in [find_backend(name) for name in order]:
        for label, folder in _candidates(profile_dir, backend, public_key):
            try:
                engine, manifest = _load(backend, profile, folder, profile_dir, threads, limits, public_key)
            except EngineError as error:
                passed_over[label] = str(error)
            else:
                return Choice(engine, passed_over, manifest)
    reasons = "; ".join(f"{label}: {reason}" for label, reason in passed_over.items())
    raise EngineError(f"no engine can be used: {reasons or 'the order of engines is empty'}")


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


def built_engines(
    profile_dir: Path, backend: str | None = None, public_key: Path | None = None
) -> list[tuple[Path, Manifest | None]]:
    """Engine folders, newest build first; None for a manifest that cannot be read. Half-built ones are not listed.

    With a `public_key`, a manifest without its owner's signature is not read at all.
    """
    found: list[tuple[Path, Manifest | None]] = []
    for path in sorted((profile_dir / ENGINES).glob(f"[!.]*/{MANIFEST}")):
        if backend is None or path.parent.name.startswith(f"{backend}-"):
            try:
                found.append((path.parent, parse_manifest(read_signed(path.parent, public_key))))
            except (OSError, ValueError, EngineError):
                found.append((path.parent, None))  # still listed: verifying it gives the reason
    return sorted(found, key=lambda item: item[1].built_at if item[1] else "", reverse=True)


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


def _candidates(profile_dir: Path, backend: Backend, public_key: Path | None) -> list[tuple[str, Path | None]]:
    built = built_engines(profile_dir, backend.name, public_key) if backend.needs_build else []
    folders = [folder for folder, _ in built]
    return [(folder.name, folder) for folder in folders] or [(backend.name, None)]


def _load(
    backend: Backend,
    profile: LoadedProfile,
    folder: Path | None,
    profile_dir: Path,
    threads: int,
    limits: EngineLimits,
    public_key: Path | None,
) -> tuple[Engine, Manifest | None]:
    reason = backend.unavailable()
    if reason:
        raise EngineError(reason)
    if folder:
        built, manifest = _open_verified(profile, folder, threads, limits, public_key)
        self_test(built, profile, limits)
        return built, manifest
    if backend.needs_build:
        raise EngineError(f"not built; run: {mend(profile_dir / ENGINES / backend.name, backend.name)}")
    engine = _opened(backend, profile, None, threads)
    self_test(engine, profile, limits)
    return engine, None


def _opened(backend: Backend, profile: LoadedProfile, artefacts: Artefacts | None, threads: int) -> Engine:
    try:
        return backend.load(profile, artefacts, threads)
    except (ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise EngineError(f"{backend.name} cannot be loaded: {' '.join(str(error).split())[:500]}") from error
