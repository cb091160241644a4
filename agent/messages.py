"""What every payload says of itself, and the payloads about the process: status, health, current, alert.

Pure: knows no topic, broker, clock or ledger. Results are in agent.results, commands in agent.commands, and where
each payload goes in agent.topics.
"""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from models.profile import Frozen

INTENDED_USE: Literal["research use only"] = "research use only"

UtcTime = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]
"""ISO 8601 with time zone; always written as UTC."""
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ProfileRef(Frozen):
    """Which weights answered."""

    name: str
    version: int
    sha256: str


class EngineRef(Frozen):
    """What ran them."""

    name: str
    precision: str


class Counts(Frozen):
    """Patches so far. Nothing is counted twice and nothing is invented: seen = used + rejected."""

    seen: Count
    used: Count
    rejected: dict[str, Count] = {}
    """Reason → patches."""

    @model_validator(mode="after")
    def _balance(self) -> Counts:
        rejected = sum(self.rejected.values())
        if self.seen != self.used + rejected:
            raise ValueError(f"seen {self.seen} is not used {self.used} + rejected {rejected}")
        return self


class QueueState(Frozen):
    """One hand-over between two rooms."""

    depth: Count
    high_water: Count
    capacity: Count


class Payload(Frozen):
    """What every message says of itself."""

    kind: str
    event_id: str = Field(min_length=1, max_length=64)
    """Consumers drop a message whose event_id they have seen."""
    session_id: str
    """One start of the agent."""
    time: UtcTime


class Status(Payload):
    """Birth (`online`), clean end (`stopped`) and last will (`offline`)."""

    kind: Literal["status"] = "status"
    state: Literal["online", "stopped", "offline"]
    boot_seq: Count
    """Grows by one with every start on this ledger: tells an old will from a new birth."""
    version: str
    profile: ProfileRef
    engine: EngineRef
    passed_over: dict[str, str] = {}
    """Engine → why it was not used, for engines preferred to the one that runs."""
    since: UtcTime
    intended_use: Literal["research use only"] = INTENDED_USE


class Health(Payload):
    """Figures about the process; expires, so that a dead agent's figures do not linger."""

    kind: Literal["health"] = "health"
    patches: Counts
    handovers: dict[str, QueueState]
    outbox: Count
    """Messages not yet acknowledged by the broker."""
    reconnects: Count
    scan_only_finds: Count
    """Files that no event announced and only the scan found."""
    engine: EngineRef
    uptime_s: float = Field(ge=0)
    last_byte_age_s: float | None = Field(None, ge=0)
    rss_bytes: Count


class Current(Payload):
    """What is being imaged now; nulls when nothing is."""

    kind: Literal["current"] = "current"
    patient: str | None = None
    slide: str | None = None


class Alert(Payload):
    """Something a person should look at. Never coalesced; holds no identity, only pseudonyms."""

    kind: Literal["alert"] = "alert"
    severity: Literal["warning", "error"]
    reason: str
    """A stable word (FormatError.REASONS among others)."""
    detail: str = Field(max_length=1000)
    patient: str | None = None
    slide: str | None = None
    file: str | None = None
