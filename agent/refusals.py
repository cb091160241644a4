"""Topics that the broker refuses: which may be tried again, and when. Pure: time comes in as an argument.

A refusal (an access rule, a quota) can last for months or be mended in a minute; meanwhile one message per topic
is tried after a growing pause, and nothing spins.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class _Pause:
    retry_at: float
    delay_s: float


@dataclass
class Refusals:
    """The topics refused on this connection."""

    first_s: float = 5.0
    """Pause before the first retry."""
    longest_s: float = 300.0
    _pauses: dict[str, _Pause] = field(default_factory=dict)
    _probes: set[str] = field(default_factory=set)

    def refuse(self, topic: str, now: float) -> bool:
        """Take a refusal; True when it is the first of this topic."""
        if topic in self._pauses:
            return False
        self._pauses[topic] = _Pause(now + self.first_s, self.first_s)
        return True

    def accept(self, topic: str) -> bool:
        """Take an acceptance; True when the topic was refused before, so that its other messages may go."""
        self._probes.discard(topic)
        return self._pauses.pop(topic, None) is not None

    def release(self, now: float) -> bool:
        """Allow one message of every topic whose pause is over; True when there is one. Doubles its next pause."""
        due = {topic for topic, pause in self._pauses.items() if pause.retry_at <= now}
        for topic in due:
            pause = self._pauses[topic]
            pause.delay_s = min(self.longest_s, 2 * pause.delay_s)
            pause.retry_at = now + pause.delay_s
        self._probes |= due
        return bool(due)

    def may_send(self, topic: str) -> bool:
        """Whether a message of this topic may be sent now; a probe is used up by asking."""
        if topic not in self._pauses:
            return True
        allowed = topic in self._probes
        self._probes.discard(topic)
        return allowed

    def next_at(self) -> float | None:
        """When the next pause is over; None when nothing is refused."""
        return min((pause.retry_at for pause in self._pauses.values()), default=None)

    def clear(self) -> None:
        """A new connection: the broker may think differently now."""
        self._pauses.clear()
        self._probes.clear()
