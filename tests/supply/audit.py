"""Whether the run-time closure may be released: rules that need no network, and known vulnerabilities where a service
tells them.

An answer that looked at nothing is no answer: pip-audit calls a closure clean when it could look up none of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.supply.closure import NAME, ROOT, Closure
from tests.supply.licences import is_allowed, licence_of

CONSTRAINTS = ROOT / "constraints.txt"
SERVICES = ("pypi", "osv")
TIMEOUT_S = 120
CLEAN, GUILTY, NOT_AUDITED = 0, 1, 3
"""Exit codes. 2 is for bad arguments."""


def pins(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Name → version of every line. Raises ValueError for a line that is no exact pin, or that comes twice."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line)
        if pin is None or canonicalize_name(pin[1]) in found:
            raise ValueError(f"{path.name}: {line!r} is no exact pin of something new")
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def offences(closure: Closure, pinned: dict[str, str]) -> Iterator[str]:
    """What breaks a rule: not pinned, another version, from a URL, or a licence that nobody has looked at."""
    for name, found in sorted(closure.distributions.items()):
        base = found.version.partition("+")[0]
        if name not in pinned:
            yield f"{name} {found.version}: not pinned in constraints.txt"
        elif pinned[name] not in (base, found.version):
            yield f"{name} {found.version}: constraints.txt says {pinned[name]}"
        if found.is_direct and name != NAME:
            yield f"{name} {found.version}: comes from a URL or a folder, not from the index"
        licence = licence_of(found.metadata)
        if licence is None:
            yield f"{name} {found.version}: its metadata states no licence that is known"
        elif not is_allowed(licence):
            yield f"{name} {found.version}: {licence} is not among the allowed licences"


@dataclass(frozen=True)
class Answer:
    """What a vulnerability service told."""

    looked_at: int
    vulnerable: tuple[str, ...]
    unknown: tuple[str, ...]
    """Distributions that it could not look up."""


def ask(service: str, closure: Closure, folder: Path) -> Answer | str:
    """Let pip-audit look up the closure's exact versions; a reason when the service does not answer."""
    wanted = folder / "closure.txt"
    lines = [f"{name}=={found.version.partition('+')[0]}" for name, found in sorted(closure.distributions.items())]
    wanted.write_text("\n".join(lines) + "\n")
    words = ["--vulnerability-service", service, "--requirement", str(wanted), "--no-deps", "--disable-pip"]
    words += ["--format", "json", "--progress-spinner", "off", "--cache-dir", str(folder / "cache")]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{service}: no answer within {TIMEOUT_S} s"
    return read_answer(service, done.stdout, done.stderr)


def read_answer(service: str, out: str, err: str) -> Answer | str:
    """What pip-audit printed. It says «no known vulnerabilities» also when it could look up nothing at all."""
    try:
        rows: list[dict[str, Any]] = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return f"{service}: {(err.strip().splitlines() or ['no answer'])[-1][:200]}"
    unknown = tuple(row["name"] for row in rows if "skip_reason" in row)
    if len(unknown) == len(rows):
        return f"{service}: it knows none of the {len(rows)} distributions"
    vulnerable = tuple(
        f"{row['name']} {row['version']}: {vuln['id']}, mended in {', '.join(vuln['fix_versions']) or 'no version'}"
        for row in rows
        for vuln in row.get("vulns", ())
    )
    return Answer(len(rows) - len(unknown), vulnerable, unknown)


def verdict(broken: list[str], answers: list[Answer | str]) -> tuple[int, list[str]]:
    """The exit code and what to print: `answers` are those of the services asked, in turn, until one answered."""
    said = [f"error: {offence}" for offence in broken]
    reasons = [answer for answer in answers if isinstance(answer, str)]
    audited = [answer for answer in answers if isinstance(answer, Answer)]
    for answer in audited:
        said += [f"error: {text}" for text in answer.vulnerable]
        said += [f"error: {name} was not audited: the service does not know it" for name in answer.unknown]
    if broken or any(answer.vulnerable for answer in audited):
        return GUILTY, said
    if not audited or any(answer.unknown for answer in audited):
        said += [f"not audited: {reason}" for reason in reasons]
        return NOT_AUDITED, [
            *said,
            "pins, sources, licences: in order. Known vulnerabilities were NOT looked up",
        ]
    return CLEAN, [*said, f"{audited[0].looked_at} distributions: in order, no known vulnerability"]
