"""Builds an engine beside the one in place, proves it, and only then swaps the two.

Decides the order of the gates. Must not know any backend's inside.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine import find_backend, open_built, predict_padded
from agent.engine.backend import Backend, BuildRequest, Built, Engine, kind_of, thread_count
from agent.engine.device import this_device
from agent.engine.exchange import put_in_place, remove_leftovers, scratch_for
from agent.engine.expected import Announce, Expected, calibration_inputs
from agent.engine.figures import Figures
from agent.engine.fresh import reload_gate
from agent.engine.gates import (
    census_gate,
    golden_gate,
    independence_gate,
    parity_gate,
    rates,
    require,
    slides_gate,
    speed_gate,
)
from agent.engine.manifest import MANIFEST, Manifest, ProfileRef, distribution_version, engine_folder, verify
from agent.engine.signature import SIGNATURE, sign
from agent.engine_limits import STRICT, EngineLimits
from agent.errors import EngineError
from models.profile import LoadedProfile

PARITY_PATCHES = 512
"""Inputs of the parity gate."""
PHANTOM_SLIDES = 4
"""Whole slides whose posteriors are compared: one of each class of the phantom."""
MEASURED_RANGES = ("int8", "fp8")
"""Precisions whose build needs inputs of the profile's domain."""
_RATE_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What to build."""

    profile_dir: Path
    profile: LoadedProfile
    backend: str
    precision: str
    batch_size: int
    threads: int
    patches: int = PARITY_PATCHES
    slides: int = PHANTOM_SLIDES
    device: str = "cpu"
    calibration: NDArray[np.uint16] | None = None
    """See BuildRequest; None: what the profile brings (agent.engine.expected.calibration_inputs)."""
    limits: EngineLimits = STRICT
    sign_with: Path | None = None
    """ed25519 private key (PEM) that signs the engine."""

    def expected(self) -> Expected:
        """What the engine will be compared with; the same for every precision."""
        return Expected(self.profile, self.patches, self.slides, self.threads, self.device)


def build_engine(plan: Plan, announce: Announce, expected: Expected | None = None) -> tuple[Path, Manifest]:
    """Build, prove and put in place; returns the engine's folder and manifest. `announce` gets each step's name.

    `expected`: eager's answers, when an earlier build has asked for them. Raises GateFailedError (the engine in
    place stays) and EngineError when nothing could be built.
    """
    kind = kind_of(plan.device)
    target = engine_folder(plan.profile_dir, plan.backend, plan.precision, plan.batch_size, kind)
    scratch = scratch_for(target)
    if plan.sign_with is not None:
        sign(b"", plan.sign_with)  # a key that cannot sign is told before the work, not after
    try:
        remove_leftovers(target)
        scratch.mkdir(parents=True)
        manifest = _build_and_prove(plan, scratch, announce, expected or plan.expected())
        announce("put in place")
        verify(scratch, ProfileRef.of(plan.profile), plan.limits)  # what lies on the disk, not what was meant
        put_in_place(target, scratch)
    except OSError as error:
        raise EngineError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target, manifest


def _build_and_prove(plan: Plan, scratch: Path, announce: Announce, expected: Expected) -> Manifest:
    backend = find_backend(plan.backend)
    built = _compile(plan, backend, scratch, announce)
    write_manifest(plan, backend, scratch, built, None)
    announce("golden pair")
    engine = open_built(plan.profile, scratch, plan.threads, unproven=True)
    figures = _prove(plan, scratch, engine, announce, expected)
    engine.close()
    return write_manifest(plan, backend, scratch, built, figures)


def _prove(plan: Plan, scratch: Path, engine: Engine, announce: Announce, expected: Expected) -> Figures:
    """Every gate, the quick ones first; raises GateFailedError at the first that fails."""
    limits = plan.limits.of(plan.precision)
    gates = require(golden_gate(engine, plan.profile, plan.limits))
    measured, census = census_gate(engine, limits)
    gates += require(measured)
    announce("independence of neighbours")
    gates += require(independence_gate(engine, plan.profile))
    announce("reload in a fresh process")
    gates += require(reload_gate(plan.profile_dir, plan.profile, scratch, engine, plan.threads))
    announce("speed")
    rate, eager_rate = rates((engine, expected.eager), plan.profile, _RATE_S)
    gates += require(speed_gate(rate, eager_rate, limits))
    measured, slide_patches = slides_gate(engine, expected, limits, announce)
    gates += require(measured)
    measured, ties = parity_gate(engine, expected, limits, announce)
    gates += require(measured)
    return Figures(
        gates=tuple(gates),
        patches=plan.patches,
        ties=ties,
        slides=plan.slides,
        slide_patches=slide_patches,
        census=census,
        patches_per_s=rate,
        eager_patches_per_s=eager_rate,
        threads=thread_count(plan.threads),
    )


def _compile(plan: Plan, backend: Backend, scratch: Path, announce: Announce) -> Built:
    calibration = plan.calibration
    if calibration is None and plan.precision in MEASURED_RANGES:
        calibration = calibration_inputs(plan.profile, announce)
    announce("compile")
    request = BuildRequest(
        plan.profile,
        scratch,
        plan.precision,
        plan.batch_size,
        plan.threads,
        plan.device,
        calibration,
        announce,
        plan.limits,
    )
    try:
        return backend.build(request)
    except (ImportError, RuntimeError, ValueError) as error:
        _require_room(scratch, len(plan.profile.weights))
        raise EngineError(
            f"{plan.backend} cannot compile this profile: {' '.join(str(error).split())[:500]}"
        ) from error


def _require_room(folder: Path, size: int) -> None:
    """Raise OSError when no file of this size (1 MiB at least) can be written: libraries tell that in other words."""
    probe = folder / "probe"
    try:
        probe.write_bytes(bytes(max(size, 1 << 20)))
    finally:
        with suppress(OSError):
            probe.unlink()


def golden_digest(engine: Engine, profile: LoadedProfile) -> str:
    """sha256 (hex) of what the engine gives for the golden inputs: equal bits, equal digest."""
    prediction = predict_padded(engine, profile.golden_inputs)
    return hashlib.sha256(b"".join(prediction[name].tobytes() for name in sorted(prediction))).hexdigest()


def write_manifest(plan: Plan, backend: Backend, scratch: Path, built: Built, figures: Figures | None) -> Manifest:
    """Hash the files of a built engine and seal its manifest beside them; without figures while it is unproven."""
    files = sorted(path for path in scratch.iterdir() if path.name != MANIFEST)
    manifest = Manifest(
        backend=plan.backend,
        precision=plan.precision,
        batch_size=plan.batch_size,
        outputs=built.outputs,
        notes=built.notes,
        profile=ProfileRef.of(plan.profile),
        device=this_device(plan.device),
        requires={name: distribution_version(name) for name in backend.requires},
        built_with={
            "python": platform.python_version(),
            **{name: distribution_version(name) for name in ("torch", "numpy", "spinextract-agent")},
        },
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        figures=figures,
        limits=plan.limits.of(plan.precision),
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    ).sealed()
    text = manifest.to_json().encode()
    (scratch / MANIFEST).write_bytes(text)
    if plan.sign_with is not None and figures is not None:
        (scratch / SIGNATURE).write_bytes(sign(text, plan.sign_with))
    return manifest
