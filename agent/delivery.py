"""What is on its way on this connection: state said again first, then the outbox, and between them what may be lost.

Whatever goes wrong with the broker, a durable message leaves the ledger only on a PUBACK without an error. Belongs to
the SENDER room, which decides when to speak; knows no payload.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import structlog

from agent.ledger import RETAINED_KEPT, Ledger, OutboxRow
from agent.measures import SenderMeasures
from agent.publish import Acked, Session
from agent.refusals import Refusals
from agent.topics import Message

MAX_UNWRITTEN = 64
"""QoS 0 messages that may wait for the socket; with a slower network more of them are dropped."""
MAX_DIRECT = 4 * RETAINED_KEPT
"""Messages said directly that may wait for the broker: all state, and what commands made us say on top of it."""
MAX_TRICKLING = MAX_UNWRITTEN // 2
"""How many of them a repetition may fill, so that what is new is not dropped for what is old."""


class _Sent(NamedTuple):
    """A message that was handed to the network."""

    seq: int | None
    """Its row in the ledger."""
    message: Message
    at: float


class Delivery:
    """See the module's docstring."""

    def __init__(
        self,
        ledger: Ledger,
        session: Session,
        *,
        in_flight: int = 16,
        refused_retry_s: tuple[float, float] = (5.0, 300.0),
        puback_limit_s: float = 20.0,
        on_refused: Callable[[Message, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        measures: SenderMeasures | None = None,
    ) -> None:
        """`in_flight` is the most unacknowledged messages (the broker may allow fewer); `refused_retry_s` the first
        and the longest pause before a message that the broker refused is tried again; `puback_limit_s` is how long
        nothing may be acknowledged before the connection is given up; `on_refused` is told of the first refusal on a
        topic with its reason.
        """
        self.measures = measures or SenderMeasures()
        self._ledger = ledger
        self._session = session
        self._limit = in_flight
        self._refused = Refusals(*refused_retry_s)
        self._puback_limit_s = puback_limit_s
        self._on_refused = on_refused
        self._clock = clock
        self._log = structlog.get_logger(__name__)
        self._window = 0
        """Most unacknowledged messages on this connection; 0 when there is none."""
        self._in_flight: dict[int, _Sent] = {}
        """By mid, oldest first."""
        self._unwritten: dict[int, _Sent] = {}
        """QoS 0, by mid, oldest first."""
        self._progress_at = -math.inf
        """When the broker last acknowledged something, or the network took what lay before what is in flight."""
        self._direct: deque[Message] = deque()
        """Birth, retained state and replies of this connection, sent before the outbox."""
        self._trickle: Iterator[Message] = iter(())
        self._cursor = 0
        """Every unsent row up to here was looked at on this connection."""

    @property
    def connected(self) -> bool:
        """Whether there is a broker to send to."""
        return self._window > 0

    @property
    def full(self) -> bool:
        """Whether the broker takes nothing more before it has acknowledged something."""
        return len(self._in_flight) >= self._window

    @property
    def idle(self) -> bool:
        """Nothing waits for an acknowledgement."""
        return not self._in_flight

    @property
    def settled(self) -> bool:
        """Everything that the broker may take has been sent."""
        return not self._direct and not self._ledger.unsent(self._cursor, 1)

    def begin(self, receive_maximum: int, state: Iterable[Message]) -> None:
        """A new connection, on which nothing of the last one is remembered; `state` should be there again."""
        self.end()
        self._window = min(self._limit, receive_maximum)
        self.measures.connected = True
        self._direct.extend(state)

    def end(self) -> None:
        """The connection is gone: what was in flight counts as unsent."""
        self._window = 0
        self.measures.connected = False
        self._in_flight.clear()
        self._unwritten.clear()
        self._direct.clear()
        self._trickle = iter(())
        self._refused.clear()
        self._cursor = 0

    def say(self, *messages: Message) -> None:
        """Send what is not kept: at once or not at all for QoS 0, on this connection or not at all for QoS 1."""
        for message in messages:
            if not (self._window > 0 and self._take(message)):
                self.measures.dropped += 1

    def trickle(self, messages: Iterator[Message]) -> None:
        """Send these QoS 0 messages as the network takes them, behind everything that is new."""
        if self._window > 0:
            self._trickle = messages

    def publish(self, message: Message, seq: int | None = None) -> bool:
        """Send a QoS 1 message now; False when the connection has just ended (its Disconnected is on the way)."""
        mid = self._session.publish(message)
        if mid is not None:
            self._in_flight[mid] = _Sent(seq, message, self._clock())
        return mid is not None

    def acknowledge(self, answers: Iterable[Acked]) -> None:
        """Take the broker's answers; what it has leaves the ledger."""
        acknowledged = [seq for answer in answers if (seq := self._seq_of(answer)) is not None]
        if acknowledged:
            self._ledger.forget(acknowledged)

    def pump(self) -> None:
        """Send what the window allows: what was said directly first, then the outbox in its order."""
        if (waited_s := self._unacknowledged_s()) >= self._puback_limit_s:
            self.end()
            self._session.reconnect(f"the broker has acknowledged nothing for {waited_s:.0f} s")
            return
        if self._refused.release(self._clock()):
            self._cursor = 0
        while self._direct and not self.full:
            if not self.publish(self._direct.popleft()):
                return
        while not self._direct and not self.full:
            rows = self._ledger.unsent(self._cursor, self._window)
            if not rows or not self._send_rows(rows):
                break
        while len(self._unwritten) < MAX_TRICKLING and (message := next(self._trickle, None)) is not None:
            if not self._write(message):
                return

    def next_at(self) -> float | None:
        """When this has something to do by itself."""
        return self._refused.next_at()

    def _take(self, message: Message) -> bool:
        if message.qos == 0:
            return len(self._unwritten) < MAX_UNWRITTEN and self._write(message)
        if room := len(self._direct) < MAX_DIRECT:
            self._direct.append(message)
        return room

    def _write(self, message: Message) -> bool:
        """Give a QoS 0 message to the socket; False when the connection has just ended."""
        mid = self._session.publish(message)
        if mid is not None:
            self._unwritten[mid] = _Sent(None, message, self._clock())
        return mid is not None

    def _seq_of(self, answer: Acked) -> int | None:
        """The row of the ledger that an answer settles."""
        sent = self._unwritten.pop(answer.mid, None) or self._in_flight.pop(answer.mid, None)
        if sent is None:
            return None
        if sent.message.qos > 0 or sent.at <= self._oldest_at():
            self._progress_at = self._clock()
        if answer.refused is not None:
            self.measures.dropped += sent.message.qos == 0
            self.measures.refused += 1
            self._refuse(sent.message, sent.seq, answer.refused)
            return None
        if sent.message.qos > 0:
            self.measures.publish_to_puback.add(self._clock() - sent.at)
        if self._refused.accept(sent.message.topic):
            self._cursor = 0
        return sent.seq

    def _oldest_at(self) -> float:
        """When the oldest message in flight was sent; infinity when none is."""
        return min((sent.at for sent in self._in_flight.values()), default=math.inf)

    def _unacknowledged_s(self) -> float:
        """How long the broker has had something to acknowledge and did not; what it has not read yet counts as well,
        as long as nothing of it is being read. Its answers to pings say nothing of what it does with messages.
        """
        return self._clock() - max(self._progress_at, self._oldest_at())

    def _refuse(self, message: Message, seq: int | None, reason: str) -> None:
        if self._refused.refuse(message.topic, self._clock()):
            said = {"topic": message.topic, "kind": message.kind, "event_id": message.event_id}
            self._log.error("mqtt_message_refused", **said, reason=reason, kept=seq is not None)
            self._on_refused(message, reason)

    def _send_rows(self, rows: list[OutboxRow]) -> bool:
        """Send rows until the window is full (True: all were looked at)."""
        flying = {sent.seq for sent in self._in_flight.values()}
        for seq, message in rows:
            if self.full:
                return False
            if seq not in flying and self._refused.may_send(message.topic) and not self.publish(message, seq):
                return False
            self._cursor = seq
        return True
