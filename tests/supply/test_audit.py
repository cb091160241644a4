"""Promises of the audit: its rules hold for what we would release today, and silence is no clean bill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

import pytest

from tests.supply.audit import CLEAN, GUILTY, NOT_AUDITED, Answer, offences, pins, read_answer, verdict
from tests.supply.closure import NAME, Closure, Distribution, closure
from tests.supply.licences import is_allowed, licence_of


def test_what_we_would_release_keeps_the_rules() -> None:
    """Every distribution that runs is pinned, from an index, and under an allowed licence: this is what CI audits."""
    found = closure()
    assert len(found.distributions) > 30
    assert list(offences(found, pins())) == []


def described(**fields: str) -> Message:
    """Metadata of these fields; `_` stands for `-`."""
    made = Message()
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    return made


MIT = described(License_Expression="MIT")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Distribution("a", "2.0", MIT), "a 2.0: constraints.txt says 1.0"),
        (Distribution("b", "1.0", MIT), "b 1.0: not pinned"),
        (Distribution("a", "1.0", MIT, is_direct=True), "comes from a URL or a folder"),
        (Distribution("a", "1.0", described(License_Expression="AGPL-3.0-only")), "AGPL-3.0-only is not among"),
        (Distribution("a", "1.0", described(License="do what you like")), "states no licence that is known"),
    ],
)
def test_what_breaks_a_rule_is_told(found: Distribution, told: str) -> None:
    """Each rule, broken once, gives one line that names the distribution and the rule."""
    (line,) = offences(Closure({found.name: found}, {NAME: (found.name,)}), {"a": "1.0"})
    assert told in line


def test_a_local_version_is_the_pinned_one() -> None:
    """torch 1.0+cpu is what torch==1.0 asks for."""
    found = Distribution("a", "1.0+cpu", MIT)
    assert list(offences(Closure({"a": found}, {}), {"a": "1.0"})) == []


@pytest.mark.parametrize("line", ["torch>=2", "torch @ https://example.org/t.whl", "-e .", "numpy==1.0\nNumPy==2.0"])
def test_a_line_that_is_no_pin_is_refused(tmp_path: Path, line: str) -> None:
    """constraints.txt holds exact versions, each once, and no addresses."""
    (tmp_path / "constraints.txt").write_text(f"# note\n{line}\n")
    with pytest.raises(ValueError, match="no exact pin of something new"):
        pins(tmp_path / "constraints.txt")


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("(GPL-2.0-only OR MIT) AND BSD-3-Clause", True),
        ("GPL-2.0-only OR MIT AND Proprietary", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT AND (BSD-2-Clause OR (GPL-3.0-only AND MIT))", True),
        ("", False),
    ],
)
def test_licence_expressions_are_understood(expression: str, allowed: bool) -> None:
    """AND needs both, OR a choice, brackets come first (SPDX, annex D)."""
    assert is_allowed(expression) is allowed


def test_older_metadata_is_understood() -> None:
    """The License field or a classifier, where there is no expression; a whole licence text tells nothing."""
    assert licence_of(described(License="BSD-3-Clause")) == "BSD-3-Clause"
    assert licence_of(described(Classifier="License :: OSI Approved :: MIT License")) == "MIT"
    assert licence_of(described(License="Permission is hereby granted ...")) is None


def answer(*rows: Mapping[str, object]) -> str:
    """What pip-audit prints."""
    return json.dumps({"dependencies": list(rows), "fixes": []})


KNOWN = {"name": "a", "version": "1.0", "vulns": []}
BAD = {"name": "b", "version": "1.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1.0)"}


def test_a_service_that_knows_nothing_is_no_clean_bill() -> None:
    """pip-audit says «no known vulnerabilities» with exit code 0 when every single package was skipped: seen behind a
    registry mirror. That is not an audit, nor is no answer at all."""
    assert read_answer("pypi", answer(SKIPPED), "") == "pypi: it knows none of the 1 distributions"
    assert read_answer("osv", "", "Traceback\nConnectionError: no route") == "osv: ConnectionError: no route"
    code, said = verdict([], ["pypi: it knows none", "osv: no route"])
    assert code == NOT_AUDITED and NOT_AUDITED not in (CLEAN, GUILTY)
    assert "NOT looked up" in said[-1]


def test_the_verdict_counts_the_worst() -> None:
    """Vulnerable or against the rules: 1; some unknown: not audited; all looked up and clean: 0."""
    clean, bad = read_answer("pypi", answer(KNOWN), ""), read_answer("pypi", answer(KNOWN, BAD), "")
    partly = read_answer("pypi", answer(KNOWN, SKIPPED), "")
    assert verdict([], [clean]) == (CLEAN, ["1 distributions: in order, no known vulnerability"])
    assert isinstance(bad, Answer)
    assert verdict([], [bad]) == (GUILTY, ["error: b 1.0: CVE-2026-1, mended in 1.1"])
    assert verdict([], [partly])[0] == NOT_AUDITED
    assert verdict(["a: not pinned"], [clean])[0] == GUILTY
