"""Promises of the bill of materials: valid, whole, and the same for the same input."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.supply.closure import NAME, ROOT, ClosureError, closure, in_wheels, roots
from tests.supply.sbom import sbom


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The one of this environment."""
    made: dict[str, Any] = json.loads(sbom(closure(), {}))
    return made


def test_it_is_valid_cyclonedx() -> None:
    """The strict schema of CycloneDX 1.6 accepts it, with and without a build time."""
    for environment in ({}, {"SOURCE_DATE_EPOCH": "1700000000"}):
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom(closure(), environment)) is None


def test_it_is_reproducible() -> None:
    """Another process gives the same bytes; a time stands in it only when SOURCE_DATE_EPOCH says which."""
    words = [sys.executable, "-m", "tests.supply", "sbom"]
    done = [subprocess.run(words, cwd=ROOT, capture_output=True, env={}, check=True).stdout for _ in range(2)]
    assert done[0] == done[1] == sbom(closure(), {}).encode()
    assert b"timestamp" not in done[0] and b"serialNumber" not in done[0]
    dated = json.loads(sbom(closure(), {"SOURCE_DATE_EPOCH": "1700000000"}))
    assert dated["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")


def test_it_covers_what_runs(document: dict[str, Any]) -> None:
    """Everything that pyproject.toml asks for at run time and all behind it, with version and licence; nothing of the
    development tools; the page's font and the phantom profile, too."""
    parts = {part["name"]: part for part in document["components"]}
    assert {requirement.name.lower() for requirement in roots()} <= parts.keys()
    assert {"pydantic-core", "typing-extensions", "atkinson-hyperlegible-next", "phantom"} <= parts.keys()
    assert not {"pytest", "mypy", "cyclonedx-bom", "hypothesis"} & parts.keys()
    assert all(part["version"] and part["licenses"] for part in parts.values())
    assert document["metadata"]["component"]["name"] == NAME


def test_every_dependency_is_listed(document: dict[str, Any]) -> None:
    """Each edge of the graph leads to a component, and from the project every component can be reached."""
    graph = {node["ref"]: node.get("dependsOn", []) for node in document["dependencies"]}
    references = {part["bom-ref"] for part in document["components"]}
    reached, waiting = {NAME}, [NAME]
    while waiting:
        for found in graph[waiting.pop()]:
            if found not in reached:
                reached.add(found)
                waiting.append(found)
    assert reached == references | {NAME}


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel that holds its metadata and nothing else."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", "License-Expression: MIT"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_wheels_give_hashes(tmp_path: Path) -> None:
    """From a folder of wheels each component has the sha256 of its file; markers and extras are followed."""
    for requirement in roots():
        extras = ("inner[fast]>=1; python_version >= '3'", "never; python_version < '3'")
        wheel(tmp_path, requirement.name.replace("-", "_"), "9999", *extras)
    path = wheel(tmp_path, "inner", "1.5", "deep; extra == 'fast'", "not_asked; extra == 'slow'")
    wheel(tmp_path, "deep", "2")
    made = json.loads(sbom(closure(in_wheels(tmp_path)), {}))
    parts = {part["name"]: part for part in made["components"]}
    assert parts["inner"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]
    assert "deep" in parts and not {"never", "not-asked"} & parts.keys()


def test_what_is_missing_or_there_twice_is_told(tmp_path: Path) -> None:
    """A wheel set that would not install is refused."""
    with pytest.raises(ClosureError, match=r"needs .*, nothing is there"):
        closure(in_wheels(tmp_path))
    wheel(tmp_path, "torch", "1.0")
    with pytest.raises(ClosureError, match=r"is there"):
        closure(in_wheels(tmp_path))
    wheel(tmp_path, "torch", "2.0")
    with pytest.raises(ClosureError, match="packed twice"):
        in_wheels(tmp_path)
