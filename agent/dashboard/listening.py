"""The socket that the page is served from: where it listens, and what to do when it cannot. Knows no HTTP."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator

from agent.errors import AgentError, SettingsError

UNREAD_S = 10
"""A browser that takes nothing for so long is let go."""
BACKLOG = 128


@contextlib.contextmanager
def listening(address: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; raises AgentError or SettingsError saying what to do."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SettingsError(f"dashboard.host: {address} is no address of this machine: {error.strerror}") from error
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Every accepted connection inherits it: the kernel ends those whose other side takes nothing.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD_S)
        try:
            sock.bind(where)
            sock.listen(BACKLOG)
        except OSError as error:
            raise _cannot_listen(error, address, port) from error
        sock.setblocking(False)
        yield sock


def url_of(sock: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    address, port = sock.getsockname()[:2]
    if is_wildcard(address):
        address = "::1" if ":" in address else "127.0.0.1"
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def is_wildcard(address: str) -> bool:
    """Whether this is every address of the machine."""
    return _is(address, "is_unspecified")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    return address == "localhost" or _is(address, "is_loopback")


def _is(address: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(address), what))
    except ValueError:
        return False


def _cannot_listen(error: OSError, address: str, port: int) -> AgentError:
    if error.errno == errno.EADDRINUSE:
        return AgentError(
            f"port {port} of {address} is taken by another program: stop it (`ss -ltnp 'sport = :{port}'` names it),"
            " or choose another port with --port or dashboard.port"
        )
    if error.errno == errno.EACCES:
        return AgentError(f"port {port} is for root only: choose one above 1023 with --port or dashboard.port")
    return SettingsError(f"dashboard.host: cannot listen on {address}: {error.strerror}")
