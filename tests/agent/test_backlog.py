"""Promises of the order in which waiting files are looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.backlog import OLDEST_EVERY, Backlog
from agent.layouts import natural
from models.contract import SlideKey

PLACES = [SlideKey("P", str(number)) for number in range(5)]


class SlowBacklog:
    """The same by the obvious loop over everything that waits, in the order in which it began to."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[SlideKey | str, int]] = {}
        self._groups: dict[SlideKey | str, int] = {}
        self._taken = 0

    def add(self, path: str, slide: SlideKey | None, modified_ns: int | None) -> None:
        """A path is to be looked at."""
        if path not in self.files:
            place = slide or path.rpartition("/")[0]
            self._groups[place] = max(self._groups.get(place, 0), modified_ns or 0)
            self.files[path] = place, modified_ns or 0

    def discard(self, path: str) -> None:
        """It is not there any more."""
        if path in self.files:
            place, _ = self.files.pop(path)
            if not any(other == place for other, _ in self.files.values()):
                del self._groups[place]

    def take(self) -> str | None:
        """The next path."""
        if not self.files:
            return None
        self._taken += 1
        place = max(self._groups, key=lambda key: self._groups[key])
        path = min((p for p, (of, _) in self.files.items() if of == place), key=lambda p: (natural(p), p))
        if self._taken % OLDEST_EVERY == 0:
            path = next(iter(self.files))
        self.discard(path)
        return path


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.integers(0, 30), st.none() | st.sampled_from(PLACES), st.none() | st.integers(0, 4)),
            st.integers(0, 30),
        ),
        max_size=120,
    )
)
def test_the_order_is_that_of_the_obvious_loop(
    steps: list[tuple[int, SlideKey | None, int | None] | int | None],
) -> None:
    """Whatever is added, discarded and taken in whatever order: the same files come as from looking at all."""
    fast, slow = Backlog(), SlowBacklog()
    for step in steps:
        if step is None:
            assert fast.take() == slow.take()
        elif isinstance(step, int):
            fast.discard(f"a/{step}")
            slow.discard(f"a/{step}")
        else:
            number, slide, modified = step
            fast.add(f"a/{number}", slide, modified)
            slow.add(f"a/{number}", slide, modified)
        assert fast.slides == {place for place, _ in slow.files.values() if isinstance(place, SlideKey)}
        assert bool(fast) == bool(slow.files)
    while (path := fast.take()) is not None:
        assert path == slow.take()
    assert not slow.files and not fast.slides


def test_of_long_use_nothing_stays() -> None:
    """When nothing waits any more, nothing is remembered of what did."""
    backlog = Backlog()
    for number in range(1000):
        backlog.add(f"{number}", SlideKey("P", str(number)), number)
        if number % 10 == 9:
            while backlog.take() is not None:
                continue
    held = [value for value in vars(backlog).values() if isinstance(value, dict | list | set)]
    assert len(held) >= 4 and not any(held)


def test_nobody_starves_between_new_slides_and_second_looks() -> None:
    """New slides that keep coming, and second looks at files of older ones, do not keep a slide in the middle waiting
    for ever: it has a turn after at most OLDEST_EVERY times as many as waited before it.
    """
    backlog = Backlog()
    for number in range(10):
        backlog.add(f"old{number}", SlideKey("OLD", str(number)), 1)
    backlog.add("middle", SlideKey("MIDDLE", "1"), 2)
    taken = []
    for turn in range(OLDEST_EVERY * 11):
        backlog.add(f"new{turn}", SlideKey("NEW", str(turn)), 3 + turn)
        backlog.add(f"old{turn % 10}", SlideKey("OLD", str(turn % 10)), 1)
        taken.append(backlog.take())
    assert "middle" in taken
