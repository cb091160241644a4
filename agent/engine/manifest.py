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
from agent.engine.figures import Figures
from agent.engine.signature import SIGNATURE, SignatureRefused, check
from agent.engine_limits import STRICT, EngineLimits, PrecisionLimits
from agent.errors import EngineError
from models.profile import WEIGHTS, Frozen, LoadedProfile

MANIFEST = "engine.json"
ENGINES = "engines"
"""Folder beside profile.yaml that holds the built engines."""
_PLAIN = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,200}(?<!engine\.json)(?<!engine\.json\.sig)")
_EARLIER = {
    1: "built by an earlier version, whose engines give no embedding to compare",
    2: "built by an earlier version, whose gates were fewer",
}


class ProfileRef(Frozen):
    """The profile that an engine was compiled from."""

    name: str
    version: int
    sha256: str
    """sha256 (hex) of profile.yaml."""
    weights: str
    """sha256 (hex) of the weights."""

    @classmethod
    def of(cls, profile: LoadedProfile) -> ProfileRef:
        """What an engine of this profile must name."""
        spec = profile.spec
        return cls(name=spec.name, version=spec.version, sha256=profile.sha256, weights=spec.files[WEIGHTS])


class Manifest(Frozen):
    """engine.json."""

    format: Literal[3] = 3
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
    """Name → sha256 (hex) of every file beside the manifest (but for its signature)."""

    @field_validator("files")
    @classmethod
    def _beside(cls, files: dict[str, str]) -> dict[str, str]:
        # A record may not lead its reader out of the engine's folder.
        if strange := [name for name in files if not _PLAIN.fullmatch(name)]:
            raise ValueError(f"files must be plain names beside {MANIFEST}, not {strange[0]!r:.60}")
        return files

    figures: Figures | None
    """What the gates measured; null while it is being built: such an engine is never used."""
    limits: PrecisionLimits
    """What it was built under."""
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


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of engine.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


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


def verify(
    directory: Path, profile: ProfileRef, limits: EngineLimits = STRICT, public_key: Path | None = None
) -> Manifest:
    """The manifest of an engine that belongs to this profile and machine; raises EngineError like `read_engine`."""
    return read_engine(directory, profile, limits, public_key).manifest


def read_engine(
    directory: Path,
    profile: ProfileRef,
    limits: EngineLimits = STRICT,
    public_key: Path | None = None,
    *,
    unproven: bool = False,
) -> Artefacts:
    """Read and verify a built engine. `unproven` is for the build that is about to prove it.

    Raises EngineError with the reason and the command that mends it: no valid signature although `public_key` asks
    for one (nothing else is read then), no or unreadable manifest, edited by hand, another profile, device or
    library version, a file missing or changed, figures beyond the limits.
    """
    backend = _backend_of(directory)
    command = mend(directory, backend)
    try:
        text = read_signed(directory, public_key)
        manifest = parse_manifest(text)
        files = {name: (directory / name).read_bytes() for name in manifest.files}
    except OSError as error:
        raise EngineError(f"{error.filename or directory}: {error.strerror}; run: {command}") from error
    except SignatureRefused as error:
        raise EngineError(f"{directory.name}: {error}; run: {command} --sign-with KEY.pem") from error
    except ValueError as error:
        raise EngineError(f"{directory / MANIFEST}: {error}; run: {command}") from error
    reason = _mismatch(manifest, files, profile, backend)
    if reason is None and not unproven:
        reason = _unproven(manifest, limits)
    if reason:
        raise EngineError(f"{directory.name}: {reason}; run: {command}")
    return Artefacts(manifest, files)


def read_signed(directory: Path, public_key: Path | None) -> bytes:
    """The bytes of engine.json, whose signature has been checked when there is a key to check it with.

    Raises SignatureRefused, OSError for an unreadable file, EngineError for an unusable key.
    """
    text = (directory / MANIFEST).read_bytes()
    if public_key is not None:
        path = directory / SIGNATURE
        check(text, path.read_bytes() if path.exists() else None, public_key)
    return text


def parse_manifest(text: bytes) -> Manifest:
    """Read engine.json; raises ValueError for other contents or for one edited after the build."""
    try:
        record: Any = json.loads(text)
        if isinstance(record, dict) and record.get("format") in (1, 2):
            raise ValueError(_EARLIER[record["format"]])
        manifest = Manifest.model_validate(record)
    except RecursionError as error:
        raise ValueError("not an engine manifest: it is nested too deeply") from error
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise ValueError(f"not an engine manifest of this version (see {fields})") from error
    if manifest.sha256 != manifest.digest():
        raise ValueError("edited after the build (its own sha256 differs)")
    return manifest


def _backend_of(directory: Path) -> str:
    """A folder's name starts with its backend, after a dot while it is being built."""
    return directory.name.lstrip(".").partition("-")[0]


def _mismatch(manifest: Manifest, files: dict[str, bytes], profile: ProfileRef, backend: str) -> str | None:
    if manifest.profile.sha256 != profile.sha256:
        return f"built for profile {manifest.profile.sha256[:12]}…, this one is {profile.sha256[:12]}…"
    if manifest.profile != profile:
        return f"built for {_named(manifest.profile)}, this profile is {_named(profile)}"
    if manifest.backend != backend:
        return f"lies in the place of backend {backend}, its manifest says {manifest.backend!r:.60}"
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


def _unproven(manifest: Manifest, limits: EngineLimits) -> str | None:
    if manifest.figures is None:
        return "its build was never finished: no gate was passed"
    for figure in manifest.figures.gates:
        now = figure.under(limits.of(manifest.precision))
        if not now.passed:
            return f"built under other limits: gate {now.gate!r}, {now.words()}"
    return None


def _named(profile: ProfileRef) -> str:
    return f"{profile.name} {profile.version} with weights {profile.weights[:12]}…"


def _words(device: Device) -> str:
    driver = (f"driver {device.driver}",) if device.driver else ()
    return f"{device.model or device.kind} ({' '.join([*device.instructions, *driver])})"
