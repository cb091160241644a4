"""What a browser may ask for: a fixed list of files, the events, and whether all is well. Read only.

Decides who is answered (by the Host that was asked for) and which headers every answer carries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.errors import AgentError

PAGE = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
"""Files of other kinds are not served."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
OWN_SITE = ("same-origin", "none")
"""What a browser says of a request that no other site made."""


def page_files() -> dict[str, tuple[bytes, str]]:
    """Name → content and media type of everything that is served; raises AgentError without the page."""
    files = {
        path.name: (path.read_bytes(), TYPES[path.suffix])
        for path in sorted(PAGE.glob("*"))
        if path.suffix in TYPES and path.is_file()
    }
    if "index.html" not in files:
        raise AgentError("the dashboard's page is missing from this installation: install spinextract-agent again")
    return files


def allowed_hosts(address: str, names: Collection[str]) -> frozenset[str]:
    """Names under which a browser may ask: this machine's own, the address listened on, and the settings'."""
    return frozenset(name.lower() for name in (*LOOPBACK_NAMES, address, *names))


def build_app(
    events: Callable[[Request], Response],
    health: Callable[[], dict[str, Any]],
    hosts: Collection[str],
    *,
    any_ip: bool,
) -> ASGIApp:
    """The application. `any_ip`: an address of any kind may be asked for, since we listen on all of them; what is
    kept out are names of other people's choosing (DNS rebinding).
    """
    files = page_files()

    def page(request: Request) -> Response:
        found = files.get(request.path_params.get("name", "index.html"))
        return _not_found() if found is None else Response(found[0], media_type=found[1])

    async def index(request: Request) -> Response:
        return page(request)

    async def stream(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", OWN_SITE[0]) not in OWN_SITE:
            return PlainTextResponse("another site may not read this\n", 403)
        return events(request)

    async def healthz(_: Request) -> Response:
        return JSONResponse(health())

    routes = [
        Route("/", index),
        Route("/page/{name}", index),
        Route("/events", stream),
        Route("/healthz", healthz),
    ]
    app = Starlette(routes=routes, exception_handlers={404: _answer_404})
    app.router.redirect_slashes = False
    return _Guard(app, hosts, any_ip=any_ip)


class _Guard:
    """Refuses hosts that are not ours, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], *, any_ip: bool) -> None:
        self._app = app
        self._hosts = hosts
        self._any_ip = any_ip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self._app
        if scope["type"] == "http" and not self._is_ours(Headers(scope=scope).get("host", "")):
            app = PlainTextResponse(
                "This name is not one of the dashboard's. If it should be, add it to dashboard.names in the agent's"
                " settings and start the dashboard again.\n",
                421,
            )
        await app(scope, receive, send_with_headers)

    def _is_ours(self, asked: str) -> bool:
        host = asked.lower()
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return host in self._hosts or (self._any_ip and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _answer_404(_: Request, __: Exception) -> Response:
    return _not_found()


def _not_found() -> Response:
    return PlainTextResponse("There is nothing here: the page is at /.\n", 404)
