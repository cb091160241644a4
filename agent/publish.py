"""The MQTT session: connects again and again, with jittered backoff and the protocol that the broker speaks.

Keeps no message and knows no ledger. The network thread only enqueues events; `events`, `publish` and `stop`
belong to one other thread, which learns of a connection through `events` before it can publish on it.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable

import structlog

from agent import credentials
from agent.connection import Connection, Ending, Plan
from agent.errors import SettingsError
from agent.protocol import ProtocolChoice
from agent.session_events import Acked, Command, Connected, Disconnected, Event, Overheard
from agent.settings import MqttSettings
from agent.topics import Message

__all__ = ["Acked", "Command", "Connected", "Disconnected", "Event", "Overheard", "Session"]

log = structlog.get_logger(__name__)

STABLE_S = 10.0
"""A connection that held this long starts the next backoff anew."""
PROBE_ANSWER_S = 2.0
"""How long the broker may take to answer while it is not known which protocol it speaks."""
ANSWER_S = 10.0
"""The same once it is known."""
MAX_WAITING_EVENTS = 1000
"""With more events waiting than this, commands are dropped: anyone may send them."""


class Session:
    """See the module's docstring."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        will: Message,
        wake: Callable[[], None] = lambda: None,
        commands: str | None = None,
        backoff_s: tuple[float, float] = (0.5, 30.0),
    ) -> None:
        """`wake` is called on the network thread after each event; `commands` is the filter of the command topics
        (None: commands are not listened to); `backoff_s` is the first and the longest pause between attempts, before
        jitter.

        Raises SettingsError when the password file or a TLS file cannot be used.
        """
        credentials.password(settings)
        credentials.tls(settings)
        for exposure in credentials.exposures(settings):
            log.warning("mqtt_exposed", detail=exposure)
        self.reconnects = 0
        """Connections after the first one; for the thread that calls `events`."""
        self._plan = Plan(settings, settings.client_id or client_id, will, commands)
        self._wake = wake
        self._backoff_s = backoff_s
        self._queue: queue.SimpleQueue[tuple[Connection | None, Event | BaseException]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._clean = True
        # A daemon: looking up the broker's name may hang for minutes, and a stop must not wait for it.
        self._thread = threading.Thread(target=self._live, name="mqtt", daemon=True)
        self._protocol = ProtocolChoice(settings.protocol)
        self._usable: Connection | None = None
        self._connections = 0

    def start(self) -> None:
        """Begin to connect, in the background and for as long as it takes."""
        self._thread.start()

    def events(self, timeout_s: float = 0.0) -> list[Event]:
        """What has happened since the last call, oldest first; waits up to `timeout_s` for a first event.

        Raises whatever ended the network thread, should that ever happen.
        """
        events: list[Event] = []
        while True:
            try:
                connection, event = self._queue.get(block=timeout_s > 0, timeout=timeout_s or None)
            except queue.Empty:
                return events
            timeout_s = 0.0
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Connected):
                self._usable = connection
                self.reconnects, self._connections = self._connections, self._connections + 1
            elif isinstance(event, Disconnected):
                self._usable = None
            events.append(event)

    def publish(self, message: Message) -> int | None:
        """Send now; returns the mid that its Acked will carry, or None when not connected (nothing is kept)."""
        return None if self._usable is None else self._usable.publish(message)

    def reconnect(self, reason: str) -> None:
        """Give up this connection, which is there and yet of no use; its Disconnected follows, then the next one."""
        if self._usable is not None:
            self._usable.give_up(reason)

    def stop(self, timeout_s: float, *, clean: bool = True) -> None:
        """End the session. A clean end suppresses the will, any other lets the broker publish it."""
        self._clean = clean
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _live(self) -> None:
        attempts = 0
        try:
            while not self._stopping.is_set():
                begun = time.monotonic()
                ending = self._one_connection()
                self._emit(None, Disconnected(ending.reason))
                if self._protocol.ended(ending.reason, reached=ending.reached, answered=ending.answered):
                    continue
                attempts = 1 if time.monotonic() - begun > STABLE_S else attempts + 1
                self._stopping.wait(self._delay_s(attempts))
        except BaseException as error:  # noqa: BLE001 - handed to the owning thread, which ends the process
            self._emit(None, error)

    def _one_connection(self) -> Ending:
        try:
            answer_s = ANSWER_S if self._protocol.is_settled else PROBE_ANSWER_S
            connection = Connection(self._plan, self._protocol.version, answer_s, self._emit)
        except SettingsError as error:
            # A password or certificate that vanished while we run is being replaced: come back.
            return Ending(str(error), reached=False, answered=False)
        return connection.run(self._stopping, lambda: self._clean)

    def _emit(self, connection: Connection | None, event: Event | BaseException) -> None:
        if isinstance(event, Connected):
            self._protocol.settle()
        if isinstance(event, Command | Overheard) and self._queue.qsize() > MAX_WAITING_EVENTS:
            return
        self._queue.put((connection, event))
        self._wake()

    def _delay_s(self, attempts: int) -> float:
        # Jitter: many agents must not come back to a restarted broker in one wave.
        first, longest = self._backoff_s
        return random.uniform(0.5, 1.0) * min(longest, first * 2.0 ** min(attempts - 1, 30))
