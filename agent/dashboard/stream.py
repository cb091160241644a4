"""Server-sent events: one view for all screens, and for each screen the cells that it has not been sent.

Nothing waits for a slow screen: it takes the newest view when it is ready for one, so that neither memory nor other
screens suffer. Lives on the server's event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from agent.dashboard.board import Board
from agent.dashboard.heard import Now

MEDIA_TYPE = "text/event-stream"
MAX_SCREENS = 32
RETRY_MS = 1000
"""How soon a browser that lost us tries again."""


class Stream:
    """See the module's docstring."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._screens: set[_Screen] = set()
        self._view = b""
        self._closed = False

    @property
    def screens(self) -> int:
        """How many there are."""
        return len(self._screens)

    def show(self, now: Now) -> None:
        """Give every screen the view of this moment; without a screen nothing is done."""
        if self._screens:
            self._view = _event("view", self._board.view(now))
            for screen in self._screens:
                screen.ready.set()

    def close(self) -> None:
        """End every response."""
        self._closed = True
        for screen in self._screens:
            screen.ready.set()

    def connect(self, request: Request, now: Now) -> Response:
        """Another screen, unless there are too many."""
        if self._closed or len(self._screens) >= MAX_SCREENS:
            return PlainTextResponse(
                f"{MAX_SCREENS} screens show this dashboard already: close one of them, then reload this page.\n", 503
            )
        if request.method == "HEAD":
            return Response(media_type=MEDIA_TYPE)
        screen = _Screen()
        self._screens.add(screen)
        self._view = _event("view", self._board.view(now))
        screen.ready.set()
        return _EventStream(self._events(screen), on_end=lambda: self._screens.discard(screen))

    async def _events(self, screen: _Screen) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        while True:
            await screen.ready.wait()
            screen.ready.clear()
            if self._closed:
                return
            yield self._view
            before, screen.sent = screen.sent, {held.slide: held.serial for held in self._board.heat_maps}
            for heat_map in list(self._board.heat_maps):
                after = before.get(heat_map.slide, 0)
                if heat_map.serial > after:
                    yield _event("patches", self._board.patches(heat_map, after))


class _Screen:
    """What one browser has been sent."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.sent: dict[str, int] = {}
        """Slide → serial number of its last cell."""


class _EventStream(StreamingResponse):
    """Says when it ends, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type=MEDIA_TYPE)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()
