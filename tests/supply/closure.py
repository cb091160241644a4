"""Every distribution that the services need at run time, from pyproject.toml, through what is installed or packed.

Knows no SBOM and no policy.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("cpu", "dashboard", "dicom-out")
"""What install.sh and wheels.sh take when they are not told otherwise."""
NAME = "spinextract-agent"


@dataclass(frozen=True)
class Distribution:
    """One distribution as its own metadata describes it."""

    name: str
    """Normalised (PEP 503)."""
    version: str
    metadata: Message
    sha256: str | None = None
    """Of the wheel, where there is one."""
    is_direct: bool = False
    """Installed from a URL or a folder and not from an index."""


Find = Callable[[str], Distribution | None]
"""A distribution by its normalised name; None when it is not there."""


class ClosureError(Exception):
    """Something that is needed is not there."""


def installed(name: str) -> Distribution | None:
    """What this environment holds."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    metadata = BytesParser().parsebytes((found.read_text("METADATA") or "").encode())
    direct = found.read_text("direct_url.json") is not None
    return Distribution(canonicalize_name(name), found.version, metadata, is_direct=direct)


def in_wheels(folder: Path) -> Find:
    """What a folder of wheels holds, with the hashes of the files."""
    found: dict[str, Distribution] = {}
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
            metadata = BytesParser().parsebytes(wheel.read(name))
        key = canonicalize_name(metadata["Name"])
        if key in found:
            raise ClosureError(f"{key} is packed twice: {found[key].version} and {metadata['Version']}")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        found[key] = Distribution(key, metadata["Version"], metadata, sha256)
    return found.get


def roots(extras: Iterable[str] = EXTRAS) -> list[Requirement]:
    """What pyproject.toml asks for, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    lines = [*project.get("dependencies", ()), *(line for extra in extras for line in optional.get(extra, ()))]
    return [Requirement(line) for line in lines]


def version() -> str:
    """Of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


@dataclass(frozen=True)
class Closure:
    """The distributions by name, and what each asks for by name; under NAME what the project asks for."""

    distributions: Mapping[str, Distribution]
    needs: Mapping[str, tuple[str, ...]]
    sha256: str | None = None
    """Of the project's own wheel, where there is one."""


def closure(find: Find = installed, extras: Iterable[str] = EXTRAS) -> Closure:
    """Follow every requirement that holds on this machine. Raises ClosureError for one that is not met."""
    taken: dict[str, set[str]] = {}
    distributions: dict[str, Distribution] = {}
    needs: dict[str, set[str]] = {NAME: set()}
    waiting = [(NAME, requirement) for requirement in roots(extras)]
    while waiting:
        asker, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found = distributions.get(name) or find(name)
        if found is None or not requirement.specifier.contains(found.version, prereleases=True):
            raise ClosureError(f"{asker} needs {requirement}, {found.version if found else 'nothing'} is there")
        distributions[name] = found
        needs[asker].add(name)
        needs.setdefault(name, set())
        new = {"", *requirement.extras} - taken.setdefault(name, set())
        taken[name] |= new
        for line in found.metadata.get_all("Requires-Dist", []) if new else []:
            inner = Requirement(line)
            if any(inner.marker is None or inner.marker.evaluate({"extra": extra}) for extra in new):
                waiting.append((name, inner))
    own = find(NAME)
    wanted = {name: tuple(sorted(names)) for name, names in sorted(needs.items())}
    return Closure(distributions, wanted, own.sha256 if own else None)
