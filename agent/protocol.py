"""Which MQTT version the next connection speaks, judged by how the ones before it ended. Pure."""

from __future__ import annotations

from typing import Literal

from agent.session_events import Version

SILENT_ENDS = 2
"""So many connections without any answer make `auto` try the other version: amqtt, for one, reads a CONNECT of
MQTT 5 with a will as one of 3.1.1, and waits for bytes that never come."""
UNSUPPORTED_VERSION = "Unsupported protocol version"
"""The reason that a broker without MQTT 5 gives, in paho's words."""


class ProtocolChoice:
    """A version that has worked once, or that the settings name, stays; `auto` begins with 5."""

    def __init__(self, wanted: Literal["auto", "5", "3.1.1"]) -> None:
        self.version: Version = "3.1.1" if wanted == "3.1.1" else "5"
        self.is_settled = wanted != "auto"
        self._silent_ends = 0

    def settle(self) -> None:
        """This version works."""
        self.is_settled = True

    def ended(self, reason: str, *, reached: bool, answered: bool) -> bool:
        """Take how a connection ended: something listened, it spoke MQTT. True when to try again at once."""
        if self.is_settled:
            return False
        self._silent_ends = self._silent_ends + 1 if reached and not answered else 0
        refused = UNSUPPORTED_VERSION in reason
        if not refused and self._silent_ends < SILENT_ENDS:
            return False
        self._silent_ends = 0
        was, self.version = self.version, "3.1.1" if self.version == "5" else "5"
        return refused and was == "5"
