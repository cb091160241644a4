"""`python -m agent.build_trt report` and `check`: what is built for a profile, and whether it may be used here."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.engine import built_engines, load_built
from agent.engine.build import golden_digest
from agent.engine.manifest import MANIFEST, ProfileRef, verify
from agent.engine.signature import SIGNATURE, SignatureRefused
from agent.engine.signature import check as check_signature
from agent.engine.table import Listed, engine_report
from agent.engine.targets import not_usable
from agent.engine_limits import STRICT, EngineLimits
from agent.errors import EngineError
from agent.naming import NamingSettings
from agent.settings import load_settings
from models.profile import LoadedProfile


@dataclass(frozen=True)
class Terms:
    """What the agent's settings say of engines."""

    profile: Path | None = None
    threads: int = 0
    limits: EngineLimits = STRICT
    public_key: Path | None = None
    naming: NamingSettings = field(default_factory=NamingSettings)

    @classmethod
    def read(cls, config: Path | None) -> Terms:
        """Of a settings file; the defaults without one. Raises SettingsError."""
        if config is None:
            return cls()
        settings = load_settings(config)
        engine = settings.engine
        return cls(settings.profile, engine.threads, engine.limits, engine.public_key, settings.naming)


def listed(profile_dir: Path, profile: LoadedProfile, terms: Terms) -> list[Listed]:
    """Every built engine, newest first, as it stands here."""
    found = []
    for folder, manifest in built_engines(profile_dir):
        try:
            verify(folder, ProfileRef.of(profile), terms.limits, terms.public_key)
            state = "usable"
        except EngineError as error:
            state = str(error)
        found.append(Listed(folder, manifest, state, _signature(folder, terms.public_key)))
    return found


def report(profile_dir: Path, profile: LoadedProfile, terms: Terms, *, quiet: bool) -> dict[str, Any]:
    """Print the tables, or give the same as JSON."""
    engines = listed(profile_dir, profile, terms)
    not_run = not_usable()
    if not quiet:
        show(engines)
        if not engines:
            print(f"nothing built; run: python -m agent.build_trt --profile {profile_dir}")
        for name, reason in not_run.items():
            print(f"{name}: not run: {reason}")
    return {
        "engines": [
            {
                "engine": str(engine.folder),
                "usable": engine.usable,
                "state": engine.state,
                "signature": engine.signature,
                "manifest": engine.manifest.model_dump(mode="json") if engine.manifest else None,
            }
            for engine in engines
        ],
        "not_run": not_run,
    }


def show(engines: list[Listed]) -> None:
    """The tables on stdout."""
    if engines:
        Console().print(*engine_report(engines), sep="\n")


def check(
    profile_dir: Path, profile: LoadedProfile, terms: Terms, folder: Path | None, *, quiet: bool
) -> dict[str, Any]:
    """Load an engine (the newest) as the daemon would; raises EngineError."""
    built = built_engines(profile_dir, public_key=terms.public_key)
    folders = [folder] if folder else [path for path, _ in built][:1]
    if not folders:
        raise EngineError(f"nothing built; run: python -m agent.build_trt --profile {profile_dir}")
    engine = load_built(profile, folders[0], terms.threads, terms.limits, terms.public_key)
    if not quiet:
        print(f"{folders[0].name}: {engine.name} {engine.precision}, batch {engine.batch_size}, golden pair agrees")
    return {
        "engine": str(folders[0]),
        "backend": engine.name,
        "precision": engine.precision,
        "golden_digest": golden_digest(engine, profile),
        "torch_loaded": "torch" in sys.modules,
    }


def _signature(folder: Path, public_key: Path | None) -> str:
    path = folder / SIGNATURE
    try:
        signature = path.read_bytes() if path.exists() else None
        if signature is None:
            return "unsigned"
        if public_key is None:
            return "signed (no engine.public_key to check it with)"
        check_signature((folder / MANIFEST).read_bytes(), signature, public_key)
    except (OSError, SignatureRefused, EngineError) as error:
        return f"not valid: {error}"
    return f"signed by the owner of {public_key.name}"
