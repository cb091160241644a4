"""What the agent says of itself: birth, clean end, last will."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

from agent.engine import Choice
from agent.messages import Status
from agent.reporter import Speaker
from agent.topics import Message

DISTRIBUTION = "spinextract-agent"


@dataclass(frozen=True)
class Speech:
    """The messages that speak of the process itself."""

    speaker: Speaker
    choice: Choice
    boot_seq: int
    since: datetime

    def status(self, state: str) -> Message:
        """Birth, clean end, or last will."""
        payload = Status.model_validate(
            {
                **self.speaker.stamp(),
                "state": state,
                "boot_seq": self.boot_seq,
                "version": version(DISTRIBUTION),
                "profile": self.speaker.profile_ref,
                "engine": self.speaker.engine,
                "passed_over": self.choice.passed_over,
                "since": self.since,
            }
        )
        return self.speaker.topics.message(payload)
