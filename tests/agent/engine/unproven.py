"""Builds an engine without gates, for tests that need one quickly."""

from __future__ import annotations

from pathlib import Path

from agent.engine.backend import Backend, BuildRequest
from agent.engine.build import Plan, write_manifest
from agent.engine.manifest import Manifest
from models.profile import LoadedProfile


def build_unproven(backend: Backend, profile: LoadedProfile, target: Path, precision: str, batch: int) -> Manifest:
    """Compile into `target` and seal its manifest."""
    target.mkdir(parents=True)
    built = backend.build(BuildRequest(profile, target, precision, batch, 1))
    plan = Plan(target.parent.parent, profile, backend.name, precision, batch, 1)
    return write_manifest(plan, backend, target, built, None)
