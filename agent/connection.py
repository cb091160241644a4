"""One MQTT connection from its first byte to its last: one fresh paho client. Decides nothing about coming back.

paho keeps what it thinks is unsent and sends it again by itself after a reconnect, past the broker's receive
maximum and possibly twice; a client that lives for one connection cannot. `run` belongs to the network thread,
`publish` to the thread that was told of the connection by its Connected event.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import paho.mqtt.client as paho
import structlog
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent import credentials
from agent.settings import MqttSettings
from agent.topics import Message

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 5.0
TICK_S = 0.2
"""How soon the network thread notices that it should stop."""
LEAVE_S = 2.0
"""Longest wait for the last bytes of a clean end to leave."""
MAX_COMMAND_BYTES = 4096
_RECEIVE_MAXIMUM = 65_535  # MQTT 5, 3.2.2.3.3: what holds when the broker names none
_NETWORK_ERRORS = (OSError, ValueError, LookupError, struct.error, MQTTException)
"""What a name, a port, TLS, or bytes that are not MQTT make paho raise."""
Version = Literal["5", "3.1.1"]


@dataclass(frozen=True)
class Connected:
    """The broker has accepted us; the session is clean, so nothing sent before is remembered."""

    protocol: Version
    receive_maximum: int
    """Most QoS 1 messages that the broker takes before it has acknowledged one."""


@dataclass(frozen=True)
class Disconnected:
    """The connection, or an attempt to connect, has ended. What was in flight counts as unsent."""

    reason: str


@dataclass(frozen=True)
class Acked:
    """A QoS 1 message was answered by the broker, or a QoS 0 message left this machine."""

    mid: int
    refused: str | None = None
    """The broker's reason when it did not take the message (MQTT 5 only)."""


@dataclass(frozen=True)
class Command:
    """Someone asks for something on one of the command topics."""

    verb: str
    payload: bytes


Event = Connected | Disconnected | Acked | Command


@dataclass(frozen=True)
class Plan:
    """What every connection of a session has in common."""

    settings: MqttSettings
    client_id: str
    will: Message
    commands: Mapping[str, str] = field(default_factory=dict)
    """Topic → verb."""


@dataclass(frozen=True)
class Ending:
    """How a connection went."""

    reason: str
    reached: bool
    """Something listened at the broker's address (and TLS worked)."""
    answered: bool
    """It spoke MQTT."""


class Connection:
    """See the module's docstring. The secrets are read anew, so that a renewed file needs no restart."""

    def __init__(
        self, plan: Plan, version: Version, answer_s: float, emit: Callable[[Connection, Event], None]
    ) -> None:
        """`answer_s` is how long the broker may take to answer at all; `emit` is called on the network thread
        and must not block. Raises SettingsError when a secret cannot be read.
        """
        self._plan = plan
        self._version: Version = version
        self._answer_s = answer_s
        self._emit = emit
        self._answered = False
        self._reason = ""
        self._client = self._new_client()

    def publish(self, message: Message) -> int | None:
        """Hand a message to the network thread; returns its mid, or None when the connection is gone."""
        properties = _properties(message, PacketTypes.PUBLISH) if self._version == "5" else None
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        return info.mid if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def run(self, stopping: threading.Event, is_clean: Callable[[], bool]) -> Ending:
        """Connect and stay until the connection ends or `stopping` is set.

        `is_clean` is asked once then: a clean end tells the broker not to publish the will.
        """
        settings = self._plan.settings
        reached = False
        try:
            self._client.connect(settings.host, settings.port, keepalive=settings.keepalive_s)
            reached = True
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                # A posterior is several small writes: held back until the broker acknowledges the one before, each
                # would wait for the 40 ms by which a receiver may delay that.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._drive(stopping, is_clean)
        except _NETWORK_ERRORS as error:
            self._reason = str(error) or type(error).__name__
        finally:
            # Without a DISCONNECT before it, this makes the broker publish the will.
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            # Without this circle the client and its sockets go as soon as nobody publishes on it.
            self._client.on_connect = self._client.on_disconnect = None
            self._client.on_publish = self._client.on_message = None
        return Ending(self._reason or "closed", reached, self._answered)

    def _drive(self, stopping: threading.Event, is_clean: Callable[[], bool]) -> None:
        leave_by, answer_by = math.inf, time.monotonic() + self._answer_s
        while time.monotonic() < leave_by:
            rc = self._client.loop(TICK_S)
            if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._reason = self._reason or paho.error_string(rc)
                return
            if not self._answered and time.monotonic() > answer_by:
                self._reason = "no answer"
                return
            if stopping.is_set() and leave_by == math.inf:
                if not (is_clean() and self._client.is_connected()):
                    return
                self._client.disconnect()
                leave_by = time.monotonic() + LEAVE_S

    def _new_client(self) -> paho.Client:
        settings, will = self._plan.settings, self._plan.will
        is_5 = self._version == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._plan.client_id,
            clean_session=None if is_5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # our owner counts what is in flight
        if settings.username is not None:
            client.username_pw_set(settings.username, credentials.password(settings))
        if (context := credentials.tls(settings)) is not None:
            client.tls_set_context(context)
        properties = _properties(will, PacketTypes.WILLMESSAGE) if is_5 else None
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        # With this callback in place paho leaves all writing to `loop`: one thread touches the socket.
        client.on_socket_register_write = lambda *_: None
        return client

    def _on_connect(
        self, client: paho.Client, _: object, __: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        # paho calls this for refusals too.
        self._answered = True
        if reason.is_failure:
            self._reason = str(reason)
            return
        for topic in self._plan.commands:
            client.subscribe(topic, qos=1)
        receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
        self._emit(self, Connected(self._version, receive_maximum))

    def _on_disconnect(self, _: object, __: object, ___: object, reason: ReasonCode, ____: object) -> None:
        self._reason = self._reason or str(reason)

    def _on_publish(self, _: object, __: object, mid: int, reason: ReasonCode, ___: object) -> None:
        self._emit(self, Acked(mid, str(reason) if reason.is_failure else None))

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        verb = self._plan.commands.get(message.topic)
        size = len(message.payload)
        # A retained command would be obeyed again on every connect.
        if verb is None or message.retain or size > MAX_COMMAND_BYTES:
            log.warning("mqtt_command_ignored", topic=message.topic, bytes=size, retained=message.retain)
        else:
            self._emit(self, Command(verb, bytes(message.payload)))


def _properties(message: Message, packet: int) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema", message.schema)
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    return properties
