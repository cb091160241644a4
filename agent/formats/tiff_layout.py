"""What the tags of one TIFF page mean, checked: shape, type, coding, and where its segments lie.

Decides nothing about pixels or about which page is which channel. `None` always means "not on disk yet".
Source: TIFF 6.0, sections 3, 8, 14 and 15; libtiff for deflate, zstd and deferred arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import FormatError
from agent.formats import Limits, Window
from agent.formats.tiff_directory import INTEGER_TYPES, Directory

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SAMPLE_FORMAT, IMAGE_DEPTH = 322, 323, 324, 325, 339, 32997

UNCOMPRESSED = 1
COMPRESSIONS = {UNCOMPRESSED: "none", 5: "lzw", 8: "deflate", 32946: "deflate", 50000: "zstd"}
MIN_IS_BLACK = 1
BYTES_PER_SAMPLE = 2
UNREACHABLE = 1 << 61
"""Stands for every offset that no file reaches, so that the arithmetic on offsets stays within int64."""


@dataclass(frozen=True)
class Layout:
    """Shape and coding of one page, and of its segments. Sizes in pixels unless the name says bytes."""

    order: Literal["<", ">"]
    height: int
    width: int
    samples: int
    separate: bool
    """Each sample has segments of its own (PlanarConfiguration 2); otherwise they alternate pixel by pixel."""
    compression: str
    predictor: int
    tiled: bool
    segment_height: int
    segment_width: int

    @property
    def across(self) -> int:
        """Segments side by side."""
        return -(-self.width // self.segment_width)

    @property
    def segments(self) -> int:
        """Segments that cover the image once."""
        return self.across * -(-self.height // self.segment_height)

    @property
    def lanes(self) -> int:
        """How often the segments cover the image: once per separate sample."""
        return self.samples if self.separate else 1

    @property
    def interleaved(self) -> int:
        """Samples per pixel within a segment."""
        return self.samples // self.lanes

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one row of a segment."""
        return self.segment_width * self.interleaved * BYTES_PER_SAMPLE

    @property
    def segment_bytes(self) -> int:
        """Decoded bytes of one whole segment."""
        return self.segment_height * self.row_bytes


@dataclass(frozen=True)
class Places:
    """Where the segments of one page lie: int64 [lanes × segments]; a zero is not written yet."""

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def final(self) -> bool:
        """Every offset and byte count is there."""
        return bool(self.offsets.all() and self.counts.all())


def read_layout(directory: Directory, limits: Limits) -> Layout:
    """Check one page's shape, type and coding. Raises FormatError with any reason but `not_an_image`."""
    tag = directory.integer
    height, width, samples = tag(HEIGHT), tag(WIDTH), tag(SAMPLES, 1)
    _check_type(directory, samples)
    if max(height, width) > limits.max_side_px:
        raise FormatError("limits", f"{width} × {height} px, the limit is {limits.max_side_px} px a side")
    if height * width * BYTES_PER_SAMPLE > limits.max_plane_bytes:
        raise FormatError("limits", f"a plane of {width} × {height} px, the limit is {limits.max_plane_bytes} bytes")
    compression, predictor = COMPRESSIONS.get(tag(COMPRESSION, UNCOMPRESSED)), tag(PREDICTOR, 1)
    if compression is None:
        raise FormatError("unsupported", f"TIFF compression {tag(COMPRESSION)}", directory.offset)
    # With no compression libtiff ignores a predictor and tifffile undoes it: no telling which is meant.
    if predictor not in ((1,) if compression == "none" else (1, 2)) or tag(FILL_ORDER, 1) != 1:
        raise FormatError("unsupported", f"predictor {predictor}, fill order {tag(FILL_ORDER, 1)}", directory.offset)
    planar = tag(PLANAR, 1)
    if planar not in (1, 2):
        raise FormatError("malformed", f"planar configuration {planar}", directory.offset)
    tiled = TILE_WIDTH in directory.entries or TILE_OFFSETS in directory.entries
    rows, columns = (
        (tag(TILE_HEIGHT), tag(TILE_WIDTH)) if tiled else (min(tag(ROWS_PER_STRIP, height), height), width)
    )
    if min(height, width, rows, columns) < 1:
        raise FormatError("malformed", f"{width} × {height} px in segments of {columns} × {rows}", directory.offset)
    separate = planar == 2 and samples > 1
    layout = Layout(
        directory.container.order, height, width, samples, separate, compression, predictor, tiled, rows, columns
    )
    if layout.lanes * layout.segments > limits.max_segments:
        count = layout.lanes * layout.segments
        raise FormatError("limits", f"{count} strips or tiles in a page, the limit is {limits.max_segments}")
    if tiled or compression != "none":  # an uncompressed strip is read row by row and never held as a whole
        _check_segments(layout, limits)
    return layout


