"""MQTT 5 on the wire: the properties of what we send, how large a PUBLISH is, and what a CONNACK allows. Pure."""

from __future__ import annotations

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.topics import Message

MAX_INCOMING_BYTES = 16_384
"""Largest packet that the broker may send us (MQTT 5): commands and statuses are small."""
_ANY_SIZE = 268_435_460  # the largest packet that MQTT's length field can describe


def message_properties(message: Message, packet: int = PacketTypes.PUBLISH) -> Properties:
    """What a message says of itself outside its payload; nothing that a 3.1.1 receiver would miss."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema", message.schema)
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    return properties


def connect_properties() -> Properties:
    """A session that ends with its connection (no Session Expiry Interval), and no packets beyond our needs."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = MAX_INCOMING_BYTES
    return properties


def publish_bytes(message: Message, properties: Properties) -> int:
    """Size of the whole PUBLISH packet (MQTT 5, 3.3)."""
    packed = len(properties.pack())  # type: ignore[no-untyped-call]
    identifier = 2 if message.qos else 0
    remaining = 2 + len(message.topic.encode()) + identifier + packed + len(message.payload)
    digits = 1 + sum(remaining >= 128**power for power in (1, 2, 3))
    return 1 + digits + remaining


def largest_packet(connack: Properties | None) -> int:
    """Largest packet that the broker takes, bytes."""
    return int(getattr(connack, "MaximumPacketSize", _ANY_SIZE))


def missing_ability(connack: Properties | None) -> str | None:
    """What the broker cannot do although every receiver relies on it; None when it can do everything."""
    if not getattr(connack, "RetainAvailable", 1):
        return "the broker keeps no retained messages: allow them there (mosquitto: retain_available true)"
    if not getattr(connack, "MaximumQoS", 1):
        return "the broker takes QoS 0 only, so results could be lost: allow QoS 1 there (mosquitto: max_qos 1)"
    return None
