"""Decides which lossless transfer syntaxes are read and how one encoded frame becomes pixels.

It must not know where frames lie in a file. Lossy syntaxes are left out: they change counts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from agent.errors import FormatError
from agent.formats.jpeg_2000 import check_codestream

Codec = Callable[[bytes, int, int], NDArray[np.uint16]]
"""(one frame's bytes, height, width) → uint16 [height, width]; raises FormatError `malformed`."""

_END_OF_IMAGE = b"\xff\xd9"
_TAILS = (b"\0" * 8, b"\xfe" * 8)
"""Two pieces of coded data that differ from their first bit on, and hold a code and its value at least."""
_MOST_EXPANSION = 64
"""PackBits: two bytes become 128 at most."""
_NO_FRAME_HEADER = frozenset((0xC4, 0xC8, 0xCC))
"""Markers among SOF0 … SOF15 that define tables instead (ITU-T T.81, table B.1)."""


def decode_rle(frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """RLE Lossless (PS3.5, annex G): the high bytes of all pixels, then the low bytes, each as PackBits."""
    if len(frame) < 64:
        raise FormatError("malformed", f"RLE frame of {len(frame)} bytes")
    count, high_at, low_at = struct.unpack_from("<3I", frame)
    if count != 2 or high_at != 64 or not high_at <= low_at <= len(frame):
        raise FormatError("malformed", f"RLE header with {count} segments at {high_at}, {low_at}")
    planes_HW2 = np.empty((height * width, 2), np.uint8)
    for column, segment in enumerate((frame[low_at:], frame[high_at:low_at])):
        planes_HW2[:, column] = _unpack_bits(segment, height * width)
    return planes_HW2.view("<u2").reshape(height, width).astype(np.uint16, copy=False)


def _unpack_bits(segment: bytes, length: int) -> NDArray[np.uint8]:
    if len(segment) * _MOST_EXPANSION < length:
        raise FormatError("malformed", f"RLE segment of {len(segment)} bytes for {length} pixels")
    try:
        found = imagecodecs.packbits_decode(segment, out=bytearray(length))
    except RuntimeError as error:
        raise FormatError("malformed", f"RLE segment: {error}") from error
    if len(found) != length:
        raise FormatError("malformed", f"RLE segment of {len(found)} bytes, expected {length}")
    return np.frombuffer(found, np.uint8)


def decode_jpeg_lossless(frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """JPEG process 14 (ITU-T T.81), any predictor."""
    # Every decoder at hand fills in silence what a cut stream lacks; of a whole one no pixel hangs on bytes behind.
    _check_end(frame)
    stream = frame.rstrip(b"\0")[: -len(_END_OF_IMAGE)]
    either, other = (
        _decode_jpeg(imagecodecs.jpegsof3_decode, stream + tail + _END_OF_IMAGE, height, width) for tail in _TAILS
    )
    if not np.array_equal(either, other):
        raise FormatError("malformed", "a compressed frame that is cut in front of its end marker")
    return either


def decode_jpeg_ls(frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """JPEG-LS (ITU-T T.87), lossless."""
    return _decode_jpeg(imagecodecs.jpegls_decode, frame, height, width)


def decode_jpeg_2000(frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """JPEG 2000 (ITU-T T.800) and HTJ2K (T.814), reversible, as a bare codestream."""
    check_codestream(frame, height, width)
    return _decode(imagecodecs.jpeg2k_decode, frame, height, width)


def _decode_jpeg(decode: Callable[..., object], frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    _check_size(_jpeg_size(frame), height, width)
    return _decode(decode, frame, height, width)


def _decode(decode: Callable[..., object], frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    _check_end(frame)
    pixels = np.empty((height, width), np.uint16)
    try:
        decode(frame, out=pixels)
    except (RuntimeError, ValueError) as error:
        raise FormatError("malformed", f"compressed frame: {error}") from error
    return pixels


def _check_end(frame: bytes) -> None:
    # Without its end marker a stream is cut short, and the JPEG-LS decoder would read beyond it.
    if not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise FormatError("malformed", "a compressed frame without its end marker")


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """(height, width, components) of the first frame header, read before anything is allocated for it."""
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xF7 or (marker & 0xF0 == 0xC0 and marker not in _NO_FRAME_HEADER):
            height, width, components = struct.unpack_from(">HHB", frame, at + 5)
            return height, width, components
        at += 2 + length
    raise FormatError("malformed", "a JPEG frame without a frame header")


def _check_size(found: tuple[int, int, int], height: int, width: int) -> None:
    if found != (height, width, 1):
        raise FormatError("malformed", f"compressed frame states {found}, the header {(height, width, 1)}")


def _copy(frame: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """Encapsulated Uncompressed Explicit VR Little Endian: the native bytes in a fragment."""
    if len(frame) != height * width * 2:
        raise FormatError("malformed", f"frame of {len(frame)} bytes, expected {height * width * 2}")
    return np.frombuffer(frame, "<u2").reshape(height, width).astype(np.uint16, copy=False)


CODECS: dict[str, Codec] = {
    "1.2.840.10008.1.2.1.98": _copy,
    "1.2.840.10008.1.2.5": decode_rle,
    "1.2.840.10008.1.2.4.57": decode_jpeg_lossless,
    "1.2.840.10008.1.2.4.70": decode_jpeg_lossless,
    "1.2.840.10008.1.2.4.80": decode_jpeg_ls,
    "1.2.840.10008.1.2.4.90": decode_jpeg_2000,
    "1.2.840.10008.1.2.4.201": decode_jpeg_2000,
    "1.2.840.10008.1.2.4.202": decode_jpeg_2000,
}
"""Transfer syntax UID (PS3.6, annex A) → decoder."""
