"""The record beside a built engine, and the checks that refuse one that does not belong here.

Must not know any backend: what an engine is bound to is written in its manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from agent.engine.device import Device, this_device
from agent.errors import EngineError
from models.profile import Frozen

MANIFEST = "engine.json"
ENGINES = "engines"
"""Folder beside profile.yaml that holds the built engines."""
_PLAIN = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,200}(?<!engine\.json)")


class ProfileRef(Frozen):
    """The profile that an engine was compiled from."""

    name: str
    version: int
    sha256: str


class Figures(Frozen):
    """What the gates measured at build time; differences are of probabilities, against eager fp32."""

    patches: int = Field(ge=1)
    """Inputs of the parity gate; half of them blend two classes."""
    golden_max_dp: float
    max_dp: float
    mean_dp: float
    argmax_agreement: float = Field(ge=0, le=1)
    ties: int
    """Inputs whose class differs although both engines hold the two classes within the |dp| limit."""
    embedding_difference: float
    """Largest distance of an embedding from eager's, as a share of eager's length."""
    far_agreement: float | None = Field(None, ge=0, le=1)
    """Share of inputs that both call far, or both near; null when the profile has no reference."""
    patches_per_s: float
    eager_patches_per_s: float
    threads: int
    """Threads of both rates."""


class Manifest(Frozen):
    """engine.json."""

    format: Literal[2] = 2
    backend: str
    precision: str
    batch_size: int = Field(ge=1)
    outputs: dict[str, int]
    """Name → columns of what the engine gives: logits or probabilities, and the embedding."""
    notes: dict[str, str] = {}
    """What people should know of the build: topic → sentence."""
    profile: ProfileRef
    device: Device
    requires: dict[str, str]
    """Distribution → version that must be the same at run time."""
    built_with: dict[str, str]
    """Other versions at build time, for people."""
    files: dict[str, str]
    """Name → sha256 (hex) of every file beside the manifest."""

    @field_validator("files")
    @classmethod
    def _beside(cls, files: dict[str, str]) -> dict[str, str]:
        # A record may not lead its reader out of the engine's folder.
        if strange := [name for name in files if not _PLAIN.fullmatch(name)]:
            raise ValueError(f"files must be plain names beside {MANIFEST}, not {strange[0]!r:.60}")
        return files

    figures: Figures | None
    built_at: str
    """UTC, ISO 8601."""
    sha256: str = ""
    """Of the rest of this record: an edit by hand shows. (It is no signature.)"""

    def sealed(self) -> Manifest:
        """The same record with its own sha256."""
        return self.model_copy(update={"sha256": self.digest()})

    def digest(self) -> str:
        """sha256 (hex) of everything but `sha256`, as canonical JSON."""
        record = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of engine.json."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


@dataclass(frozen=True)
class Artefacts:
    """A verified manifest and the very bytes that were verified."""

    manifest: Manifest
    files: dict[str, bytes]


def engine_folder(profile_dir: Path, backend: str, precision: str, batch_size: int, kind: str = "cpu") -> Path:
    """Where an engine of this kind lies, e.g. `inductor-bf16-b1` for the CPU and `inductor-cuda-bf16-b32`."""
    name = backend if kind == "cpu" else f"{backend}-{kind}"
    return profile_dir / ENGINES / f"{name}-{precision}-b{batch_size}"


def distribution_version(name: str) -> str:
    """Installed version of a distribution, or `not installed`; imports nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def mend(directory: Path, backend: str) -> str:
    """The command that replaces the engine in this directory."""
    device = " --device cuda" if f"{backend}-cuda-" in directory.name else ""
    return f"python -m agent.build_trt --profile {directory.parent.parent} --backend {backend}{device}"


def verify(directory: Path, profile_sha256: str) -> Manifest:
    """The manifest of an engine that belongs to this profile and machine; raises EngineError like `read_engine`."""
    return read_engine(directory, profile_sha256).manifest


def read_engine(directory: Path, profile_sha256: str) -> Artefacts:
    """Read and verify a built engine.

    Raises EngineError with the reason and the command that mends it: no or unreadable manifest, edited by hand,
    another profile, device or library version, a file missing or changed.
    """
    command = mend(directory, directory.name.lstrip(".").partition("-")[0])
    try:
        manifest = parse_manifest((directory / MANIFEST).read_bytes())
        files = {name: (directory / name).read_bytes() for name in manifest.files}
    except OSError as error:
        raise EngineError(f"{error.filename or directory}: {error.strerror}; run: {command}") from error
    except ValueError as error:
        raise EngineError(f"{directory / MANIFEST}: {error}; run: {command}") from error
    reason = _mismatch(manifest, files, profile_sha256)
    if reason:
        raise EngineError(f"{directory.name}: {reason}; run: {command}")
    return Artefacts(manifest, files)


def parse_manifest(text: bytes) -> Manifest:
    """Read engine.json; raises ValueError for other contents or for one edited after the build."""
    try:
        record: Any = json.loads(text)
        if isinstance(record, dict) and record.get("format") == 1:
            raise ValueError("built by an earlier version, whose engines give no embedding to compare")
        manifest = Manifest.model_validate(record)
    except RecursionError as error:
        raise ValueError("not an engine manifest: it is nested too deeply") from error
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise ValueError(f"not an engine manifest of this version (see {fields})") from error
    if manifest.sha256 != manifest.digest():
        raise ValueError("edited after the build (its own sha256 differs)")
    return manifest


def _mismatch(manifest: Manifest, files: dict[str, bytes], profile_sha256: str) -> str | None:
    if manifest.profile.sha256 != profile_sha256:
        return f"built for profile {manifest.profile.sha256[:12]}…, this one is {profile_sha256[:12]}…"
    device = this_device(manifest.device.kind)
    if manifest.device != device:
        return f"built on {_words(manifest.device)}, this machine is {_words(device)}"
    for name, built in manifest.requires.items():
        found = distribution_version(name)
        if found != built:
            return f"built with {name} {built}, this machine has {found}"
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest.files[name]:
            return f"{name} differs from the file that was built"
    return None


def _words(device: Device) -> str:
    driver = (f"driver {device.driver}",) if device.driver else ()
    return f"{device.model or device.kind} ({' '.join([*device.instructions, *driver])})"
