"""Which pixels of one page are on disk: a cursor over its segments in image order, and what it may pass.

A lane is one cover of the image by segments: one plane, or two whose samples alternate. It decides when bytes
are written, knowing that a preallocated file shows zeros first; it knows nothing of directories or other pages.

One rule for zeros: lanes are written front to back, so bytes are known to be written when a non-zero byte
stands at their end or behind it in the same lane. Otherwise they wait for more bytes, or until the file settles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agent.errors import FormatError
from agent.formats import Region, Window
from agent.formats.tiff_layout import Layout
from agent.formats.tiff_segments import decompress, to_planes

BLOCK_BYTES = 1 << 22
"""Most bytes of uncompressed rows in one region (more only where a single row is longer)."""
CAUTIOUS_BYTES = 1 << 18
"""The same while rows are held back, so that a preallocated file is not read again and again."""
PROBE_BYTES = 1 << 16
"""How much of each later segment is searched for a non-zero byte, at either end."""
PROBE_SEGMENTS = 8
"""How many later segments are searched, nearest and last ones."""
SLACK_BYTES = 1 << 12
"""What a compressed segment may have beyond twice its decoded size."""


class Lane(ABC):
    """The segments of `planes`, int64 [segments] places that may still be zero, and the next one to yield."""

    def __init__(self, layout: Layout, planes: tuple[int, ...]) -> None:
        self.layout = layout
        self._planes = planes
        self._offsets: NDArray[np.int64] = np.zeros(layout.segments, np.int64)
        self._counts = self._offsets
        self._seen = np.zeros(0, np.intp)
        """Segments that begin within the first `_seen_size` bytes."""
        self._seen_size = -1
        self.next_row = 0
        """Image rows below this one are yielded wholly; the measure of progress."""

    @property
    def done(self) -> bool:
        """Every row is yielded."""
        return self.next_row >= self.layout.height

    def place(self, offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Take the newest places of the segments. Raises FormatError (malformed, limits)."""
        counts = np.where(offsets > 0, counts, 0)
        if self.layout.compression == "none":
            needed = self._needed_bytes()
            if np.any((counts > 0) & (counts < needed)):
                raise FormatError("malformed", "a segment has fewer bytes than its pixels need")
            counts = np.where(counts > 0, needed, 0)
        # No coder doubles its input: a longer segment is there to keep its reader busy.
        limit = 2 * self.layout.segment_bytes + SLACK_BYTES
        if self.layout.compression != "none" and counts.max() > limit:
            raise FormatError("limits", f"a compressed segment of {counts.max()} bytes, the limit is {limit}")
        self._offsets, self._counts = offsets, counts
        self._seen_size = -1

    def _needed_bytes(self) -> NDArray[np.int64]:
        """Bytes of each segment without compression."""
        return np.full(self.layout.segments, self.layout.segment_bytes)

    def on_disk(self, size: int) -> bool:
        """Does a file of `size` bytes hold every segment?"""
        return bool(self._counts.all() and (self._offsets + self._counts).max() <= size)

    @abstractmethod
    def step(self, window: Window, *, settled: bool) -> list[Region]:
        """Return the next pixels and move on; nothing when they are not on disk. Raises FormatError."""

    def _regions(self, y: int, x: int, planes: list[NDArray[np.uint16]]) -> list[Region]:
        return [Region(plane, y, x, pixels) for plane, pixels in zip(self._planes, planes, strict=True)]

    def _written_after(self, window: Window, index: int, position: int) -> bool:
        """Is there a non-zero byte at or after `position` of segment `index`, or in a later segment?"""
        probes = self._probes(window.size, index, position)
        return any(window.read(start, length).strip(b"\0") for start, length in probes)

    def _probes(self, size: int, index: int, position: int) -> Iterator[tuple[int, int]]:
        if self._seen_size != size:
            self._seen_size = size
            self._seen = np.flatnonzero((self._counts > 0) & (self._offsets < size))
        later = self._seen[np.searchsorted(self._seen, index, "right") :]
        nearest, last = later[:PROBE_SEGMENTS], later[PROBE_SEGMENTS:][-PROBE_SEGMENTS:]
        first = int(self._offsets[index]) + position
        spans = [(first, int(self._offsets[index] + self._counts[index]))]
        spans += [(int(self._offsets[i]), int(self._offsets[i] + self._counts[i])) for i in (*nearest, *last)]
        for start, stop in spans:
            stop = min(stop, size)
            if stop > start:
                yield start, min(stop - start, PROBE_BYTES)
                tail = max(start + PROBE_BYTES, stop - PROBE_BYTES)
                if stop > tail:
                    yield tail, stop - tail


