"""A bad network between the agent and its broker: a TCP relay on 127.0.0.1 that does to bytes what networks do.

Real sockets on both sides. Everything can be changed while connections are open; what was done is counted.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

CHUNK = 4096
TICK_S = 0.02
PUBACK = 4
"""Packet type (MQTT 5, 2.1.2) in the upper half of a packet's first byte."""


class Relay:
    """Stands between a client, which connects to `port`, and the broker."""

    def __init__(self, broker_port: int, seed: int = 0) -> None:
        """Starts at once; `seed` decides where connections are cut."""
        self.refusing = False
        """Whether new connections are closed at once."""
        self.cut_after: tuple[int, int] | None = None
        """A connection is cut at a random number of bytes, both ways together, in this range."""
        self.bytes_per_s = 0.0
        """Pace of each direction; 0: as fast as it goes."""
        self.delay_s = 0.0
        """Pause before each piece is passed on."""
        self.deaf = False
        """Half open: what comes from either side is read and goes nowhere, and nobody is told."""
        self.swallow: Callable[[int], bool] = lambda _: False
        """Which packets from the broker to the client are swallowed, by type; asked for whole packets only."""
        self.connections = self.cuts = self.swallowed = self.swallowed_bytes = 0
        self._broker_port = broker_port
        self._chance = random.Random(seed)
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(TICK_S)
        self.port = int(self._server.getsockname()[1])
        self._start(self._accept)

    def drop_all(self) -> None:
        """Cut every connection that is open now."""
        for end in list(self._open):
            _shut(end)

    def close(self) -> None:
        """End everything."""
        self._closing.set()
        self.drop_all()
        for thread in list(self._threads):
            thread.join()
        self._server.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="relay")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._server.accept()
            except TimeoutError:
                continue
            if self.refusing:
                client.close()
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
            except OSError:
                client.close()  # as a load balancer does whose broker is away
                continue
            self.connections += 1
            self._relay(client, broker)

    def _relay(self, client: socket.socket, broker: socket.socket) -> None:
        left = [self._chance.randint(*self.cut_after)] if self.cut_after else None
        ends = (client, broker)
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(TICK_S)
            self._open.add(end)
        packets = _Packets()
        self._start(lambda: self._pass_on(client, broker, left, lambda data: data))
        self._start(lambda: self._pass_on(broker, client, left, lambda data: self._without_swallowed(packets, data)))

    def _pass_on(
        self,
        source: socket.socket,
        sink: socket.socket,
        left: list[int] | None,
        change: Callable[[bytes], bytes],
    ) -> None:
        try:
            while not self._closing.is_set():
                try:
                    data = source.recv(CHUNK if self.bytes_per_s == 0 else max(1, int(self.bytes_per_s * TICK_S)))
                except TimeoutError:
                    continue
                if not data:
                    break
                pause_s = self.delay_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0)
                if pause_s:
                    self._closing.wait(pause_s)
                if self.deaf:
                    self.swallowed_bytes += len(data)
                    continue
                if left is not None:
                    data, cut = data[: left[0]], left[0] <= len(data)
                    left[0] -= len(data)
                    _send(sink, change(data))
                    if cut:
                        self.cuts += 1
                        break
                else:
                    _send(sink, change(data))
        except OSError:
            pass
        finally:
            for end in (source, sink):
                _shut(end)
                self._open.discard(end)
            source.close()

    def _without_swallowed(self, packets: _Packets, data: bytes) -> bytes:
        kept = b""
        for packet in packets.take(data):
            if self.swallow(packet[0] >> 4):
                self.swallowed += 1
            else:
                kept += packet
        return kept


class _Packets:
    """Cuts a stream of bytes into MQTT packets."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[bytes]:
        """The packets that are whole now."""
        self._rest += data
        whole: list[bytes] = []
        while (size := _packet_bytes(self._rest)) is not None and len(self._rest) >= size:
            whole.append(self._rest[:size])
            self._rest = self._rest[size:]
        return whole


def _packet_bytes(data: bytes) -> int | None:
    """The length of the packet at the start; None when not even that can be told yet (MQTT 5, 2.1.4)."""
    length = 0
    for place, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return 2 + place + length
    return None


def _send(sink: socket.socket, data: bytes) -> None:
    """Send all of it, however long the other side takes."""
    deadline = time.monotonic() + 60.0
    while data:
        try:
            data = data[sink.send(data) :]
        except TimeoutError:
            if time.monotonic() > deadline:
                raise


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
