"""What a session with a broker tells its owner, in the order in which it happened. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Version = Literal["5", "3.1.1"]


@dataclass(frozen=True)
class Connected:
    """The broker has accepted us; the session is clean, so nothing sent before is remembered."""

    protocol: Version
    receive_maximum: int
    """Most QoS 1 messages that the broker takes before it has acknowledged one."""
    maximum_packet_size: int
    """Largest packet that the broker takes, bytes; a larger message is refused here, not sent."""


@dataclass(frozen=True)
class Disconnected:
    """The connection, or an attempt to connect, has ended. What was in flight counts as unsent."""

    reason: str


@dataclass(frozen=True)
class Acked:
    """A QoS 1 message was answered by the broker, or a QoS 0 message left this machine."""

    mid: int
    refused: str | None = None
    """Why the message was not taken (MQTT 5 only): the broker's reason, or that it is too large for the broker."""


@dataclass(frozen=True)
class Command:
    """Someone asks for something on one of the command topics."""

    verb: str
    """Last level of the topic: whatever the sender wrote."""
    payload: bytes
    reply_to: str | None = None
    """Response Topic (MQTT 5): as wished, to be judged."""
    correlation: bytes | None = None
    """Correlation Data (MQTT 5), which goes back with the reply."""
    expires_at_s: float = math.inf
    """Monotonic seconds after which it must not be carried out any more."""


@dataclass(frozen=True)
class Overheard:
    """A message on our own status topic that came live: ours, or the late will of an earlier session."""

    payload: bytes


Event = Connected | Disconnected | Acked | Command | Overheard
