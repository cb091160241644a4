"""Builds an engine beside the one in place, proves it, and only then swaps the two.

Decides the order of the gates and how a directory is replaced. Must not know any backend's inside.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine import find_backend, open_built, predict_padded, self_test
from agent.engine.backend import Backend, BuildRequest, Built, Engine, kind_of, thread_count
from agent.engine.device import this_device
from agent.engine.gates import GateFailedError, Parity, independence_gate, parity_gate, rate
from agent.engine.manifest import (
    MANIFEST,
    Figures,
    Manifest,
    ProfileRef,
    distribution_version,
    engine_folder,
)
from agent.errors import EngineError
from models.profile import LoadedProfile

PARITY_PATCHES = 128
"""Inputs of the parity gate."""
_RATE_S = 0.5
_RELOAD_LIMIT_S = 300
_PACKAGES = Path(__file__).parents[2]
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


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
    device: str = "cpu"
    calibration: NDArray[np.uint16] | None = None
    """See BuildRequest."""


def build_engine(plan: Plan, announce: Callable[[str], None]) -> tuple[Path, Manifest]:
    """Build, prove and put in place; returns the engine's folder and manifest. `announce` gets each step's name.

    Raises GateFailedError (the engine in place stays) and EngineError when nothing could be built.
    """
    kind = kind_of(plan.device)
    target = engine_folder(plan.profile_dir, plan.backend, plan.precision, plan.batch_size, kind)
    _remove_leftovers(target)
    # The folder's name starts with the backend (it is read back) after a dot (it is never picked up as an engine).
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        manifest = _build_and_prove(plan, scratch, announce)
        announce("put in place")
        _replace(target, scratch)
    except OSError as error:
        raise EngineError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target, manifest


def _build_and_prove(plan: Plan, scratch: Path, announce: Callable[[str], None]) -> Manifest:
    backend = find_backend(plan.backend)
    announce("compile")
    built = _compile(plan, backend, scratch, announce)
    write_manifest(plan, backend, scratch, built, None)
    announce("golden pair")
    engine = open_built(plan.profile, scratch, plan.threads)
    golden_max_dp = _golden_gate(engine, plan.profile)
    announce(f"parity on {plan.patches} patches")
    # One thread: torch's threads wait actively for each other, which is very slow on a busy machine.
    parity = parity_gate(engine, find_backend("eager").load(plan.profile, None, 1), plan.profile, plan.patches)
    announce("independence of neighbours")
    independence_gate(engine, plan.profile)
    announce("reload in a fresh process")
    _reload_gate(plan, scratch, engine)
    announce("speed")
    figures = _figures(plan, engine, golden_max_dp, parity)
    engine.close()
    return write_manifest(plan, backend, scratch, built, figures)


def _compile(plan: Plan, backend: Backend, scratch: Path, announce: Callable[[str], None]) -> Built:
    request = BuildRequest(
        plan.profile, scratch, plan.precision, plan.batch_size, plan.threads, plan.device, plan.calibration, announce
    )
    try:
        return backend.build(request)
    except (ImportError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"{plan.backend} cannot compile this profile: {' '.join(str(error).split())[:500]}"
        ) from error


def _golden_gate(engine: Engine, profile: LoadedProfile) -> float:
    try:
        return self_test(engine, profile)
    except EngineError as error:
        raise GateFailedError("golden pair", str(error)) from error


def _reload_gate(plan: Plan, scratch: Path, engine: Engine) -> None:
    command = [sys.executable, "-m", "agent.build_trt", "check", "--json"]
    command += ["--profile", str(plan.profile_dir), "--engine", str(scratch), "--threads", str(plan.threads)]
    paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_RELOAD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GateFailedError("reload", f"a fresh process took more than {_RELOAD_LIMIT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise GateFailedError("reload", lines[-1])
    if json.loads(done.stdout)["golden_digest"] != golden_digest(engine, plan.profile):
        raise GateFailedError("reload", "a fresh process gives other bits on the golden pair")


def golden_digest(engine: Engine, profile: LoadedProfile) -> str:
    """sha256 (hex) of what the engine gives for the golden inputs: equal bits, equal digest."""
    prediction = predict_padded(engine, profile.golden_inputs)
    return hashlib.sha256(b"".join(prediction[name].tobytes() for name in sorted(prediction))).hexdigest()


def _figures(plan: Plan, engine: Engine, golden_max_dp: float, parity: Parity) -> Figures:
    patches_per_s = rate(engine, plan.profile, _RATE_S)
    eager = find_backend("eager").load(plan.profile, None, plan.threads)
    return Figures(
        patches=plan.patches,
        golden_max_dp=golden_max_dp,
        max_dp=parity.max_dp,
        mean_dp=parity.mean_dp,
        argmax_agreement=parity.argmax_agreement,
        ties=parity.ties,
        embedding_difference=parity.embedding_difference,
        far_agreement=parity.far_agreement,
        patches_per_s=patches_per_s,
        eager_patches_per_s=rate(eager, plan.profile, _RATE_S),
        threads=thread_count(plan.threads),
    )


def write_manifest(plan: Plan, backend: Backend, scratch: Path, built: Built, figures: Figures | None) -> Manifest:
    """Hash the files of a built engine and seal its manifest beside them; without figures while it is unproven."""
    files = sorted(path for path in scratch.iterdir() if path.name != MANIFEST)
    spec = plan.profile.spec
    manifest = Manifest(
        backend=plan.backend,
        precision=plan.precision,
        batch_size=plan.batch_size,
        outputs=built.outputs,
        notes=built.notes,
        profile=ProfileRef(name=spec.name, version=spec.version, sha256=plan.profile.sha256),
        device=this_device(plan.device),
        requires={name: distribution_version(name) for name in backend.requires},
        built_with={
            "python": platform.python_version(),
            **{name: distribution_version(name) for name in ("torch", "numpy", "spinextract-agent")},
        },
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        figures=figures,
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    ).sealed()
    (scratch / MANIFEST).write_text(manifest.to_json())
    return manifest


def _replace(target: Path, scratch: Path) -> None:
    """Put `scratch` at `target` in one step, so that a reader finds the old engine or the new one, never none."""
    if not target.exists():
        scratch.rename(target)
    elif not _exchange(target, scratch):  # a file system that cannot exchange: the old one steps aside first
        aside = target.with_name(f".{target.name}.old")
        target.rename(aside)
        scratch.rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where libc or the file system has none."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    status: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return status == 0


def _remove_leftovers(target: Path) -> None:
    """Delete what interrupted builds of this engine left, but nothing of a build that still runs."""
    for path in target.parent.glob(f".{target.name}.*"):
        owner = path.suffix[1:]
        if not (owner.isdigit() and _runs(int(owner))):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
