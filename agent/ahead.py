"""Items that are made on a thread of their own while those before are worked with. Knows nothing of the items."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from agent.handover import Cancelled, CancelToken, Handover

T = TypeVar("T")


def ahead(items: Iterable[T], capacity: int) -> Iterator[T]:
    """The same items in the same order, at most `capacity` of them made before they are asked for.

    What making them raises is raised here, once what was made before has been given. Closing it ends the thread.
    """
    token = CancelToken()
    made: Handover[T] = Handover("ahead", capacity, token)
    failures: list[BaseException] = []

    def make() -> None:
        try:
            for item in items:
                made.put(item)
        except Cancelled:
            pass
        except BaseException as error:
            failures.append(error)
        made.close()

    thread = threading.Thread(target=make, name="ahead")
    thread.start()
    try:
        while not made.ended:
            item = made.get()
            if item is not None:
                yield item
    finally:
        token.cancel()
        thread.join()
    if failures:
        raise failures[0]
