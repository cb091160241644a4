"""Promises of agent.pattern_cost: slow patterns are refused without being tried, sensible ones are not."""

from __future__ import annotations

import re
import time

import pytest
from pydantic import ValidationError

from agent.naming import BUILTIN_RULES, NamingRule
from agent.pattern_cost import MAX_POSITIONS, why_slow

ENDLESS = [
    r"(a+)+b",
    r"(a|a)*b",
    r"(a*b*)*c",
    r"(\w+\s?)*\.tif",
    r"(?:[^/]*/?)*\.tif",
    r"(\d{1,4})+x",
    r"(a{0,60}){3,}x",
    r"(?:a?b?)+c",
    r"(?:(?:ab)+|a|b)+c",
    r"((ab)*)*c",
    r"(a?){60}a{60}",
    r"((((a?){3}){3}){3}){3}b",
    r"((((a{1,3}){1,3}){1,3}){1,3})b",
    r"(?i:(a|[^/]))+x",
    r"(?=(a+)+b)a",
    r"(?>(a+)+b)c",
    r"(?:[a-z0-9]{1,3}1+?)+?x",
    r"(?:[^/](?:|))+x",
]
"""One text, exponentially many ways."""

LONG = [r".*.*.*.*x", r"(?:.*_)(?:.*-)(?:.*_)(?:.*-)x", r"\d+\d+\d+\d+x", r"[^/]*a?[^/]*b?[^/]*.*x"]
"""One text between four loops."""

SENSIBLE = [
    r"(?P<patient>[^/]+)/(?P<slide>[^/]+)/(?P<strip>\d+)_(?P<channel>CH[23])\.tif",
    r"(?:[^/]+/)*(?P<patient>[^/]+)_(?P<slide>\d+)\.tiff?",
    r"(?:.*/)?(?P<patient>P\d{3,6})-(?P<slide>S\d+)/.*\.dcm",
    r"(\d{4})+",
    r"(?:strip_\d+_)*end",
    r"(?:CH2|CH3|2845)*x",
    r"(a|b)+c",
    r"(?>a+)+b",
    r"(?:a++b)+",
    r"\d{8}-\d{6}_[a-z]*\d+",
    r".*study.*series.*",
    r"(?P<a>x+)-(?P=a)",
    r"(?P<a>x)?(?(a)y|z)*",
    r"^\bstudy\b$",
    r"(?!.*/old/)(?<=x)?.*",
]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_could_take_for_ever_are_refused(pattern: str) -> None:
    """A repeated group that one text fits in several ways: told without trying it."""
    re.compile(pattern)
    assert "for ever" in (why_slow(pattern) or "")


@pytest.mark.parametrize("pattern", LONG)
def test_patterns_that_could_take_very_long_are_refused(pattern: str) -> None:
    """More than three loops that can share a text between them."""
    assert "very long" in (why_slow(pattern) or "")


@pytest.mark.parametrize(
    "pattern", [*SENSIBLE, *(rule.pattern for rules in BUILTIN_RULES.values() for rule in rules)]
)
def test_sensible_patterns_are_taken_and_are_fast(pattern: str) -> None:
    """What people write is taken, every built-in rule too, and answers for nasty names in no time."""
    assert why_slow(pattern) is None
    began = time.process_time()
    for unit in ("a", "1", "_", "/", "a/", "a_", "_1", "CH2", "strip_1_", "x-", "/1_"):
        re.fullmatch(pattern, unit * (500 // len(unit)) + "!")
    assert time.process_time() - began < 1


def test_patterns_beyond_any_sense_are_refused() -> None:
    """Too long to be looked at is too long to be used."""
    assert "too long" in (why_slow("a" * (MAX_POSITIONS + 1)) or "")
    assert "repeats too much" in (why_slow("(?:" + "ab" * 60 + ")*") or "")


def test_a_rule_says_what_is_wrong_with_its_pattern() -> None:
    """The settings name the field, the fault and the way out."""
    with pytest.raises(ValidationError, match=r"pattern could take for ever: a repeated group .* let each round end"):
        NamingRule(name="lab", pattern=r"((?P<strip>\d+)_?)+", patient="p", slide="s", planes_per_file=2)
