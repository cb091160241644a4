"""Which engines the settings' order names, and in which order they are tried.

Reads names and manifests only; whether an engine can be used is agent.engine's matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.engine.backend import PRECISIONS, Backend
from agent.engine.manifest import ENGINES, MANIFEST, Manifest, mend, parse_manifest, read_signed
from agent.errors import EngineError, SettingsError

_NAME = re.compile(r"([^-]+)(?:-(cuda))?(?:-([^-]+)(?:-b([1-9][0-9]*))?)?")


@dataclass(frozen=True)
class Entry:
    """One entry of the order: a backend, or more exactly the engines whose folders' names begin like this."""

    name: str
    """`openvino`, `openvino-int8`, `openvino-bf16-b32`, `inductor-cuda`."""
    backend: Backend
    precision: str | None = None
    batch_size: int | None = None

    def fits(self, folder: Path) -> bool:
        """Whether it names the engine in this folder: at a dash, so that b3 is not b32."""
        return f"{folder.name}-".startswith(f"{self.name}-")

    def mend(self, profile_dir: Path) -> str:
        """The command that builds what it names."""
        command = mend(profile_dir / ENGINES / f"{self.name}-", self.backend.name)
        precision = f" --precision {self.precision}" if self.precision else ""
        return command + precision + (f" --batch {self.batch_size}" if self.batch_size else "")


@dataclass(frozen=True)
class Candidate:
    """An engine to try."""

    entry: Entry
    folder: Path | None = None
    """Of a built engine."""

    @property
    def label(self) -> str:
        """How people are told of it."""
        return self.folder.name if self.folder else self.entry.name


def parse_entry(name: str, backends: Mapping[str, Backend]) -> Entry:
    """Read one entry of the order; raises SettingsError naming what is known."""
    match = _NAME.fullmatch(name)
    backend = backends.get(match[1]) if match else None
    if match is None or backend is None:
        raise SettingsError(f"unknown engine {name!r}; known: {', '.join(backends)}")
    if match[2] is not None and match[2] not in backend.devices:
        raise SettingsError(f"unknown engine {name!r}: {backend.name} runs on {', '.join(backend.devices)}")
    if match[3] is None and match[2] is None:
        return Entry(name, backend)
    if not backend.needs_build:
        raise SettingsError(f"unknown engine {name!r}: {backend.name} is not built, name it {backend.name!r}")
    if match[3] is not None and match[3] not in PRECISIONS:
        raise SettingsError(f"unknown engine {name!r}; known precisions: {', '.join(PRECISIONS)}")
    return Entry(name, backend, match[3], int(match[4]) if match[4] else None)


def candidates(profile_dir: Path, entries: Iterable[Entry], public_key: Path | None = None) -> Iterator[Candidate]:
    """Every engine to try, each once; of an entry of which nothing is built, the entry itself.

    Of several engines of one entry, those of the backend's batch in service come first, then the one built last.
    """
    known: set[Path] = set()
    for entry in entries:
        if not entry.backend.needs_build:
            yield Candidate(entry)
            continue
        fitting = [
            (folder, found) for folder, found in built_engines(profile_dir, None, public_key) if entry.fits(folder)
        ]
        first = [folder for folder, found in fitting if found and _is_in_service(entry.backend, found)]
        rest = [folder for folder, _ in fitting if folder not in first]
        for folder in (*first, *rest):
            if folder not in known:
                yield Candidate(entry, folder)
        known.update(first, rest)
        if not fitting:
            yield Candidate(entry)


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


def _is_in_service(backend: Backend, manifest: Manifest) -> bool:
    return manifest.batch_size == backend.default_batch(manifest.device.kind)
