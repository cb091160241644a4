"""How far a growing file is surely written, against a slow search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.formats.dicom_written import LOOK_AHEAD_BYTES, WrittenPrefix
from tests.agent.formats.dicom_cases import Shown


def slowly(data: bytes) -> int:
    """Past the last non-zero byte."""
    end = len(data)
    while end and data[end - 1] == 0:
        end -= 1
    return end


@given(st.lists(st.tuples(st.binary(max_size=5), st.integers(0, 150_000)), max_size=4), st.data())
def test_against_a_slow_search(runs: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """At every size, appended or preallocated, the answer is the byte behind the last one that is not zero."""
    content = b"".join(some + b"\0" * zeros for some, zeros in runs)
    preallocated = data.draw(st.booleans())
    prefix = WrittenPrefix()
    for size in sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5))):
        shown = content[:size] + (b"\0" * (len(content) - size) if preallocated else b"")
        assert prefix.reach(Shown(shown)) == slowly(shown)


class Counting(Shown):
    """Counts the bytes that are read."""

    read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        """As the file, and count."""
        self.read_bytes += length
        return super().read(offset, length)


def test_a_call_reads_no_more_than_it_must() -> None:
    """Each look at a preallocated file of 12 MB costs what is new and one look ahead, not the whole file."""
    prefix = WrittenPrefix()
    total, step = 12_000_000, 1 << 16
    for size in range(0, total, 20 * step):
        window = Counting(b"\1" * size + b"\0" * (total - size))
        assert prefix.reach(window) == size
        assert window.read_bytes <= 20 * step + LOOK_AHEAD_BYTES + 3 * step


def test_a_shorter_file() -> None:
    """The answer never exceeds what can be read."""
    prefix = WrittenPrefix()
    assert prefix.reach(Shown(b"\1" * 10)) == 10
    assert prefix.reach(Shown(b"\1" * 4)) == 4
