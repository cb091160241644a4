"""Items made ahead on a thread: the same ones, in order, never too many, and what goes wrong is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.ahead import ahead


def test_items_keep_their_order() -> None:
    """Whatever the capacity, the items are the same ones in the same order."""
    for capacity in (1, 3, 200):
        assert list(ahead(range(100), capacity)) == list(range(100))


def test_what_goes_wrong_is_raised_after_what_was_made() -> None:
    """An error of the maker ends the items where it happened."""

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    items = ahead(failing(), 4)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_closing_ends_the_thread_and_no_more_is_made_than_allowed() -> None:
    """Of an endless source at most the capacity, the one in hand and those given are made; then the thread ends."""
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    items = ahead(endless(), 4)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert len(made) <= 2 + 4 + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
