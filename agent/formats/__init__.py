"""What is complete in the bytes of a growing file so far.

A parser holds no file, socket or clock: it is shown a `Window` again and again while the file grows and yields
each event exactly once, as soon as its bytes are there. Returning without `Complete` means "need more".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Limits:
    """What a parser accepts before it refuses a file with reason `limits`."""

    max_side_px: int = 65_535
    """Largest height or width of an image, pixels."""
    max_plane_bytes: int = 1 << 31
    """Largest decoded size of one plane, bytes."""
    max_segment_bytes: int = 1 << 28
    """Largest decoded size of one TIFF strip, TIFF tile or DICOM frame, bytes."""
    max_header_bytes: int = 1 << 24
    """Largest DICOM header or TIFF tag value, bytes."""
    max_tags: int = 4096
    """Most tags in one IFD, most elements in a DICOM header."""
    max_pages: int = 64
    """Most IFDs in one TIFF."""
    max_segments: int = 1 << 17
    """Most strips or tiles in one page of a TIFF."""


class Window(Protocol):
    """The bytes of one file that are on disk so far."""

    @property
    def size(self) -> int:
        """Number of bytes that can be read now."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; `offset + length <= size` is the caller's duty."""
        ...


@dataclass(frozen=True)
class Header:
    """The image's shape is known; yielded once, before any region.

    `planes` is 1 (one channel in this file) or 2 (both channels in it). `tags` holds the identifying DICOM tags
    that a naming rule may fall back on, by keyword (empty for TIFF).
    """

    height: int
    width: int
    planes: int
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Region:
    """Decoded pixels, uint16 [h, w], whose upper left corner is (y, x) of plane `plane`. Regions never overlap
    and together cover every plane exactly once."""

    plane: int
    y: int
    x: int
    pixels: NDArray[np.uint16]


@dataclass(frozen=True)
class Complete:
    """Every segment has been seen; the last event of a file."""


Event = Header | Region | Complete


class Parser(Protocol):
    """One growing file of one format."""

    def advance(self, window: Window, *, settled: bool) -> Iterator[Event]:
        """Yield what became complete since the last call.

        The iterator may be abandoned at any point and `advance` called again later: state moves before each yield.
        `settled` says that the file has not changed for a while: only then may trailing zeros, which a
        preallocated file shows before its pixels arrive, be taken for pixels.
        Raises FormatError for a file that more bytes cannot mend.
        """
        ...
