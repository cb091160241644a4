"""One connection of the dashboard to the broker, from its first byte to its last: one fresh paho client.

Decides when the connection can be used, and in which words a refusal is told. Nothing about coming back.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent import credentials
from agent.dashboard.heard import MAX_BYTES
from agent.dashboard.inbox import Arrived, Inbox, Linked
from agent.session_events import Version
from agent.settings import MqttSettings

KEEPALIVE_S = 3
"""A broker that froze is noticed within twice this time."""
CONNECT_TIMEOUT_S = 2.0
ANSWER_S = 2.0
"""How long the broker may take to accept connection and subscription."""
TICK_S = 0.2
"""How soon the network thread notices that it should stop or ask."""
QOS = 0
"""Nothing of a clean session is ever sent again, so QoS 1 would only make the broker hold back what it keeps: beyond
a thousand such messages mosquitto drops the rest."""
LARGEST_PACKET = MAX_BYTES + 4096
"""A broker of MQTT 5 does not even send a larger one."""
_NETWORK_ERRORS = (OSError, ValueError, LookupError, struct.error, MQTTException)
"""What a name, a port, TLS, or bytes that are not MQTT make paho raise."""


class Link:
    """See the module's docstring. Belongs to the network thread."""

    def __init__(self, version: Version, settings: MqttSettings, client_id: str, filters: Sequence[str]) -> None:
        """Raises SettingsError when a secret cannot be read."""
        self.reason = ""
        """How it ended."""
        self.reached = False
        """Something listened at the broker's address."""
        self.answered = False
        """It spoke MQTT."""
        self.linked = False
        """It accepted the subscription."""
        self._trouble = ""
        self._settings = settings
        self._filters = list(filters)
        self._is_5 = version == "5"
        self._client = self._new_client(client_id)

    def live(self, stopping: threading.Event, inbox: Inbox, often: Callable[[paho.Client], None]) -> None:
        """Connect and stay until the connection ends or `stopping` is set; `often` is called while it can be used."""
        self._client.on_message = lambda _, __, message: inbox.arrive(
            Arrived(message.topic, bytes(message.payload), bool(message.retain))
        )
        self._client.on_subscribe = lambda _, __, ___, reasons, ____: self._on_subscribe(reasons, inbox)
        try:
            self._client.connect(
                self._settings.host, self._settings.port, KEEPALIVE_S, properties=self._connect_properties()
            )
            self.reached = True
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                # A PUBACK that waits for the one before to be acknowledged would hold up what the broker sends next.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._drive(stopping, often)
        except _NETWORK_ERRORS as error:
            self.reason = self._trouble = str(error) or type(error).__name__
        finally:
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                sock.close()
            # Without this circle the client and its sockets go at once.
            self._client.on_connect = self._client.on_disconnect = self._client.on_log = None
            self._client.on_message = self._client.on_subscribe = None
        advice = credentials.explain(self._trouble, self._settings, reached=self.reached)
        self.reason = advice or self.reason

    def _drive(self, stopping: threading.Event, often: Callable[[paho.Client], None]) -> None:
        answer_by = time.monotonic() + ANSWER_S
        while not stopping.is_set():
            rc = self._client.loop(TICK_S)
            if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.reason = self.reason or paho.error_string(rc)
                return
            if self.linked:
                often(self._client)
            elif time.monotonic() > answer_by:
                self.reason = self.reason or "no answer"
                return
        self._client.disconnect()
        self._client.loop(TICK_S)

    def _new_client(self, client_id: str) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._is_5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if self._is_5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, credentials.password(self._settings))
        if (context := credentials.tls(self._settings)) is not None:
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_log = self._on_log
        return client

    def _connect_properties(self) -> Properties | None:
        if not self._is_5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = LARGEST_PACKET
        return properties

    def _on_connect(
        self, client: paho.Client, _: object, __: object, reason: ReasonCode, ____: Properties | None
    ) -> None:
        # paho calls this for refusals too.
        self.answered = True
        if reason.is_failure:
            self.reason = f"the broker refuses the connection: {reason}"
            return
        client.subscribe([(topic, QOS) for topic in self._filters])

    def _on_subscribe(self, reasons: list[ReasonCode], inbox: Inbox) -> None:
        if self.linked:
            return  # what is asked for again was granted before
        refused = [topic for topic, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused:
            who = self._settings.username or "an anonymous user"
            self.reason = f"the broker does not let {who} read {', '.join(refused)}: allow it in its access rules"
            self._client.disconnect()
        else:
            self.linked = True
            inbox.tell(Linked())

    def _on_disconnect(self, _: object, __: object, ___: object, reason: ReasonCode, ____: object) -> None:
        unspecified = "the connection ended" if str(reason) == "Unspecified error" else str(reason)
        self.reason = self.reason or unspecified

    def _on_log(self, _: object, __: object, level: int, said: str) -> None:
        if level == paho.MQTT_LOG_ERR:  # paho tells what the socket or TLS said here, and nowhere else
            self._trouble = said
