"""Promises of the schedule of files that settle."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from agent.settling import Settling


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 5), st.floats(0, 9) | st.just(math.inf)),
            st.integers(0, 5),
            st.floats(0.1, 4),
        ),
        max_size=60,
    )
)
def test_it_gives_what_asking_all_would_give(steps: list[tuple[int, float] | int | float]) -> None:
    """Files noted, put off, discarded, and time that passes: due are those that have settled, each once; the wait is
    never longer than the time until one has.
    """
    settles_at: dict[str, float] = {}
    noted: set[str] = set()
    now = 0.0

    def settles_in_s(path: str, at_s: float) -> float:
        return max(0.0, settles_at[path] - at_s)

    settling = Settling(settles_in_s)
    for step in steps:
        if isinstance(step, tuple):
            path = str(step[0])
            settles_at[path] = max(settles_at.get(path, 0.0), now + step[1])  # later than was thought, or the same
            settling.note(path, now)
            noted.discard(path)
            if not math.isinf(settles_at[path]):
                noted.add(path)
        elif isinstance(step, int):
            settling.discard(str(step))
            noted.discard(str(step))
        else:
            now += step
            due = {path for path in noted if settles_at[path] <= now}
            assert settling.wait_s(now) <= min((settles_at[path] - now for path in noted - due), default=math.inf)
            found = settling.due(now)
            assert len(found) == len(set(found))
            assert {path for path in found if settles_at[path] <= now} == due
            noted -= set(found)
    assert (settling.wait_s(now) == math.inf) == (not noted)


def test_a_file_that_goes_on_is_put_off_without_being_noted() -> None:
    """What is asked when the time has come is how the file stands then: one that has changed is not due."""
    settles_at = {"a": 1.0, "b": 2.0}
    settling = Settling(lambda path, now: max(0.0, settles_at[path] - now))
    for path in settles_at:
        settling.note(path, 0.0)
    assert settling.wait_s(0.0) == 1.0
    settles_at["a"] = 5.0
    assert settling.due(1.5) == []
    assert settling.wait_s(1.5) == 0.5
    assert settling.due(2.0) == ["b"]
    settles_at["a"] = math.inf
    assert settling.wait_s(2.0) == math.inf
    assert not settling._at and not settling._heap
