"""The dashboard's process: feeds the board with what the subscriber heard, serves it, tells the service manager.

One event loop owns everything but the subscriber's thread. Ends within two seconds of SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn

from agent import host
from agent.dashboard.board import Board
from agent.dashboard.heard import Now, filters
from agent.dashboard.inbox import Arrived, Failed, Inbox, Item, Linked, Lost
from agent.dashboard.listening import is_loopback, is_wildcard, listening, url_of
from agent.dashboard.stream import Stream
from agent.dashboard.subscriber import Subscriber
from agent.dashboard.web import allowed_hosts, build_app
from agent.settings import Settings
from agent.topics import Topics

TICK_S = 0.2
"""Shortest time between two views."""
BEAT_S = 0.8
"""Longest time between two views but for one tick: a screen takes a server that says nothing for frozen."""
TAKEN_AT_ONCE = 200
"""Messages that are read before others have their turn on the event loop."""
RESYNC_PAUSE_S = 5.0
"""Shortest time between two requests for everything that the broker keeps."""
MUCH_KEPT = 900
"""Kept messages on one connection; mosquitto as it comes drops some beyond a thousand."""
LEAVE_S = 0.8
"""Longest wait at the end, for browsers and for the broker each."""
MAX_CONNECTIONS = 256

log = structlog.get_logger("dashboard")


def serve(settings: Settings, address: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` gets the page's URL.

    Raises AgentError when the port cannot be had, SettingsError when settings cannot be used.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with listening(address, port) as sock:
        if not is_loopback(address):
            log.warning("dashboard_exposed", detail=f"everybody who reaches {address} port {port} sees the results")
        asyncio.run(Dashboard(settings, address, sock).run(on_ready))


def now() -> Now:
    """This moment; the steady clock goes on while the machine sleeps."""
    return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))


class Dashboard:
    """Joins subscriber, board and web application."""

    def __init__(self, settings: Settings, address: str, sock: socket.socket) -> None:
        """Raises SettingsError when the broker's secrets cannot be used."""
        topics = Topics(settings.mqtt.root, settings.site, settings.instrument)
        self._replay_topic = topics.command("replay-state") if "replay-state" in settings.mqtt.commands else None
        self._sock = sock
        self._board = Board(topics.base, secrets.token_hex(8), now())
        self._stream = Stream(self._board)
        self._inbox = Inbox()
        self._subscriber = Subscriber(settings.dashboard.session(settings.mqtt), filters(topics.base), self._inbox)
        self._arrived = asyncio.Event()
        self._changed = True
        self._link = ""
        self._told: set[str] = set()
        self._lost = 0
        self._kept = 0
        app = build_app(
            lambda request: self._stream.connect(request, now()),
            self._health,
            allowed_hosts(address, settings.dashboard.names),
            any_ip=is_wildcard(address),
        )
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                http="h11",
                loop="asyncio",
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=1,
            )
        )

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Work until a signal asks for the end; raises what made a part of it fail."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._inbox.wake = lambda: _call_soon(loop, self._arrived.set)
        self._subscriber.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self._server.serve(sockets=[self._sock]))
                others = [tasks.create_task(self._read()), tasks.create_task(self._tick())]
                await self._server.ready.wait()
                host.notify("READY=1")
                on_ready(url_of(self._sock))
                await stop.wait()
                host.notify("STOPPING=1")
                self._stream.close()
                self._server.should_exit = True
                await serving
                for task in others:
                    task.cancel()
        finally:
            await asyncio.to_thread(self._subscriber.stop, LEAVE_S)
            log.info("dashboard_ended")

    async def _read(self) -> None:
        """Take what the subscriber heard."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for item in self._inbox.take(TAKEN_AT_ONCE):
                self._take(item)
            if not self._inbox.is_empty:
                self._arrived.set()
                await asyncio.sleep(0)

    def _take(self, item: Item) -> None:
        self._changed = True
        match item:
            case Arrived():
                self._count_kept(item.retained)
                why = self._board.hear(item.topic, item.payload, retained=item.retained, now=now())
                if why is not None and why not in self._told:
                    self._told.add(why)  # once a kind: whoever sends such messages may send many
                    log.warning("message_ignored", reason=why, bytes=len(item.payload))
            case Linked():
                self._kept = 0
                self._link = "connected"
                log.info("broker_connected")
                self._board.link("connected", "", now())
            case Lost():
                if item.reason != self._link:  # once a reason: a broker may be away for a night
                    log.warning("broker_lost", reason=item.reason)
                self._link = item.reason
                self._board.link("lost", item.reason, now())
            case Failed():
                raise item.error

    def _count_kept(self, retained: bool) -> None:
        self._kept += retained
        if self._kept == MUCH_KEPT:
            log.warning(
                "broker_keeps_much",
                consequence="it may not send all of it at once, so that the history of the day may have gaps",
                remedy="mosquitto.conf: max_queued_messages 0; and clear results of long ago from the broker",
            )

    async def _tick(self) -> None:
        """Show, ask for what is missing, and tell the service manager that all goes round."""
        shown_s = resynced_s = beat_s = 0.0
        watchdog_s = host.watchdog_interval_s()
        while True:
            at = now()
            if self._changed or at.steady_s - shown_s >= BEAT_S:
                self._changed, shown_s = False, at.steady_s
                self._stream.show(at)
            if self._lost != self._inbox.lost and self._inbox.is_empty and at.steady_s - resynced_s > RESYNC_PAUSE_S:
                self._lost, resynced_s = self._inbox.lost, at.steady_s
                log.warning("messages_lost", total=self._lost, consequence="what the broker keeps is asked for again")
                self._subscriber.resync()
            if topics := self._board.wants_kept(at):
                self._subscriber.fetch(topics)
            if self._replay_topic is not None and self._board.wants_replay(at):
                log.info("replay_asked")
                self._subscriber.ask(self._replay_topic, json.dumps({"request_id": str(uuid.uuid4())}).encode())
            if watchdog_s is not None and at.steady_s - beat_s >= watchdog_s:
                beat_s = at.steady_s
                host.notify("WATCHDOG=1")
            await asyncio.sleep(TICK_S)

    def _health(self) -> dict[str, Any]:
        return {**self._board.summary(now()), "screens": self._stream.screens, "lost": self._inbox.lost}


class _Server(uvicorn.Server):
    """uvicorn that says when it serves, and leaves signals to us: it would raise them again after a clean end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _call_soon(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended; nobody reads any more
        loop.call_soon_threadsafe(what)
