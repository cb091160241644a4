"""Decides how many leading bytes of a growing file are certainly written; knows nothing of DICOM.

A preallocated file shows zeros where its bytes are still to come, so a zero counts as written only when a
non-zero byte follows it. This holds for writers that go from front to back.
"""

from __future__ import annotations

from agent.formats import Window

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)

LOOK_AHEAD_BYTES = 1 << 20
"""Zeros beyond the last non-zero byte that one call searches. A longer run inside written data is crossed when
the file's last bytes are written, or once the file has settled."""


class WrittenPrefix:
    """The end of the last non-zero byte seen so far; each byte that is not zero is looked at about once."""

    def __init__(self) -> None:
        self._end = 0

    def reach(self, window: Window) -> int:
        """Number of leading bytes known to be written, at most `window.size`."""
        size = window.size
        if size > self._end and not self._search_tail(window, size):
            self._search_forward(window, size)
        return min(self._end, size)

    def _search_tail(self, window: Window, size: int) -> bool:
        """An appended file nearly always ends with a non-zero byte: one small read settles it."""
        start = max(self._end, size - _BLOCK)
        found = _last_nonzero(window.read(start, size - start))
        if found:
            self._end = start + found
        return found > 0

    def _search_forward(self, window: Window, size: int) -> None:
        at = self._end
        while at < size and at - self._end < LOOK_AHEAD_BYTES:
            found = _last_nonzero(window.read(at, min(_BLOCK, size - at)))
            if found:
                self._end = at + found
            at += _BLOCK


def _last_nonzero(block: bytes) -> int:
    """Length of `block` without its trailing zeros."""
    if block == _ZEROS:  # memcmp, which rstrip is far from
        return 0
    return len(block.rstrip(b"\0"))
