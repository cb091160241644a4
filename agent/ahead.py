"""Items that are made on a thread of their own while those before are worked with. Knows nothing of the items."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from agent.handover import Cancelled, CancelToken, Handover

T = TypeVar("T")


def ahead(items: Iterable[T], capacity: int) -> Generator[T, None, None]:
    """The same items in the same order, at most `capacity` of them made before they are asked for.

    What making them raises is raised here, once what was made before has been given. Closing it ends the thread.
    """
    token = CancelToken()
    made: Handover[T] = Handover("ahead", capacity, token)

    def make() -> None:
        try:
            with suppress(Cancelled):
                for item in items:
                    made.put(item)
        finally:
            made.close()

    with ThreadPoolExecutor(1, "ahead") as pool:
        making = pool.submit(make)
        try:
            while not made.ended:
                item = made.get()
                if item is not None:
                    yield item
            making.result()
        finally:
            token.cancel()
