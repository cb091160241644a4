"""The dashboard's MQTT session: an ordinary subscriber without a will, which comes back within two seconds.

Decides nothing about messages: the network thread puts everything into the inbox. Counts as connected only when the
broker has accepted the subscription.
"""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time
from collections.abc import Sequence

import paho.mqtt.client as paho

from agent import credentials
from agent.dashboard.inbox import Failed, Inbox, Lost
from agent.dashboard.link import QOS, Link
from agent.errors import SettingsError
from agent.protocol import ProtocolChoice
from agent.settings import MqttSettings

BACKOFF_S = (0.25, 2.0)
"""First and longest pause between attempts, before jitter."""
STABLE_S = 10.0
"""A connection that held this long starts the next backoff anew."""


class Subscriber:
    """See the module's docstring."""

    def __init__(self, settings: MqttSettings, filters: Sequence[str], inbox: Inbox) -> None:
        """Raises SettingsError when the password file or a TLS file cannot be used."""
        credentials.password(settings)
        credentials.tls(settings)
        self._settings = settings
        self._filters = filters
        self._inbox = inbox
        self._client_id = f"spinextract-dashboard-{secrets.token_hex(4)}"  # the agent's own would throw it out
        self._asks: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._fetches: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._resync = threading.Event()
        self._stopping = threading.Event()
        # A daemon: looking up the broker's name may hang for minutes, and a stop must not wait for it.
        self._thread = threading.Thread(target=self._live, name="mqtt", daemon=True)
        self._protocol = ProtocolChoice(settings.protocol)

    def start(self) -> None:
        """Begin to connect, in the background and for as long as it takes."""
        self._thread.start()

    def ask(self, topic: str, payload: bytes) -> None:
        """Publish a command, should there be a connection just now."""
        self._asks.put((topic, payload))

    def fetch(self, topics: Sequence[str]) -> None:
        """Have the broker send what it keeps on these topics."""
        self._fetches.put(list(topics))

    def resync(self) -> None:
        """Have the broker send again what it keeps: some of it was lost on the way."""
        self._resync.set()

    def stop(self, timeout_s: float) -> None:
        """End the session."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _live(self) -> None:
        attempts = 0
        try:
            while not self._stopping.is_set():
                begun = time.monotonic()
                reason, at_once = self._one_connection()
                if at_once or self._stopping.is_set():
                    continue
                self._inbox.tell(Lost(reason))
                attempts = 1 if time.monotonic() - begun > STABLE_S else attempts + 1
                self._stopping.wait(self._delay_s(attempts))
        except BaseException as error:  # noqa: BLE001 - handed to the server, which ends the process
            self._inbox.tell(Failed(error))

    def _one_connection(self) -> tuple[str, bool]:
        """Why it ended, and whether to try again at once."""
        try:
            link = Link(self._protocol.version, self._settings, self._client_id, self._filters)
        except SettingsError as error:
            return str(error), False  # a password or certificate is being replaced: come back
        link.live(self._stopping, self._inbox, self._serve)
        if link.linked:
            self._protocol.settle()
        at_once = self._protocol.ended(link.reason, reached=link.reached, answered=link.answered)
        return link.reason or "closed", at_once

    def _serve(self, client: paho.Client) -> None:
        """What others want from the connection; a message that nobody waits for is not kept."""
        while not self._asks.empty():
            topic, payload = self._asks.get_nowait()
            client.publish(topic, payload, qos=1)
        while not self._fetches.empty():
            topics = self._fetches.get_nowait()
            client.subscribe([(topic, QOS) for topic in topics])
            client.unsubscribe(topics)  # the wildcards stay; two subscriptions would bring every message twice
        if self._resync.is_set():
            self._resync.clear()
            client.subscribe([(topic, QOS) for topic in self._filters])

    def _delay_s(self, attempts: int) -> float:
        # Jitter: many screens must not come back to a restarted broker in one wave.
        first, longest = BACKOFF_S
        return random.uniform(0.5, 1.0) * min(longest, first * 2.0 ** min(attempts - 1, 30))