class RowLane(Lane):
    """Uncompressed strips: any number of rows at once, across strips that lie one behind the other."""

    def __init__(self, layout: Layout, planes: tuple[int, ...]) -> None:
        super().__init__(layout, planes)
        self._block_bytes = BLOCK_BYTES

    def place(self, offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Take the newest places of the segments. Raises FormatError (malformed)."""
        super().place(offsets, counts)
        stops = offsets + self._counts
        joined = (self._counts[:-1] > 0) & (self._counts[1:] > 0) & (offsets[1:] == stops[:-1])
        self._run_ends = np.append(np.flatnonzero(~joined), self.layout.segments - 1)

    def _needed_bytes(self) -> NDArray[np.int64]:
        layout = self.layout
        first_rows = np.arange(layout.segments) * layout.segment_height
        return np.minimum(layout.segment_height, layout.height - first_rows) * layout.row_bytes

    def step(self, window: Window, *, settled: bool) -> list[Region]:
        """Return the next whole rows that are on disk, as many as lie together."""
        layout, y = self.layout, self.next_row
        index, row = divmod(y, layout.segment_height)
        if self.done or self._counts[index] == 0:
            return []
        offset = int(self._offsets[index]) + row * layout.row_bytes
        last = int(self._run_ends[np.searchsorted(self._run_ends, index)])
        rows = min(
            min((last + 1) * layout.segment_height, layout.height) - y,
            (window.size - offset) // layout.row_bytes,
            max(self._block_bytes // layout.row_bytes, 1),
        )
        if rows < 1:
            return []
        raw = window.read(offset, rows * layout.row_bytes)
        self._block_bytes = min(2 * self._block_bytes, BLOCK_BYTES)
        if not settled and raw[-1] == 0:
            rows = self._written_rows(window, raw, y + rows)
        if rows < 1:
            self._block_bytes = CAUTIOUS_BYTES
            return []
        self.next_row = y + rows
        return self._regions(y, 0, to_planes(raw, layout, rows, layout.width))

    def _written_rows(self, window: Window, raw: bytes, end_row: int) -> int:
        """How many rows of `raw`, which ends with zeros in front of image row `end_row`, are surely written."""
        layout = self.layout
        index, row = divmod(end_row - 1, layout.segment_height)
        if self._written_after(window, index, (row + 1) * layout.row_bytes):
            return len(raw) // layout.row_bytes
        return len(raw.rstrip(b"\0")) // layout.row_bytes


class SegmentLane(Lane):
    """Tiles and compressed strips: one whole segment at a time, clipped to the image."""

    def __init__(self, layout: Layout, planes: tuple[int, ...]) -> None:
        super().__init__(layout, planes)
        self._index = 0

    def step(self, window: Window, *, settled: bool) -> list[Region]:
        """Return the next segment if it is on disk. Raises FormatError (malformed, limits)."""
        layout, index = self.layout, self._index
        if self.done or self._counts[index] == 0:
            return []
        offset, count = int(self._offsets[index]), int(self._counts[index])
        if offset + count > window.size:
            return []
        y, x = (index // layout.across) * layout.segment_height, (index % layout.across) * layout.segment_width
        height, width = min(layout.segment_height, layout.height - y), min(layout.segment_width, layout.width - x)
        raw = window.read(offset, count)
        unsure = not settled and self._ends_with_zero(raw, height, width)
        unsure = unsure and not self._written_after(window, index, len(raw))
        if unsure and layout.compression != "deflate":
            return []
        try:
            planes = to_planes(decompress(raw, layout), layout, height, width)
        except FormatError:
            if unsure:
                return []  # zlib's checksum tells a written stream from one whose end is still zeros
            raise
        self._index += 1
        self.next_row = self._index // layout.across * layout.segment_height
        return self._regions(y, x, planes)

    def _ends_with_zero(self, raw: bytes, height: int, width: int) -> bool:
        """May the last pixels of a segment be unwritten?"""
        if self.layout.compression == "lzw":
            return raw.endswith(b"\0\0")  # its last byte holds no pixels: end-of-information has 9 bits or more
        if self.layout.compression != "none":
            return raw.endswith(b"\0")
        # The padding of an uncompressed edge tile does not count.
        row_bytes = self.layout.row_bytes
        return raw[(height - 1) * row_bytes + width * row_bytes // self.layout.segment_width - 1] == 0


def make_lanes(layout: Layout, planes: tuple[int, ...]) -> list[Lane]:
    """The lanes of one page whose samples are `planes`."""
    kind = RowLane if layout.compression == "none" and not layout.tiled else SegmentLane
    groups = [(plane,) for plane in planes] if layout.separate else [planes]
    return [kind(layout, group) for group in groups]
