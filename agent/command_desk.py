"""Commands that came over MQTT: which are obeyed, which were obeyed before, and what is answered.

Belongs to the SENDER room's thread. What another room carries out is answered behind that room's other messages, so
that a reply never comes before what it speaks of is safe in the ledger.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import structlog

from agent.catch_up import CatchUp
from agent.commands import (
    COMMANDS,
    AskEngine,
    Body,
    ClosePatient,
    EngineInService,
    PatientsClosed,
    ReplayState,
    Reply,
    parse_body,
    request_id_of,
)
from agent.outlets import Verb
from agent.publish import Command
from agent.reporter import Speaker
from agent.topics import Message

REMEMBERED = 100
"""Latest commands with a request_id that are not carried out again."""
MOST_A_SECOND = 20
"""Commands looked at in one second. More are dropped without a reply, since replies go before results."""
REPLAY_PAUSE_S = 1.0
"""Shortest time between two repetitions of the state."""
CHANGE_ENGINE = (
    "the engine is not changed while the agent runs: build it with `python -m agent.build_trt`, name it in"
    " engine.order of the settings, and restart the agent"
)

ClosePatients = Callable[[str | None, Callable[[tuple[str, ...]], Message]], None]
"""Ends a patient (None: every open one) and later gives the closed ones to the callable, for the message it makes."""


@dataclass(frozen=True)
class Answer:
    """What is to be said at once because of a command, and what may follow as the network takes it."""

    messages: tuple[Message, ...] = ()
    trickle: Iterator[Message] | None = None


@dataclass
class _CarriedOut:
    """A command that is not carried out again. `reply` is set once, perhaps by another thread, when it is done."""

    reply: Message | None = None


class CommandDesk:
    """See the module's docstring."""

    def __init__(
        self,
        enabled: Collection[str],
        speaker: Speaker,
        *,
        close_patient: ClosePatients,
        catch_up: CatchUp,
        engine: Callable[[], EngineInService],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`enabled` are the verbs that the settings list."""
        self._enabled = enabled
        self._speaker = speaker
        self._close_patient = close_patient
        self._catch_up = catch_up
        self._engine = engine
        self._clock = clock
        self._remembered: OrderedDict[tuple[str, str], _CarriedOut] = OrderedDict()
        self._replay_at = float("-inf")
        self._second = self._taken = 0
        """A second of the clock, and the commands that came in it."""
        self._log = structlog.get_logger("command")

    def take(self, command: Command) -> Answer:
        """Carry a command out, or say why not. What it brought is not logged: it may hold somebody's name."""
        if self._is_flooded():
            return Answer()
        verb = next((known for known in COMMANDS if known == command.verb), None)
        if verb is None:
            return self._refuse(command, None, f"unknown command; known are {', '.join(COMMANDS)}")
        if verb not in self._enabled:
            return self._refuse(command, verb, f"this command is off: list {verb} in mqtt.commands of the settings")
        if self._clock() > command.expires_at_s:
            return self._refuse(command, verb, "the command's time was over before it could be carried out")
        body = parse_body(verb, command.payload)
        if isinstance(body, str):
            return self._refuse(command, verb, body)
        before = self._remembered.get((verb, body.request_id or ""))
        if before is not None:
            self._log.info("command_repeated", verb=verb)
            return Answer(() if before.reply is None else (self._addressed(before.reply, command),))
        return self._carry_out(command, verb, body)

    def _is_flooded(self) -> bool:
        """Whether more came in this second than anybody needs; told once in each."""
        second = int(self._clock())
        self._taken = 1 if second != self._second else self._taken + 1
        self._second = second
        if self._taken == MOST_A_SECOND + 1:
            self._log.warning("commands_dropped", detail=f"more than {MOST_A_SECOND} in one second")
        return self._taken > MOST_A_SECOND

    def _carry_out(self, command: Command, verb: Verb, body: Body) -> Answer:
        match body:
            case ClosePatient():
                return self._close(command, body)
            case AskEngine() if body.use is not None:
                return self._refuse(command, verb, CHANGE_ENGINE)
            case AskEngine():
                report = self._engine()
                said = f"{report.engine.name} in {report.engine.precision}, {report.batch} patches at once"
                return Answer((self._done(command, verb, body, said, report),))
            case ReplayState():
                return self._replay(command, verb, body)
            case _:
                raise AssertionError(f"{verb} has a body and nobody who carries it out")

    def _close(self, command: Command, body: ClosePatient) -> Answer:
        memory = self._remember("close-patient", body)

        def closed(patients: tuple[str, ...]) -> Message:
            """On the READER's thread."""
            said = f"{len(patients)} closed; finals are on their way" if patients else "no patient was open"
            unknown = body.patient is not None and not patients
            memory.reply = self._reply(
                command,
                "close-patient",
                ok=not unknown,
                detail="this patient is not open" if unknown else said,
                result=None if unknown else PatientsClosed(closed=patients),
            )
            return memory.reply

        self._close_patient(body.patient, closed)
        return Answer()

    def _replay(self, command: Command, verb: Verb, body: Body) -> Answer:
        if self._clock() < self._replay_at:
            return self._refuse(command, verb, f"asked again within {REPLAY_PAUSE_S:g} s: ask again in a moment")
        self._replay_at = self._clock() + REPLAY_PAUSE_S
        missed = self._catch_up.gather()
        said = "nothing was said of anybody yet" if missed.told.patient is None else "said again; heat maps follow"
        return Answer((*missed.state, self._done(command, verb, body, said, missed.told)), missed.heat_maps)

    def _done(self, command: Command, verb: Verb, body: Body, detail: str, result: object) -> Message:
        reply = self._reply(command, verb, ok=True, detail=detail, result=result)
        self._remember(verb, body).reply = reply
        return reply

    def _remember(self, verb: Verb, body: Body) -> _CarriedOut:
        memory = _CarriedOut()
        if body.request_id is not None:
            self._remembered[verb, body.request_id] = memory
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return memory

    def _refuse(self, command: Command, verb: Verb | None, why: str) -> Answer:
        return Answer((self._reply(command, verb or "unknown", ok=False, detail=why),))

    def _reply(self, command: Command, verb: str, *, ok: bool, detail: str, result: object = None) -> Message:
        self._log.info("command", verb=verb, ok=ok, detail=detail)
        reply = Reply.model_validate(
            {
                **self._speaker.stamp(),
                "verb": verb,
                "request_id": request_id_of(command.payload),
                "ok": ok,
                "detail": detail,
                "result": result,
            }
        )
        return self._addressed(self._speaker.topics.message(reply), command)

    def _addressed(self, reply: Message, command: Command) -> Message:
        """The reply where its requester waits for it, as far as that is a place for replies."""
        topics = self._speaker.topics
        wanted = command.reply_to is not None and topics.may_reply_at(command.reply_to)
        topic = command.reply_to if wanted and command.reply_to is not None else reply.topic
        return replace(reply, topic=topic, correlation=command.correlation)
