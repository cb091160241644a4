"""The SENDER room: ledger first, then the wire, and out of the ledger when the broker has acknowledged.

Decides what is sent when; owns the ledger while it runs. Whatever goes wrong with the broker, a durable message
leaves the ledger only on a PUBACK without an error. Knows no settings file and no payload.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import structlog

from agent.handover import Handover
from agent.ledger import Ledger, OutboxRow, Record
from agent.publish import Acked, Command, Connected, Disconnected, Event, Session
from agent.refusals import Refusals
from agent.topics import Message

MAX_UNWRITTEN = 64
"""QoS 0 messages that may wait for the socket; with a slower network more of them are dropped."""
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
        on_command: Callable[[str, bytes], None] | None = None,
        in_flight: int = 16,
        flush_limit_s: float = 10.0,
        refused_retry_s: tuple[float, float] = (5.0, 300.0),
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`session` must have been given `handover.nudge` as its `wake`. The callables run on this room's thread.

        `in_flight` is the most unacknowledged messages (the broker may allow fewer); `flush_limit_s` the longest
        wait for acknowledgements at the end; `refused_retry_s` the first and the longest pause before a message
        that the broker refused is tried again; `beat` is called whenever the room comes round, every second at least.
        """
        self.dropped = 0
        """QoS 0 messages that could not be sent; for this room's thread (`health`)."""
        self._handover = handover
        self._ledger = ledger
        self._session = session
        self._birth = birth
        self._stopped = stopped
        self._health = health
        self.health_interval_s = health_interval_s
        self._on_command = on_command
        self._limit = in_flight
        self._flush_limit_s = flush_limit_s
        self._refused = Refusals(*refused_retry_s)
        self._beat = beat
        self._clock = clock
        self._log = structlog.get_logger(__name__)

        self._window = 0
        """Most unacknowledged messages on this connection; 0 when there is none."""
        self._in_flight: dict[int, tuple[int | None, Message]] = {}
        """mid → (seq in the ledger, message)."""
        self._unwritten: set[int] = set()
        self._direct: deque[Message] = deque()
        """Birth and retained state of this connection, sent before the outbox."""
        self._cursor = 0
        """Every unsent row up to here was looked at on this connection."""
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
                    self._ledger.append(record)
                    self._send_fleeting(record)
                self._turn(self._session.events())
            self._flush()
            clean = self._say_stopped()
        finally:
            self._session.stop(FAREWELL_S, clean=clean)

    def _turn(self, events: list[Event]) -> None:
        acknowledged: list[int] = []
        for event in events:
            match event:
                case Connected():
                    self._on_connected(event)
                case Disconnected():
                    self._on_disconnected(event)
                case Acked():
                    acknowledged += self._on_acked(event)
                case Command(verb, payload):
                    if self._on_command is not None:
                        self._on_command(verb, payload)
        if acknowledged:
            self._ledger.forget(acknowledged)
        if self._refused.release(self._clock()):
            self._cursor = 0
        self._pump()
        self._tell_health()

    def _on_connected(self, event: Connected) -> None:
        self._log.info(
            "mqtt_connected",
            protocol=event.protocol,
            receive_maximum=event.receive_maximum,
            unsent=self._ledger.outbox_length(),
        )
        self._ledger.forget_expired()
        self._reset()
        self._window = min(self._limit, event.receive_maximum)
        # The broker may have lost its retained messages: say everything that should be there again.
        self._direct.extend((self._birth(), *self._ledger.retained()))
        self._health_at = -math.inf
        self._down_reason = ""

    def _on_disconnected(self, event: Disconnected) -> None:
        # One event per reason: a broker that is away for a night must not fill the journal.
        if event.reason != self._down_reason:
            self._log.warning("mqtt_disconnected", reason=event.reason, unsent=self._ledger.outbox_length())
        self._down_reason = event.reason
        self._reset()

    def _reset(self) -> None:
        self._window = 0
        self._in_flight.clear()
        self._unwritten.clear()
        self._direct.clear()
        self._refused.clear()
        self._cursor = 0

    def _on_acked(self, event: Acked) -> list[int]:
        """Take the answer to a message; returns the seqs that may leave the ledger."""
        self._unwritten.discard(event.mid)
        seq, message = self._in_flight.pop(event.mid, (None, None))
        if message is None:
            return []
        if event.refused is not None:
            self._on_refused(message, seq, event.refused)
            return []
        if self._refused.accept(message.topic):
            self._cursor = 0
        return [] if seq is None else [seq]

    def _on_refused(self, message: Message, seq: int | None, reason: str) -> None:
        if self._refused.refuse(message.topic, self._clock()):
            said = {"topic": message.topic, "kind": message.kind, "event_id": message.event_id}
            self._log.error("mqtt_message_refused", **said, reason=reason, kept=seq is not None)

    def _pump(self) -> None:
        """Send what the window allows: birth and retained state first, then the outbox in its order."""
        while self._direct and len(self._in_flight) < self._window:
            if not self._publish(self._direct.popleft(), None):
                return
        while not self._direct and len(self._in_flight) < self._window:
            rows = self._ledger.unsent(self._cursor, self._window)
            if not rows or not self._send_rows(rows):
                return

    def _send_rows(self, rows: list[OutboxRow]) -> bool:
        """Send rows until the window is full (True: all were looked at)."""
        flying = {seq for seq, _ in self._in_flight.values()}
        for seq, message in rows:
            if len(self._in_flight) >= self._window:
                return False
            if seq not in flying and self._refused.may_send(message.topic) and not self._publish(message, seq):
                return False
            self._cursor = seq
        return True

    def _publish(self, message: Message, seq: int | None) -> bool:
        mid = self._session.publish(message)
        if mid is None:
            return False  # the connection has just ended; its Disconnected is on the way
        self._in_flight[mid] = (seq, message)
        return True

    def _send_fleeting(self, record: Record) -> None:
        for message in record.messages:
            if not message.durable:
                self._send_unkept(message)

    def _send_unkept(self, message: Message) -> None:
        if message.qos > 0 and self._window > 0:
            self._direct.append(message)
            return
        mid = self._session.publish(message) if self._window > 0 and len(self._unwritten) < MAX_UNWRITTEN else None
        if mid is None:
            self.dropped += 1
        else:
            self._unwritten.add(mid)

    def _tell_health(self) -> None:
        if self._health is not None and self._window > 0 and self._clock() >= self._health_at:
            self._health_at = self._clock() + self.health_interval_s
            self._send_unkept(self._health())

    def _patience_s(self) -> float:
        """Seconds until this room has something to do by itself; an item or a nudge may come sooner."""
        health_at = self._health_at if self._health is not None and self._window > 0 else None
        times = [at for at in (self._refused.next_at(), health_at) if at is not None]
        return min([LONGEST_WAIT_S, *(max(0.0, at - self._clock()) for at in times)])

    def _flush(self) -> None:
        self._wait_until(lambda: not self._direct and not self._ledger.unsent(self._cursor, 1), self._flush_limit_s)
        if left := self._ledger.outbox_length():
            self._log.info("ledger_keeps_unsent", messages=left)

    def _say_stopped(self) -> bool:
        """Publish `stopped`; True when the broker has it, so that the will must not follow."""
        if len(self._in_flight) >= self._window or not self._publish(self._stopped(), None):
            return False
        return self._wait_until(lambda: True, FAREWELL_S)

    def _wait_until(self, settled: Callable[[], bool], limit_s: float) -> bool:
        """Keep sending until nothing is in flight and `settled`; False when time or connection ran out."""
        deadline = self._clock() + limit_s
        self._turn(self._session.events())
        while self._window > 0:
            if not self._in_flight and settled():
                return True
            left_s = deadline - self._clock()
            if left_s <= 0:
                return False
            self._turn(self._session.events(min(left_s, self._patience_s())))
        return False
