"""Decides which rows (native) and frames (encapsulated) of PixelData are there, and decodes them.

It must not know the header's elements; frame 0 is plane 0 (CH2), frame 1 plane 1 (CH3).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agent.errors import FormatError
from agent.formats import Limits, Region, Window
from agent.formats.dicom_codecs import Codec
from agent.formats.dicom_header import ITEM, SEQUENCE_END, UNDEFINED, ByteOrder
from agent.formats.dicom_image import DicomImage

_MAX_FRAGMENTS = 65_536
"""Fragments of one frame; empty ones would otherwise cost time without end."""


class NativePixels:
    """Uncompressed rows, frame after frame: a row is ready when its last byte is."""

    def __init__(self, image: DicomImage, value_at: int, order: ByteOrder) -> None:
        self._image = image
        self._value_at = value_at
        self._dtype = np.dtype("<u2" if order == "little" else ">u2")
        self._row_bytes = image.width * 2
        self._rows_done = 0

    @property
    def complete(self) -> bool:
        """Every row of every frame has been yielded."""
        return self._rows_done == self._image.height * self._image.frames

    def advance(self, window: Window, written: int, *, settled: bool) -> Iterator[Region]:
        """Yield the new rows of each frame as one region (read-only where no byte had to be swapped).

        Trailing zeros count as rows only once the file has settled.
        """
        end = window.size if settled else written
        height = self._image.height
        ready = min((end - self._value_at) // self._row_bytes, height * self._image.frames)
        while self._rows_done < ready:
            first = self._rows_done
            plane = first // height
            last = min(ready, (plane + 1) * height)
            raw = window.read(self._value_at + first * self._row_bytes, (last - first) * self._row_bytes)
            pixels = np.frombuffer(raw, self._dtype).reshape(last - first, self._image.width)
            pixels = pixels.astype(np.uint16, copy=False)
            _check_unused_bits(pixels, self._image.bits_stored)
            self._rows_done = last
            yield Region(plane, first - plane * height, 0, pixels)


class EncapsulatedPixels:
    """Compressed frames in fragments (PS3.5, annex A.4): a frame is ready when its last fragment is.

    One frame takes all fragments up to the sequence delimiter. Two frames are told apart by the Basic Offset
    Table; without it each is one fragment, which the Extended Offset Table, where there is one, must confirm.
    """

    def __init__(self, image: DicomImage, value_at: int, codec: Codec, limits: Limits) -> None:
        self._image = image
        self._codec = codec
        self._limits = limits
        self._at = value_at
        self._first_fragment_at: int | None = None
        self._starts: tuple[int, ...] | None = None
        """Basic Offset Table: where each frame's first item lies, counted from the first fragment's item."""
        self._fragments: list[tuple[int, int]] = []
        """(offset, length) of the fragments of the frame that is being gathered."""
        self._gathered_bytes = 0
        self._frame = 0

    @property
    def complete(self) -> bool:
        """Every frame has been yielded."""
        return self._frame == self._image.frames

    def advance(self, window: Window, written: int, *, settled: bool) -> Iterator[Region]:
        """Yield each frame that became whole. Zeros in front of the delimiter never count: `settled` is unused,
        since a delimiter follows and no coded frame consists of trailing zeros."""
        while not self.complete and self._gather(window, written):
            data = b"".join(window.read(at, length) for at, length in self._fragments)
            pixels = self._codec(data, self._image.height, self._image.width)
            _check_unused_bits(pixels, self._image.bits_stored)
            plane = self._frame
            self._frame += 1
            self._fragments, self._gathered_bytes = [], 0
            yield Region(plane, 0, 0, pixels)

    def _gather(self, window: Window, written: int) -> bool:
        """Walk items until the current frame is whole (True) or bytes are missing (False)."""
        while not self._at_frame_end():
            if self._at + 4 > written:
                return False
            raw = window.read(self._at, 4)
            tag = int.from_bytes(raw[:2], "little") << 16 | int.from_bytes(raw[2:], "little")
            if tag == SEQUENCE_END:  # its length, four zeros, may be the last bytes of the file
                return self._end_of_sequence()
            if self._at + 8 > written:
                return False
            length = int.from_bytes(window.read(self._at + 4, 4), "little")
            if tag != ITEM or length == UNDEFINED:
                raise FormatError("malformed", "a fragment was expected", self._at)
            self._check_fragment(length)
            if self._at + 8 + length > written:
                return False
            self._take_item(window, length)
        return True

    def _take_item(self, window: Window, length: int) -> None:
        value_at = self._at + 8
        if self._first_fragment_at is None:
            self._starts = self._read_table(window.read(value_at, length))
            self._first_fragment_at = value_at + length
        else:
            self._fragments.append((value_at, length))
            self._gathered_bytes += length
        self._at = value_at + length

    def _at_frame_end(self) -> bool:
        """Does the current frame end here, as far as one can know without the sequence delimiter?"""
        if not self._fragments or self._image.frames == 1 or self._first_fragment_at is None:
            return False
        if self._starts is None:
            self._check_confirmed()
            return True
        if self._frame + 1 == self._image.frames:
            return False
        place = self._at - self._first_fragment_at
        if place > self._starts[self._frame + 1]:
            raise FormatError("malformed", "the offset table points into a fragment", self._at)
        return place == self._starts[self._frame + 1]

    def _check_confirmed(self) -> None:
        assert self._first_fragment_at is not None
        place = self._fragments[0][0] - 8 - self._first_fragment_at
        if self._image.offsets is not None and self._image.offsets[self._frame] != place:
            raise FormatError("malformed", "the extended offset table misses a frame's fragment", self._at)

    def _end_of_sequence(self) -> bool:
        if not self._fragments or self._frame + 1 < self._image.frames:
            raise FormatError("malformed", f"pixel data ends in front of frame {self._frame + 1}", self._at)
        return True

    def _check_fragment(self, length: int) -> None:
        size = self._gathered_bytes + length
        if size > self._limits.max_segment_bytes or len(self._fragments) >= _MAX_FRAGMENTS:
            detail = f"compressed frame of {size} bytes or more in {len(self._fragments) + 1} fragments"
            raise FormatError("limits", detail, self._at)

    def _read_table(self, raw: bytes) -> tuple[int, ...] | None:
        """The Basic Offset Table; None when it is empty, or when one frame makes it needless."""
        if not raw or self._image.frames == 1:
            return None
        starts = tuple(int(start) for start in np.frombuffer(raw[: len(raw) // 4 * 4], "<u4"))
        if len(raw) != 4 * self._image.frames or starts[0] != 0:
            raise FormatError("malformed", f"offset table of {len(raw)} bytes", self._at)
        return starts


def _check_unused_bits(pixels: NDArray[np.uint16], bits_stored: int) -> None:
    """Bits above BitsStored once held overlays (retired in 2004). Masking them away could as well hide a header
    that states too few bits, so a count beyond the stated range is a contradiction."""
    if bits_stored < 16 and int(pixels.max()) >> bits_stored:
        raise FormatError("malformed", f"a count of {int(pixels.max())} in {bits_stored} stored bits")
