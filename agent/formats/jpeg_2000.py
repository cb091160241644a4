"""Whether a JPEG 2000 codestream is whole, and cheap enough to decode, told from its headers alone.

A decoder allocates for every tile, precinct and code block that a header asks for, so that a kilobyte could claim
gigabytes; and it fills in silence what a cut stream lacks. Source: ITU-T T.800, annex A; T.814 changes none of this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import FormatError

_SOC, _SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_SIZ_BYTES, _SOT_BYTES = 41, 10
"""Stated lengths of these segments, for one component."""
_LARGEST_PRECINCT = 15
"""Exponent of a precinct's side where none is stated."""

_PIXELS_PER_TILE = 1 << 14
_PIXELS_PER_PRECINCT = 1 << 10
_PIXELS_PER_BLOCK = 1 << 8
_FREE = 64
"""So many tiles, precincts and code blocks cost little, however small the image is."""
_MAX_PARTS = 1 << 17
_MAX_PACKETS = 1 << 22


@dataclass(frozen=True)
class Size:
    """What the SIZ segment says of an image of one component; px."""

    height: int
    width: int
    tiles: int

    @property
    def pixels(self) -> int:
        """Of the whole image."""
        return self.height * self.width


def check_codestream(frame: bytes, height: int, width: int) -> None:
    """Raises FormatError: `malformed` when the stream is cut, is no codestream or holds another image than one plane
    of this size; `limits` when decoding it would cost far more than its pixels are worth.
    """
    size = _read_size(frame)
    if (size.height, size.width) != (height, width):
        raise _malformed(f"it holds {size.width} × {size.height} px, the header says {width} × {height} px")
    if size.tiles > _FREE + size.pixels // _PIXELS_PER_TILE:
        raise FormatError("limits", f"a JPEG 2000 frame of {size.tiles} tiles")
    at = _check_segments(frame, 4 + _SIZ_BYTES, _SOT, size)
    for _ in range(_MAX_PARTS):
        if frame[at : at + 2] == _EOC.to_bytes(2, "big"):
            if frame[at + 2 :].strip(b"\0"):
                raise _malformed("bytes behind its end")
            return
        at = _check_part(frame, at, size)
    raise FormatError("limits", f"a JPEG 2000 frame of more than {_MAX_PARTS} tile-parts")


def _read_size(frame: bytes) -> Size:
    if len(frame) < 4 + _SIZ_BYTES:
        raise _malformed("it ends in its header")
    start, siz, length, _, *sides, components, _, across, down = struct.unpack_from(">HHHH8IHBBB", frame)
    if (start, siz, length, components, across, down) != (_SOC, _SIZ, _SIZ_BYTES, 1, 1, 1):
        raise _malformed("not a codestream of one plane")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = sides
    if not (tile_left <= left < right and tile_top <= top < bottom and tile_width and tile_height):
        raise _malformed("its sizes contradict each other")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    return Size(bottom - top, right - left, tiles)


def _check_part(frame: bytes, at: int, size: Size) -> int:
    """Check the tile-part at `at`, and say where the next one begins."""
    if len(frame) < at + 2 + _SOT_BYTES:
        raise _malformed("it is cut in front of a tile")
    marker, length, _, whole = struct.unpack_from(">HHHI", frame, at)
    if (marker, length) != (_SOT, _SOT_BYTES):
        raise _malformed("a tile was expected")
    if whole == 0:  # the last one: up to the end of the stream
        whole = len(frame.rstrip(b"\0")) - 2 - at
    data_at = _check_segments(frame, at + 2 + _SOT_BYTES, _SOD, size) + 2
    if at + whole < data_at or at + whole + 2 > len(frame):
        raise _malformed("it is cut within a tile")
    return at + int(whole)


def _check_segments(frame: bytes, at: int, last: int, size: Size) -> int:
    """Look through marker segments up to the marker `last`; where that stands."""
    for place, marker, body in _segments(frame, at):
        if marker == last:
            return place
        if marker == _COD:
            _check_coding(body[0:1], body[5:], size, layers=int.from_bytes(body[2:4], "big"))
        elif marker == _COC:
            _check_coding(body[1:2], body[2:], size, layers=1)
    raise _malformed("it is cut in a header")


def _segments(frame: bytes, at: int) -> Iterator[tuple[int, int, bytes]]:
    while at + 4 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, at)
        yield at, marker, frame[at + 4 : at + 2 + length]
        if marker < 0xFF00 or length < 2:
            raise _malformed("a marker was expected")
        at += 2 + length


def _check_coding(style: bytes, parameters: bytes, size: Size, *, layers: int) -> None:
    """SPcod or SPcoc: levels, code block sides, style, transformation, and precincts where `style` says so."""
    if not style or len(parameters) < 5:
        raise _malformed("a coding style that is too short")
    levels, block_width, block_height = parameters[:3]
    stated = parameters[5:] if style[0] & 1 else bytes([_LARGEST_PRECINCT * 17]) * (levels + 1)
    if levels > 32 or max(block_width, block_height) > 8 or len(stated) <= levels:
        raise _malformed("a coding style out of range")
    precincts = sum(_precincts(size, levels - level, stated[level]) for level in range(levels + 1))
    blocks = size.pixels >> (block_width + block_height + 4)
    if precincts > _FREE + size.tiles * (levels + 1) + size.pixels // _PIXELS_PER_PRECINCT:
        raise FormatError("limits", f"a JPEG 2000 frame of {precincts} precincts")
    if blocks > _FREE + size.pixels // _PIXELS_PER_BLOCK:
        raise FormatError("limits", f"a JPEG 2000 frame of {blocks} code blocks")
    if layers * precincts > _MAX_PACKETS:
        raise FormatError("limits", f"a JPEG 2000 frame of {layers} layers in {precincts} precincts")


def _precincts(size: Size, reduced: int, exponents: int) -> int:
    """Precincts of one resolution level: the image halved `reduced` times, cut into 2^PPx × 2^PPy."""
    shift_x, shift_y = reduced + (exponents & 15), reduced + (exponents >> 4)
    return ((size.width >> shift_x) + 1) * ((size.height >> shift_y) + 1)


def _malformed(what: str) -> FormatError:
    return FormatError("malformed", f"a JPEG 2000 frame: {what}")
