"""The bounded queues between rooms and the token that stops them all. The only file with locks."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """Raised by a hand-over when the process is stopping at once."""


class CancelToken:
    """Stops every room. `stop` asks for a clean end; `fail` keeps the first failure and ends at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: list[threading.Condition] = []
        self.stopping = threading.Event()
        """Set once: take in nothing new, finish what is in hand."""
        self.cancelled = threading.Event()
        """Set once: leave at once."""
        self.failure: BaseException | None = None
        self.failed_room = ""

    def watch(self, condition: threading.Condition) -> None:
        """Wake this condition when the token changes."""
        with self._lock:
            self._waiters.append(condition)

    def stop(self) -> None:
        """Ask for a clean end."""
        self.stopping.set()
        self._wake()

    def cancel(self) -> None:
        """End at once: blocked hand-overs raise Cancelled."""
        self.stopping.set()
        self.cancelled.set()
        self._wake()

    def fail(self, room: str, error: BaseException) -> None:
        """Record a dead room (the first one is kept) and end at once."""
        with self._lock:
            if self.failure is None:
                self.failure, self.failed_room = error, room
        self.cancel()

    def _wake(self) -> None:
        with self._lock:
            waiters = list(self._waiters)
        for condition in waiters:
            with condition:
                condition.notify_all()


class Handover(Generic[T]):
    """A bounded queue with one producer and one consumer; a full one stops the room before it."""

    def __init__(self, name: str, capacity: int, token: CancelToken) -> None:
        self.name = name
        self.capacity = capacity
        self.high_water = 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._nudged = False
        self._token = token
        token.watch(self._changed)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Append, waiting while full. Raises Cancelled when the process ends at once."""
        with self._changed:
            while len(self._items) >= self.capacity:
                self._raise_if_cancelled()
                self._changed.wait()
            self._raise_if_cancelled()
            self._items.append(item)
            self.high_water = max(self.high_water, len(self._items))
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the oldest item; None after `timeout_s` seconds, a nudge, or the end (see `ended`)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                self._raise_if_cancelled()
                if self._closed or self._nudged:
                    self._nudged = False
                    return None
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            self._raise_if_cancelled()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def wait_until_taken(self, limit_s: float) -> bool:
        """Wait until the consumer has taken every item; False when it has not after `limit_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._items or self._token.cancelled.is_set(), limit_s)
            return not self._items

    def nudge(self) -> None:
        """Wake the consumer without an item (another source has something for it)."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def close(self) -> None:
        """The producer is done; the consumer drains what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Closed and drained."""
        with self._changed:
            return self._closed and not self._items

    def _raise_if_cancelled(self) -> None:
        if self._token.cancelled.is_set():
            raise Cancelled(self.name)


class Wakeup:
    """Ends a room's wait early: something happened, or the process is stopping."""

    def __init__(self, token: CancelToken) -> None:
        self._changed = threading.Condition()
        self._set = False
        self._token = token
        token.watch(self._changed)

    def set(self) -> None:
        """End the wait that is under way, or the next one."""
        with self._changed:
            self._set = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait for `set`, for a stop, or for `timeout_s` seconds."""
        with self._changed:
            if not self._set and not self._token.stopping.is_set():
                self._changed.wait(timeout_s)
            self._set = False
