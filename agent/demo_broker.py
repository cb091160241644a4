"""The demo's embedded MQTT broker (amqtt, MQTT 3.1.1) on loopback, in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from concurrent.futures import Future
from types import TracebackType

from agent.errors import AgentError


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedBroker:
    """A context manager: the broker listens inside the block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._started: Future[None] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="broker")

    def __enter__(self) -> EmbeddedBroker:
        self._thread.start()
        self._started.result(timeout=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        try:
            from amqtt.broker import Broker
        except ImportError as error:
            self._started.set_exception(AgentError("the demo needs amqtt: pip install 'spinextract-agent[demo]'"))
            raise SystemExit from error
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        settings = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self._port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = Broker(settings, loop=self._loop)
        try:
            await broker.start()
        except Exception as error:  # noqa: BLE001 - whatever amqtt raises is told to the one who waits
            self._started.set_exception(AgentError(f"the embedded broker: {error}"))
            return
        self._started.set_result(None)
        await self._stop.wait()
        # Not broker.shutdown(): it waits 5 s for its own loop. Everybody has left, nothing is kept.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
