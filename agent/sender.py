"""The SENDER room: ledger first, then the wire, and out of the ledger when the broker has acknowledged.

Decides what is said when: birth and state on every connect, records as they come, health, answers to commands, and
`stopped` at the end. Owns the ledger while it runs. Knows no settings file and no payload.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import structlog

from agent.command_desk import Answer
from agent.delivery import Delivery
from agent.handover import Handover
from agent.ledger import Ledger, Record
from agent.measures import SenderMeasures
from agent.publish import Acked, Command, Connected, Disconnected, Event, Overheard, Session
from agent.topics import Message

LONGEST_WAIT_S = 1.0
"""The room comes round at least this often, so that the watchdog sees it alive."""
FAREWELL_S = 2.0
"""Longest wait for the broker to acknowledge `stopped`."""


class Sender:
    """See the module's docstring."""

    def __init__(
        self,
        handover: Handover[Record],
        ledger: Ledger,
        session: Session,
        *,
        birth: Callable[[], Message],
        stopped: Callable[[], Message],
        health: Callable[[], Message] | None = None,
        health_interval_s: float = 10.0,
        on_command: Callable[[Command], Answer] = lambda _: Answer(),
        contradicts: Callable[[bytes], bool] = lambda _: False,
        alert: Callable[[Message, str], Message] | None = None,
        in_flight: int = 16,
        puback_limit_s: float = 20.0,
        flush_limit_s: float = 10.0,
        refused_retry_s: tuple[float, float] = (5.0, 300.0),
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        measures: SenderMeasures | None = None,
    ) -> None:
        """`session` must have been given `handover.nudge` as its `wake`. The callables run on this room's thread.

        `contradicts` says whether what stands on our own status topic is not true of us; `alert` makes the alert
        that a kind of message is refused, with the broker's reason; `flush_limit_s` is the longest wait for
        acknowledgements at the end; `beat` is called whenever the room comes round, every second at least. For
        `in_flight`, `puback_limit_s` and `refused_retry_s` see Delivery.
        """
        self.health_interval_s = health_interval_s
        """Seconds between two health messages; may be replaced while the room runs."""
        self.measures = measures or SenderMeasures()
        self._handover = handover
        self._ledger = ledger
        self._session = session
        self._birth = birth
        self._stopped = stopped
        self._health = health
        self._on_command = on_command
        self._contradicts = contradicts
        self._alert = alert
        self._flush_limit_s = flush_limit_s
        self._beat = beat
        self._clock = clock
        self._log = structlog.get_logger(__name__)
        self._delivery = Delivery(
            ledger,
            session,
            in_flight=in_flight,
            puback_limit_s=puback_limit_s,
            refused_retry_s=refused_retry_s,
            on_refused=self._on_refused,
            clock=clock,
            measures=self.measures,
        )
        self._alerted: set[str] = set()
        """Kinds of messages whose refusal has been told."""
        self._health_at = -math.inf
        self._down_reason = ""

    def run(self) -> None:
        """Work until the hand-over has ended, then flush, say `stopped` and disconnect.

        Leaves with Cancelled when the process ends at once, with LedgerError when the ledger fails; the broker
        then publishes the will.
        """
        clean = False
        self._session.start()
        try:
            while not self._handover.ended:
                self._beat()
                record = self._handover.get(self._patience_s())
                if record is not None:
                    begun = self._clock()
                    self._ledger.append(record)
                    self.measures.ledger_write.add(self._clock() - begun)
                    self._delivery.say(*(message for message in record.messages if not message.durable))
                self._turn(self._session.events())
            self._flush()
            clean = self._say_stopped()
        finally:
            self._session.stop(FAREWELL_S, clean=clean)

    def _turn(self, events: list[Event]) -> None:
        answers: list[Acked] = []
        for event in events:
            match event:
                case Connected():
                    self._on_connected(event)
                case Disconnected():
                    self._delivery.acknowledge(answers)  # before they mean another connection's messages
                    answers = []
                    self._on_disconnected(event)
                case Acked():
                    answers.append(event)
                case Command():
                    self._obey(event)
                case Overheard():
                    self._on_overheard(event)
        self._delivery.acknowledge(answers)
        self._delivery.pump()
        self._tell_health()

    def _on_connected(self, event: Connected) -> None:
        self._log.info(
            "mqtt_connected",
            protocol=event.protocol,
            receive_maximum=event.receive_maximum,
            maximum_packet_size=event.maximum_packet_size,
            unsent=self._ledger.outbox_length(),
        )
        self._ledger.forget_expired()
        # The broker may have lost its retained messages: say everything that should be there again.
        self._delivery.begin(event.receive_maximum, (self._birth(), *self._ledger.retained()))
        self._health_at = -math.inf
        self._down_reason = ""

    def _on_disconnected(self, event: Disconnected) -> None:
        # One event per reason: a broker that is away for a night must not fill the journal.
        if event.reason != self._down_reason:
            self._log.warning("mqtt_disconnected", reason=event.reason, unsent=self._ledger.outbox_length())
        self._down_reason = event.reason
        self._delivery.end()

    def _obey(self, command: Command) -> None:
        answer = self._on_command(command)
        self._delivery.say(*answer.messages)
        if answer.trickle is not None:
            self._delivery.trickle(answer.trickle)

    def _on_overheard(self, event: Overheard) -> None:
        """A late will or farewell of an earlier session stands where our birth should: say the birth again."""
        if self._contradicts(event.payload):
            self._log.warning("status_contradicted", detail="another session's status came late; birth said again")
            self._delivery.say(self._birth())

    def _on_refused(self, message: Message, reason: str) -> None:
        if self._alert is not None and message.durable and message.kind not in {"alert", *self._alerted}:
            self._alerted.add(message.kind)
            self._ledger.append(Record("", messages=(self._alert(message, reason),)))

    def _tell_health(self) -> None:
        if self._health is not None and self._delivery.connected and self._clock() >= self._health_at:
            self._health_at = self._clock() + self.health_interval_s
            self._delivery.say(self._health())

    def _patience_s(self) -> float:
        """Seconds until this room has something to do by itself; an item or a nudge may come sooner."""
        health_at = self._health_at if self._health is not None and self._delivery.connected else None
        times = [at for at in (self._delivery.next_at(), health_at) if at is not None]
        return min([LONGEST_WAIT_S, *(max(0.0, at - self._clock()) for at in times)])

    def _flush(self) -> None:
        self._wait_until(lambda: self._delivery.settled, self._flush_limit_s)
        if left := self._ledger.outbox_length():
            self._log.info("ledger_keeps_unsent", messages=left)

    def _say_stopped(self) -> bool:
        """Publish `stopped`; True when the will must not follow: the broker has it, or no birth that it would end."""
        if not self._delivery.connected:
            return True
        if self._delivery.full or not self._delivery.publish(self._stopped()):
            return False
        self._health_at = math.inf  # nothing comes after the farewell
        return self._wait_until(lambda: True, FAREWELL_S)

    def _wait_until(self, settled: Callable[[], bool], limit_s: float) -> bool:
        """Keep sending until nothing is in flight and `settled`; False when time or connection ran out."""
        deadline = self._clock() + limit_s
        self._turn(self._session.events())
        while self._delivery.connected:
            if self._delivery.idle and settled():
                return True
            left_s = deadline - self._clock()
            if left_s <= 0:
                return False
            self._turn(self._session.events(min(left_s, self._patience_s())))
        return False
