"""A machine to examine: a settings file in a folder of its own, certificates, and what doctor finds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.doctor import Finding, examine
from agent.settings import Settings, load_settings
from tests.brokers import need

PROFILE = Path(__file__).resolve().parents[3] / "configs" / "profiles" / "phantom"
Found = dict[str, list[Finding]]


class Site:
    """A healthy machine, until the test spoils it."""

    def __init__(self, home: Path, port: int = 1) -> None:
        self.home = home
        self.folder, self.state = home / "imager", home / "state"
        self.folder.mkdir()
        self.config = home / "agent.yaml"
        self.document: dict[str, Any] = {
            "folder": str(self.folder),
            "state_dir": str(self.state),
            "profile": str(PROFILE),
            "engine": {"order": ["eager"], "threads": 1},
            "mqtt": {"port": port},
            "dashboard": {"port": 0},
        }

    def write(self, **changes: Any) -> None:
        """Write the settings file."""
        self.config.write_text(yaml.safe_dump({**self.document, **changes}))

    def settings(self, **changes: Any) -> Settings:
        """The settings, with these sections changed."""
        self.write(**changes)
        return load_settings(self.config)

    def look(self, check: Callable[[Settings], Iterator[Finding]], **changes: Any) -> Found:
        """What one check finds, by its findings' words."""
        return by_check(check(self.settings(**changes)))

    def examine(self, **changes: Any) -> Found:
        """What the whole examination finds."""
        self.write(**changes)
        return by_check(examine(self.config))

    def bare_profile(self) -> Path:
        """A copy of the profile without any built engine."""
        folder = self.home / "profile"
        shutil.copytree(PROFILE, folder, ignore=shutil.ignore_patterns("engines"))
        return folder


def by_check(findings: Iterator[Finding]) -> Found:
    """Findings by their words; what is wrong must say why and what to do, what is well has nothing to mend."""
    found: Found = {}
    for finding in findings:
        assert bool(finding.why and finding.mend) == (finding.verdict != "ok"), finding
        found.setdefault(finding.check, []).append(finding)
    return found


def only(found: Found, check: str) -> Finding:
    """The one finding of a check."""
    (finding,) = found[check]
    return finding


def make_certificate(folder: Path, name: str, host: str = "localhost", days: int = 90) -> None:
    """Write a self-signed certificate and its key; -1 days make one that has expired."""
    openssl, certificate, key = need("openssl", "openssl"), str(folder / f"{name}.crt"), str(folder / f"{name}.key")
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={host}"
    made = [openssl, *words.split(), "-addext", f"subjectAltName=DNS:{host}", "-keyout", key, "-out", certificate]
    dated = [openssl, "x509", "-in", certificate, "-signkey", key, "-days", str(days), "-out", certificate]
    for command in (made, dated):
        environment = {**os.environ, "RANDFILE": str(folder / "random")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
    Path(key).chmod(0o600)
