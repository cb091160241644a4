"""Between the network thread, which only puts, and the server, which only takes. Bounded; counts what is lost."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.dashboard.heard import MAX_BYTES

MAX_ITEMS = 4000
MAX_WAITING_BYTES = 16 << 20


@dataclass(frozen=True)
class Arrived:
    """A message as it came."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True)
class Linked:
    """The broker has accepted our subscription."""


@dataclass(frozen=True)
class Lost:
    """There is no connection, or none that can be used."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The network thread has ended by a mistake of ours."""

    error: BaseException


Item = Arrived | Linked | Lost | Failed


class Inbox:
    """See the module's docstring."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        """`wake` is called on the network thread after each item; it must not block."""
        self.wake = wake
        self.lost = 0
        """Messages that found no room; written by the network thread."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._put_bytes = 0  # each written by one side only
        self._taken_bytes = 0

    def arrive(self, message: Arrived) -> None:
        """Put a message; it is lost when there is no room, or when it is too large to be of any use."""
        size = len(message.payload)
        waiting = self._put_bytes - self._taken_bytes
        if size > MAX_BYTES or self._items.qsize() >= MAX_ITEMS or waiting + size > MAX_WAITING_BYTES:
            self.lost += 1
            return
        self._put_bytes += size
        self.tell(message)

    def tell(self, item: Item) -> None:
        """Put something that must not be lost; there is little of it."""
        self._items.put(item)
        self.wake()

    def take(self, most: int) -> Iterator[Item]:
        """Up to `most` items, oldest first."""
        for _ in range(most):
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, Arrived):
                self._taken_bytes += len(item.payload)
            yield item

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken."""
        return self._items.empty()
