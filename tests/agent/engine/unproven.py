"""Builds an engine without gates, for tests that need one quickly, and figures that no gate measured."""

from __future__ import annotations

from pathlib import Path

from agent.engine.backend import Backend, BuildRequest
from agent.engine.build import Plan, write_manifest
from agent.engine.figures import Figures, GateFigure
from agent.engine.manifest import Manifest
from agent.engine_limits import STRICT
from models.profile import LoadedProfile


def made_up_figures(precision: str, **changes: float) -> Figures:
    """Figures that keep every limit, but for `changes` (name of a limit → figure)."""
    limits = STRICT.of(precision)
    kept = {name: getattr(limits, name) for name in type(limits).model_fields} | changes
    gates = tuple(GateFigure.limited("made up", name, value, name, limits) for name, value in kept.items())
    return Figures(
        gates=gates,
        patches=64,
        ties=0,
        slides=1,
        slide_patches=30,
        census={},
        patches_per_s=60.5,
        eager_patches_per_s=17,
        threads=2,
    )


def build_unproven(backend: Backend, profile: LoadedProfile, target: Path, precision: str, batch: int) -> Manifest:
    """Compile into `target` and seal its manifest, which says that every gate was passed."""
    target.mkdir(parents=True)
    built = backend.build(BuildRequest(profile, target, precision, batch, 1))
    plan = Plan(target.parent.parent, profile, backend.name, precision, batch, 1)
    return write_manifest(plan, backend, target, built, made_up_figures(precision))
