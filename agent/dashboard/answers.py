"""Everything that was said about one slide or one patient: the running posterior, the finals and their corrections.

Decides which of them is the newest and which are superseded. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.dashboard.heard import Heard
from agent.results import PatientFinal, PatientPosterior, Result, SlideFinal, SlidePosterior

MAX_FINALS = 8
"""Finals of one slide or patient; those of the lowest revisions go first."""

Final = SlideFinal | PatientFinal
Posterior = SlidePosterior | PatientPosterior


@dataclass
class Answers:
    """See the module's docstring."""

    posterior: Heard[Posterior] | None = None
    finals: dict[str, Heard[Final]] = field(default_factory=dict)
    """By event_id."""
    spoken_s: float = 0.0
    """When something was last said, as it seemed when it was heard: decides what goes first, cheaply."""

    def hear_posterior(self, heard: Heard[Posterior], skew_s: float) -> None:
        """The newest counts."""
        self.spoken_s = max(self.spoken_s, heard.said_s(skew_s))
        if self.posterior is None or heard.order(skew_s) > self.posterior.order(skew_s):
            self.posterior = heard

    def hear_final(self, heard: Heard[Final], skew_s: float) -> None:
        """Every one is kept, up to MAX_FINALS."""
        self.spoken_s = max(self.spoken_s, heard.said_s(skew_s))
        self.finals.setdefault(heard.body.event_id, heard)
        if len(self.finals) > MAX_FINALS:
            oldest = min(self.finals.values(), key=lambda final: (final.body.revision, *final.order(0.0)))
            del self.finals[oldest.body.event_id]

    def is_superseded(self, final: Heard[Final], skew_s: float) -> bool:
        """Whether another final replaces it: it says so, is a later revision, or comes from a later profile."""
        return any(_replaces(other, final, skew_s) for other in self.finals.values() if other is not final)

    def final(self, skew_s: float) -> Heard[Final] | None:
        """The final that counts."""
        valid = [final for final in self.finals.values() if not self.is_superseded(final, skew_s)]
        return max(valid, key=lambda final: final.order(skew_s), default=None)

    def newest(self, skew_s: float) -> Heard[Result] | None:
        """The answer that counts: the final, or a running posterior that was said later and of other data."""
        final, posterior = self.final(skew_s), self.posterior
        if final is None or posterior is None:
            return posterior if final is None else final
        runs_again = posterior.order(skew_s) > final.order(skew_s) and _data(posterior.body) != _data(final.body)
        return posterior if runs_again else final

    def last_s(self, skew_s: float) -> float:
        """When something was last said, in seconds of our clock; 0 when nothing was."""
        newest = self.newest(skew_s)
        return 0.0 if newest is None else newest.said_s(skew_s)


def _data(result: Result) -> tuple[object, ...]:
    """What a result speaks of. The agent says posterior and final of the same data in one go, in any order."""
    return (result.profile.sha256, result.counts, result.state, result.strips)


def _replaces(other: Heard[Final], final: Heard[Final], skew_s: float) -> bool:
    if other.body.supersedes == final.body.event_id:
        return True
    if final.body.supersedes == other.body.event_id:
        return False
    if other.body.profile.sha256 == final.body.profile.sha256 and other.body.revision != final.body.revision:
        return other.body.revision > final.body.revision
    return other.order(skew_s) > final.order(skew_s)
