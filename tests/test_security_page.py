"""SECURITY.md keeps its word: every test and document that it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_test_that_it_names_is_there() -> None:
    """A defence is shown by a test; one that was renamed or removed shows here."""
    named = re.findall(r"`(tests/[\w/.]+|test_\w+\.py)`", PAGE)
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists() and not list((ROOT / "tests").rglob(name))]
    assert missing == []


def test_every_link_leads_somewhere() -> None:
    """Links to files of the project, here and in the README's list of pages."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if not link.startswith("http")]
    assert links and [link for link in links if not (ROOT / link).exists()] == []
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_stays_short() -> None:
    """A page that nobody reads protects nobody."""
    assert len(PAGE.splitlines()) < 150
