"""MQTT 5 packets: how large a PUBLISH is, checked against a parse of what the properties really pack to."""

from __future__ import annotations

from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.packets import largest_packet, message_properties, missing_ability, publish_bytes
from tests.agent.test_publish import message


def connack(**values: int) -> Properties:
    """The properties of a CONNACK."""
    properties = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def written(topic: bytes, payload: bytes, qos: int, properties: bytes) -> bytes:
    """A PUBLISH packet, assembled slowly from the standard (MQTT 5, 3.3)."""
    body = len(topic).to_bytes(2, "big") + topic + (b"\x00\x01" if qos else b"") + properties + payload
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([0x30 | qos << 1]) + bytes(digits) + body


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 60, 61, 62, 63, 64, 127, 128, 16_000, 16_300, 16_384, 2_097_152])
def test_the_size_is_that_of_the_packet(qos: int, size: int) -> None:
    """Around every step of the length field, with and without expiry and correlation, the size is exact."""
    changes: list[dict[str, Any]] = [{}, {"expiry_s": 60}, {"correlation": b"c" * 40}, {"topic": "t/ä"}]
    for change in changes:
        said = message(**{"payload": b"x" * size, "qos": qos, **change})
        properties = message_properties(said)
        packed = properties.pack()  # type: ignore[no-untyped-call]
        assert publish_bytes(said, properties) == len(written(said.topic.encode(), said.payload, qos, packed))


def test_what_a_connack_allows() -> None:
    """Without a word everything is allowed; with one it holds."""
    assert largest_packet(None) == largest_packet(connack()) > 2**27
    assert largest_packet(connack(MaximumPacketSize=1000)) == 1000
    assert missing_ability(None) is None and missing_ability(connack(RetainAvailable=1, MaximumQoS=1)) is None
    assert "retain_available" in str(missing_ability(connack(RetainAvailable=0)))
    assert "max_qos" in str(missing_ability(connack(MaximumQoS=0)))
