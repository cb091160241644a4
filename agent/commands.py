"""Bodies of the commands that arrive over MQTT (`cmd/<verb>`) and the reply to them. Pure, like agent.messages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.messages import Count, EngineRef, Payload
from agent.outlets import Verb
from models.profile import Frozen

RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
"""Chosen by whoever asks; a UUID is a good one."""
Pseudonym = Annotated[str, Field(pattern=r"^[a-z2-7]{16}$")]
"""An id as our own messages carry it. Anything else is refused: it might be somebody's name."""


class Body(Frozen):
    """What every command may carry. An empty payload means `{}`."""

    request_id: RequestId | None = None
    """Comes back in the reply, and makes a command safe to repeat: one that was carried out is not carried out
    again under the same id, its reply is said again."""


class ClosePatient(Body):
    """Body of `cmd/close-patient`: this patient (null: everybody who is open) has ended."""

    patient: Pseudonym | None = None
    """Whose end it is; null: of everybody who is open."""


class ReplayState(Body):
    """Body of `cmd/replay-state`: say again what a receiver that came late has missed.

    Status, `current`, and posteriors, finals and the whole heat map of the patient on the table; when nobody is, of
    the patient of whom something was said last.
    """


class AskEngine(Body):
    """Body of `cmd/engine`: which engine runs, and why not another?"""

    use: str | None = Field(None, max_length=200)
    """Changing the engine is refused; the reply says how to do it."""


COMMANDS: dict[Verb, type[Body]] = {
    "close-patient": ClosePatient,
    "replay-state": ReplayState,
    "engine": AskEngine,
}
"""Every command and its body."""


class PatientsClosed(Frozen):
    """What `close-patient` did."""

    closed: tuple[str, ...]
    """Patients that ended by it; their finals are on their way."""


class StateReplayed(Frozen):
    """What `replay-state` is about to say again."""

    patient: str | None
    """Whose; null when nothing was ever said of anybody."""
    retained: Count
    """Messages on retained topics, which come before this reply."""
    patches: Count
    """Patches in the `slide.patches` messages that follow, with `before` from 0 on."""


class BuiltEngine(Frozen):
    """One engine that was built for the profile. Nulls: its record cannot be read."""

    name: str
    """Name of its folder."""
    precision: str | None = None
    """`fp32`, `bf16`, `fp16` or `int8`."""
    batch: int | None = None
    """Patches that it takes at once."""
    built_at: str | None = None
    """When it was built, ISO 8601."""


class EngineInService(Frozen):
    """What `engine` tells."""

    engine: EngineRef
    """What runs."""
    batch: int = Field(ge=1)
    """Patches that it takes at once."""
    passed_over: dict[str, str]
    """Engine → why it was not used, for engines preferred to the one that runs."""
    built: tuple[BuiltEngine, ...]
    """Built engines beside the profile, newest first."""


class Reply(Payload):
    """The answer to a command: at `reply/<verb>`, or at an MQTT 5 Response Topic below `reply/`."""

    kind: Literal["reply"] = "reply"
    verb: Verb | Literal["unknown"]
    """The command's; `unknown`: there is no such command."""
    request_id: RequestId | None = None
    """The command's."""
    ok: bool
    """Whether it was carried out; `detail` says what was done, or what is wrong with it."""
    detail: str = Field(max_length=1000)
    """One sentence for people."""
    result: PatientsClosed | StateReplayed | EngineInService | None = None
    """Null when it was not carried out."""


class _Identified(BaseModel):
    model_config = ConfigDict(extra="ignore")
    request_id: RequestId | None = None


def parse_body(verb: Verb, payload: bytes) -> Body | str:
    """A command's body, or what is wrong with it: without its values, which may hold somebody's name."""
    try:
        return COMMANDS[verb].model_validate_json(payload or b"{}")
    except ValidationError as error:
        known = COMMANDS[verb].model_fields
        said = [_complaint(known, problem["loc"], problem["msg"]) for problem in error.errors(include_input=False)]
        return f"{'; '.join(dict.fromkeys(said))} (fields: {', '.join(known)})"[:1000]


def request_id_of(payload: bytes) -> str | None:
    """The request_id of a body that may be wrong otherwise."""
    try:
        return _Identified.model_validate_json(payload or b"{}").request_id
    except ValidationError:
        return None


def _complaint(known: object, place: tuple[int | str, ...], what: str) -> str:
    field = place[0] if place else "body"
    return f"{field}: {what}" if not place or (isinstance(known, dict) and field in known) else "unknown field"
