"""A subscriber that never misses a message: it stands for every screen and record system behind the broker."""

from __future__ import annotations

import json
import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.brokers import wait_until
from tests.faults.judge import Heard


class Witness:
    """Hears everything at QoS 1, in a session that outlives its connection."""

    def __init__(self, port: int) -> None:
        """Returns when it is subscribed."""
        self.port = port
        self.messages: list[paho.MQTTMessage] = []
        self._bodies: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="witness", protocol=paho.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        stays = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        stays.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=stays)
        self._client.loop_start()
        wait_until(self._subscribed.is_set, "the witness has subscribed")

    def heard(self) -> Heard:
        """Everything so far, parsed once; for one thread."""
        for message in self.messages[len(self._bodies) :]:
            self._bodies.append({**json.loads(message.payload), "bytes": bytes(message.payload)})
        return Heard(list(self._bodies))

    def wait_for(self, count: int, limit_s: float) -> bool:
        """Wait until so many messages were heard in all; False when they were not in time."""
        with self._heard:
            return self._heard.wait_for(lambda: len(self.messages) >= count, limit_s)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        with self._heard:
            self.messages.append(message)
            self._heard.notify_all()
