"""One MQTT connection from its first byte to its last: one fresh paho client. Decides nothing about coming back.

paho keeps what it thinks is unsent and sends it again by itself after a reconnect, past the broker's receive
maximum and possibly twice; a client that lives for one connection cannot. `run` belongs to the network thread,
`publish` to the thread that was told of the connection by its Connected event. The broker keeps no session for us
either: nothing waits there while we are away, so no old command comes late.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import paho.mqtt.client as paho
import structlog
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent import credentials
from agent.packets import connect_properties, largest_packet, message_properties, missing_ability, publish_bytes
from agent.session_events import Acked, Command, Connected, Event, Overheard, Version
from agent.settings import MqttSettings
from agent.topics import Message

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 5.0
TICK_S = 0.2
"""How soon the network thread notices that it should stop."""
LEAVE_S = 2.0
"""Longest wait for the last bytes of a clean end to leave."""
MAX_COMMAND_BYTES = 4096
"""Payload, response topic and correlation data of a command together."""
COMMAND_LIFE_S = 30.0
"""A command that nobody could look at for so long is stale, whatever its sender said."""
_NO_RETAINED = 2  # MQTT 5, 3.8.3.1: do not send retained messages at the time of the subscribe
_RECEIVE_MAXIMUM = 65_535  # MQTT 5, 3.2.2.3.3: what holds when the broker names none
_NETWORK_ERRORS = (OSError, ValueError, LookupError, struct.error, MQTTException)
"""What a name, a port, TLS, or bytes that are not MQTT make paho raise."""


@dataclass(frozen=True)
class Plan:
    """What every connection of a session has in common."""

    settings: MqttSettings
    client_id: str
    will: Message
    """Its topic is listened to as well: see Overheard."""
    commands: str | None = None
    """Filter `.../cmd/+` of the command topics; None: no command is listened to."""


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
        self._reason = self._trouble = ""
        self._given_up = ""
        self._largest_packet = largest_packet(None)
        self._oversized = 0
        self._client = self._new_client()

    def publish(self, message: Message) -> int | None:
        """Hand a message to the network thread; returns its mid, or None when the connection is gone."""
        properties = message_properties(message) if self._version == "5" else None
        size = publish_bytes(message, properties) if properties is not None else 0
        if size > self._largest_packet:
            return self._refuse(f"its {size} bytes are more than the {self._largest_packet} that the broker takes")
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        return info.mid if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def _refuse(self, why: str) -> int:
        """A message that would cost us the connection is answered here, under a mid that paho never uses."""
        self._oversized -= 1
        self._emit(self, Acked(self._oversized, why))
        return self._oversized

    def give_up(self, reason: str) -> None:
        """End this connection within a tick, as if it had broken; may be called on any thread."""
        self._given_up = reason

    def run(self, stopping: threading.Event, is_clean: Callable[[], bool]) -> Ending:
        """Connect and stay until the connection ends or `stopping` is set.

        `is_clean` is asked once then: a clean end tells the broker not to publish the will.
        """
        settings = self._plan.settings
        reached = False
        try:
            properties = connect_properties() if self._version == "5" else None
            self._client.connect(settings.host, settings.port, settings.keepalive_s, properties=properties)
            reached = True
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                # A posterior is several small writes: held back until the broker acknowledges the one before, each
                # would wait for the 40 ms by which a receiver may delay that.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._drive(stopping, is_clean)
        except _NETWORK_ERRORS as error:
            self._reason = self._trouble = str(error) or type(error).__name__
        finally:
            # Without a DISCONNECT before it, this makes the broker publish the will.
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            # Without this circle the client and its sockets go as soon as nobody publishes on it.
            self._client.on_connect = self._client.on_disconnect = None
            self._client.on_publish = self._client.on_subscribe = self._client.on_message = None
            self._client.on_log = None
        advice = credentials.explain(self._trouble, settings, reached=reached)
        return Ending(advice or self._reason or "closed", reached, self._answered)

    def _drive(self, stopping: threading.Event, is_clean: Callable[[], bool]) -> None:
        leave_by, answer_by = math.inf, time.monotonic() + self._answer_s
        while time.monotonic() < leave_by:
            rc = self._client.loop(TICK_S)
            if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._reason = self._reason or paho.error_string(rc)
                return
            if not self._answered and time.monotonic() > answer_by:
                self._given_up = "no answer"
            if self._given_up:
                self._reason = self._given_up
                return
            if stopping.is_set() and leave_by == math.inf:
                if not is_clean():
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
        # No Will Delay Interval: screens must learn at once that the agent is gone. (A delay would also end with the
        # session, and ours ends with its connection.) A short loss shows as offline, then online: as it was.
        properties = message_properties(will, PacketTypes.WILLMESSAGE) if is_5 else None
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_log = self._on_log
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
        if (missing := missing_ability(properties)) is not None:
            self._reason = missing
            client.disconnect()
            return
        for topic in filter(None, (self._plan.will.topic, self._plan.commands)):
            if self._version == "5":
                client.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=_NO_RETAINED))
            else:
                client.subscribe(topic, qos=1)
        receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
        self._largest_packet = largest_packet(properties)
        self._emit(self, Connected(self._version, receive_maximum, self._largest_packet))

    def _on_log(self, _: object, __: object, level: int, said: str) -> None:
        if level == paho.MQTT_LOG_ERR:  # paho tells what the socket or TLS said here, and nowhere else
            self._trouble = said

    def _on_subscribe(self, _: object, __: object, ___: int, reasons: list[ReasonCode], ____: object) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.warning("mqtt_subscription_refused", reason=str(reason), consequence="commands may go unheard")

    def _on_disconnect(self, _: object, __: object, ___: object, reason: ReasonCode, ____: object) -> None:
        self._reason = self._reason or str(reason)

    def _on_publish(self, _: object, __: object, mid: int, reason: ReasonCode, ___: object) -> None:
        self._emit(self, Acked(mid, str(reason) if reason.is_failure else None))

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        # Retained: a command would be obeyed again on every connect, and an old status is followed by our birth.
        if message.topic == self._plan.will.topic:
            if not message.retain:
                self._emit(self, Overheard(bytes(message.payload)))
            return
        properties = message.properties
        reply_to: str | None = getattr(properties, "ResponseTopic", None)
        correlation: bytes | None = getattr(properties, "CorrelationData", None)
        size = len(message.payload) + len(reply_to or "") + len(correlation or b"")
        if message.retain or size > MAX_COMMAND_BYTES:
            log.warning("mqtt_command_ignored", bytes=size, retained=message.retain)
            return
        life_s = min(COMMAND_LIFE_S, getattr(properties, "MessageExpiryInterval", COMMAND_LIFE_S))
        verb = message.topic.rpartition("/")[2]
        expires_at_s = time.monotonic() + life_s
        self._emit(self, Command(verb, bytes(message.payload), reply_to, correlation, expires_at_s))
