"""What a posterior may be called: the one word that a person acts on, and why it is not a stronger one. Pure."""

from __future__ import annotations

from typing import Literal

from models.domain import MARKS
from models.posterior import Posterior
from models.profile import Profile

Decision = Literal["insufficient", "out_of_domain", "provisional", "final", "high_confidence"]

WORDS: dict[Decision, str] = {
    "insufficient": "not enough tissue",
    "out_of_domain": "unlike anything the model was made for",
    "provisional": "provisional",
    "final": "final, below high confidence",
    "high_confidence": "high confidence",
}
"""Every decision as people read it."""

REASONS = {
    "too_few_patches": "fewer used patches than the profile's minimum",
    "intensity_outside": "the intensities are not those that the profile was made for",
    "embedding_far": "the patches look unlike those that the profile was made for",
    "below_operating_point": "the largest probability is below the operating point",
    "interval_too_wide": "the credible interval reaches too far down for high confidence",
    "meets_every_rule": "enough patches, in the domain, above the operating point, narrow enough an interval",
}
"""Every `decision_reason` and what it means."""


def decide(posterior: Posterior, profile: Profile, *, complete: bool) -> tuple[Decision, str]:
    """The decision and its reason (a key of REASONS) for a slide or patient.

    The rules, first match wins:

    1. used patches < `minimum_patches` → `insufficient`;
    2. patches with one of MARKS ≥ `decision.most_marked` of the judged ones → `out_of_domain`;
    3. confidence ≥ the operating point `high_confidence` (0.77 as published) and the predicted class's credible
       interval starts at or above `decision.least_lower_bound` → `high_confidence`;
    4. else `final` when every part has been seen (`complete`), `provisional` while more may come.
    """
    if posterior.counts.used < max(1, profile.minimum_patches):
        return "insufficient", "too_few_patches"
    for mark in MARKS:
        if posterior.marks.get(mark, 0) >= profile.decision.most_marked * max(1, posterior.judged):
            return "out_of_domain", mark
    weaker: Decision = "final" if complete else "provisional"
    if posterior.confidence < profile.operating_points["high_confidence"]:
        return weaker, "below_operating_point"
    assert posterior.predicted is not None
    if posterior.interval[posterior.predicted][0] < profile.decision.least_lower_bound:
        return weaker, "interval_too_wide"
    return "high_confidence", "meets_every_rule"