def _check_segments(layout: Layout, limits: Limits) -> None:
    size, padded = layout.segment_bytes, layout.segments * layout.segment_bytes // layout.interleaved
    if size > limits.max_segment_bytes:
        raise FormatError("limits", f"a segment of {size} bytes, the limit is {limits.max_segment_bytes}")
    if layout.tiled and padded > limits.max_plane_bytes:
        raise FormatError("limits", f"tiles of {padded} bytes a plane, the limit is {limits.max_plane_bytes}")


def _check_type(directory: Directory, samples: int) -> None:
    photometric = directory.integer(PHOTOMETRIC, MIN_IS_BLACK)
    if photometric != MIN_IS_BLACK:
        raise FormatError("wrong_type", f"photometric interpretation {photometric}, not minimum-is-black")
    if samples not in (1, 2) or directory.integer(IMAGE_DEPTH, 1) != 1:
        raise FormatError("wrong_shape", f"{samples} samples per pixel or more than one slice in a page")
    bits, formats = directory.integers(BITS, 1), directory.integers(SAMPLE_FORMAT, 1)
    if set(bits) != {8 * BYTES_PER_SAMPLE} or set(formats) != {1}:
        raise FormatError("wrong_type", f"bits per sample {bits}, sample format {formats}, not uint16")


def read_places(window: Window, directory: Directory, layout: Layout, limits: Limits) -> Places | None:
    """Read the segment offsets and byte counts; None while they are not on disk. Raises FormatError."""
    tags = (TILE_OFFSETS, TILE_COUNTS) if layout.tiled else (STRIP_OFFSETS, STRIP_COUNTS)
    if tags[1] not in directory.entries and layout.compression == "none":
        counts: NDArray[np.int64] | None = np.full(layout.lanes * layout.segments, layout.segment_bytes)
    else:
        counts = _read_column(window, directory, tags[1], layout, limits)
    offsets = _read_column(window, directory, tags[0], layout, limits)
    return None if offsets is None or counts is None else Places(offsets, counts)


def _read_column(
    window: Window, directory: Directory, tag: int, layout: Layout, limits: Limits
) -> NDArray[np.int64] | None:
    entry, expected = directory.entries.get(tag), layout.lanes * layout.segments
    if entry is None:
        raise FormatError("malformed", f"the directory lacks tag {tag}", directory.offset)
    if entry.type == entry.count == 0:
        return None  # libtiff defers these arrays on request (TIFFDeferStrileArrayWriting)
    letter = INTEGER_TYPES.get(entry.type)
    if letter is None or entry.count != expected:
        raise FormatError(
            "malformed", f"tag {tag} has type {entry.type}, count {entry.count}, not {expected}", directory.offset
        )
    dtype = np.dtype(letter).newbyteorder(directory.container.order)
    length, field = expected * dtype.itemsize, entry.field
    if length > limits.max_header_bytes:
        raise FormatError("limits", f"tag {tag} has {length} bytes, the limit is {limits.max_header_bytes}")
    if length > len(field):
        place = directory.container.unsigned(field)
        if place + length > window.size:
            return None
        field = window.read(place, length)
    column = np.frombuffer(field, dtype, expected)
    return np.minimum(column.astype(np.uint64), np.uint64(UNREACHABLE)).astype(np.int64)
