"""The software bill of materials: the run-time closure as CycloneDX 1.6 JSON, the same for the same input.

Without a time and a serial number, unless SOURCE_DATE_EPOCH gives the time (reproducible-builds.org).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from tests.supply.closure import NAME, ROOT, Closure, Distribution, version
from tests.supply.licences import licence_of

PAGE = ROOT / "agent" / "dashboard" / "page"
FONT = "atkinson-hyperlegible-next"
PROFILE = ROOT / "configs" / "profiles" / "phantom" / "profile.yaml"


def sbom(closure: Closure, environment: Mapping[str, str] = os.environ) -> str:
    """The document. Everything in it has a version, and a licence where its metadata tells one."""
    bom = Bom()
    project = Component(
        name=NAME,
        version=version(),
        type=ComponentType.APPLICATION,
        bom_ref=NAME,
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        hashes=_sha256(closure.sha256),
    )
    bom.metadata.component = project
    bom.metadata.properties.add(Property(name="cdx:reproducible", value="true"))
    parts = {name: _component(found) for name, found in closure.distributions.items()}
    shipped = [_font(), _phantom()]
    for component in (*parts.values(), *shipped):
        bom.components.add(component)
    bom.register_dependency(project, [*(parts[name] for name in closure.needs[NAME]), *shipped])
    for name, component in parts.items():
        bom.register_dependency(component, [parts[needed] for needed in closure.needs[name] if needed != name])
    # The library makes both anew each time; the schema needs neither.
    loose = cast(Any, bom)
    loose.serial_number = None
    loose.metadata.timestamp = _build_time(environment)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2) + "\n"


def _component(found: Distribution) -> Component:
    purl = PackageURL("pypi", None, found.name, found.version)
    licence = licence_of(found.metadata)
    return Component(
        name=found.name,
        version=found.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else (),
        hashes=_sha256(found.sha256),
    )


def _font() -> Component:
    """The dashboard's page brings its own font."""
    return Component(
        name=FONT,
        version="unversioned",
        type=ComponentType.FILE,
        bom_ref=FONT,
        licenses=[LicenseFactory().make_from_string("OFL-1.1")],
        hashes=_sha256(hashlib.sha256((PAGE / f"{FONT}.woff2").read_bytes()).hexdigest()),
    )


def _phantom() -> Component:
    """The profile that comes along; the sha256 of its manifest covers its weights."""
    return Component(
        name="phantom",
        version="of this release",
        description="synthetic phantom profile, not of tissue",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="phantom",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        hashes=_sha256(hashlib.sha256(PROFILE.read_bytes()).hexdigest()),
    )


def _sha256(digest: str | None) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else []


def _build_time(environment: Mapping[str, str]) -> datetime | None:
    seconds = environment.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(seconds), UTC) if seconds else None
