"""The one word of a result: which rule gives it, in which order, and that each reason is explained."""

from __future__ import annotations

from typing import Any

import pytest

from models.decision import REASONS, WORDS, decide
from models.posterior import Counts, Posterior
from models.profile import DecisionSpec
from tests.fakes import fake_profile

PROFILE = fake_profile()
STRONG = (0.9, 0.05, 0.03, 0.02)
NARROW = ((0.8, 0.95), (0.01, 0.1), (0.01, 0.1), (0.0, 0.1))


def posterior(**changes: Any) -> Posterior:
    """A posterior that meets every rule, with changes."""
    fields: dict[str, Any] = {"probabilities": STRONG, "interval": NARROW, "counts": Counts(60), "judged": 60}
    return Posterior(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "complete", "expected"),
    [
        ({}, False, ("high_confidence", "meets_every_rule")),
        ({}, True, ("high_confidence", "meets_every_rule")),
        ({"counts": Counts(49)}, True, ("insufficient", "too_few_patches")),
        ({"counts": Counts(49), "marks": {"embedding_far": 49}}, True, ("insufficient", "too_few_patches")),
        ({"counts": Counts(0, {"empty": 60})}, False, ("insufficient", "too_few_patches")),
        ({"marks": {"embedding_far": 30}}, True, ("out_of_domain", "embedding_far")),
        ({"marks": {"embedding_far": 60, "intensity_outside": 30}}, False, ("out_of_domain", "intensity_outside")),
        ({"marks": {"embedding_far": 29, "intensity_outside": 29}}, True, ("high_confidence", "meets_every_rule")),
        ({"probabilities": (0.76, 0.08, 0.08, 0.08)}, False, ("provisional", "below_operating_point")),
        ({"probabilities": (0.76, 0.08, 0.08, 0.08)}, True, ("final", "below_operating_point")),
        ({"probabilities": (0.77, 0.13, 0.05, 0.05)}, True, ("high_confidence", "meets_every_rule")),
        ({"interval": ((0.49, 0.95), *NARROW[1:])}, False, ("provisional", "interval_too_wide")),
        ({"interval": ((0.49, 0.95), *NARROW[1:])}, True, ("final", "interval_too_wide")),
    ],
)  # fmt: skip
def test_the_first_rule_that_fits_decides(changes: dict[str, Any], complete: bool, expected: tuple[str, str]) -> None:
    """Too little tissue comes before foreign tissue, that before confidence; only complete data make it final."""
    assert decide(posterior(**changes), PROFILE, complete=complete) == expected
    assert expected[0] in WORDS and expected[1] in REASONS


@pytest.mark.parametrize(
    ("judged", "marked", "most_marked", "out"), [(60, 30, 0.5, True), (20, 10, 0.5, True), (60, 59, 1.0, False)]
)
def test_the_share_is_one_of_the_judged_patches(judged: int, marked: int, most_marked: float, out: bool) -> None:
    """What counts is the share of the patches that were compared, and the profile's limit for it."""
    profile = PROFILE.model_copy(update={"decision": DecisionSpec(most_marked=most_marked)})
    found = decide(posterior(judged=judged, marks={"embedding_far": marked}), profile, complete=True)
    assert (found[0] == "out_of_domain") is out


def test_a_profile_without_reference_never_says_out_of_domain() -> None:
    """Nothing judged, nothing marked: the published rules alone decide."""
    assert decide(posterior(judged=0), PROFILE, complete=True)[0] == "high_confidence"


def test_no_patch_is_insufficient_even_where_the_profile_asks_for_none() -> None:
    """A minimum of 0 patches still needs one to say anything."""
    nothing = posterior(counts=Counts(), probabilities=(), interval=())
    assert decide(nothing, PROFILE.model_copy(update={"minimum_patches": 0}), complete=True)[0] == "insufficient"
