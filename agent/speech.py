"""What the agent says of itself: birth, clean end, last will, its engine, and what the broker would not take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.commands import BuiltEngine, EngineInService
from agent.engine import Choice, built_engines
from agent.messages import Alert, EngineRef, Status
from agent.reporter import Speaker
from agent.topics import Message

DISTRIBUTION = "spinextract-agent"


class _Heard(BaseModel):
    """What counts of a status on our topic, whichever version wrote it."""

    model_config = ConfigDict(extra="ignore")
    session_id: str
    state: str
    boot_seq: int


def tell_engine(choice: Choice) -> EngineRef:
    """Log which engine is in service, and a warning for each one preferred to it; returns how messages name it."""
    log, engine = structlog.get_logger("agent"), choice.engine
    for label, reason in choice.passed_over.items():
        log.warning("engine_passed_over", engine=label, reason=reason)
    said = {"engine": engine.name, "precision": engine.precision, "batch": engine.batch_size}
    log.info("engine", **said, passed_over=choice.passed_over)
    return EngineRef(name=engine.name, precision=engine.precision)


@dataclass
class Speech:
    """The messages that speak of the process itself."""

    speaker: Speaker
    choice: Choice
    """The engine in service; replaced whole."""
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

    def take_over(self, choice: Choice) -> Message:
        """Another engine is in service: what is said from now on names it. Returns the status, to be said anew."""
        self.choice = choice
        self.speaker.engine = tell_engine(choice)
        return self.status("online")

    def is_contradicted_by(self, payload: bytes) -> bool:
        """Whether a status on our own topic is not true of us: a late will or farewell, or an earlier start.

        A later start that is online is another agent under our topics. It is told in the log and not answered, or
        the two would answer each other for ever.
        """
        try:
            heard = _Heard.model_validate_json(payload)
        except ValidationError:
            return True  # no status at all stands where ours should
        if heard.session_id == self.speaker.session_id:
            return False
        if heard.state == "online" and heard.boot_seq >= self.boot_seq:
            structlog.get_logger("agent").error(
                "another_agent", detail="another agent speaks under the same site and instrument: give it its own"
            )
            return False
        return True

    def engine(self, profile: Path) -> EngineInService:
        """Which engine runs, why not another, and what is built beside the profile."""
        built = tuple(
            BuiltEngine(name=folder.name)
            if record is None
            else BuiltEngine(
                name=folder.name, precision=record.precision, batch=record.batch_size, built_at=record.built_at
            )
            for folder, record in built_engines(profile)
        )
        return EngineInService(
            engine=self.speaker.engine,
            batch=self.choice.engine.batch_size,
            passed_over=self.choice.passed_over,
            built=built,
        )

    def folder_hangs(self, waited_s: float) -> Message:
        """The alert that the watched folder does not answer."""
        payload = Alert(
            **self.speaker.stamp(),
            severity="error",
            reason="folder_hangs",
            detail=f"the watched folder has not answered for {waited_s:.0f} s; nothing new is read until it does",
        )
        return self.speaker.topics.message(payload)

    def refused(self, message: Message, reason: str) -> Message:
        """The alert that the broker does not take a kind of result."""
        payload = Alert(
            **self.speaker.stamp(),
            severity="error",
            reason="refused_by_broker",
            detail=f"{message.kind} messages are refused: {reason}. They are kept and tried again",
        )
        return self.speaker.topics.message(payload)
