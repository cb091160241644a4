"""Small files that claim or expand to huge ones, with the refusal that each must meet; `python -m tests.fuzz.bombs`.

Each is a few hundred bytes to a few hundred kilobytes. The limits are the daemon's own defaults, except where a
stream truly expands: there they are lower, so that a test need not fill the machine to see them hold.
"""

from __future__ import annotations

import struct
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import imagecodecs
import numpy as np
from pydicom.uid import UID, JPEG2000Lossless, JPEGLossless, JPEGLSLossless, RLELossless

from agent.errors import FormatError
from agent.formats import Limits, Region
from agent.formats.detect import open_parser
from tests.agent.formats import dicom_cases
from tests.agent.formats.tiff_cases import Bytes, poke, write_tiff
from tests.fuzz import cage, seeds
from tests.fuzz.dicom_mutation import element

DEFAULT = Limits()
SMALL = replace(DEFAULT, max_segment_bytes=1 << 22, max_plane_bytes=1 << 24)
MOST_MIB = 64
"""Largest growth of the resident peak for any of them."""
MOST_CPU_S = 2.0
"""Longest time for any of them."""


class Bomb(NamedTuple):
    """A file, the limits that it meets, and the reason that must be given."""

    name: str
    contents: bytes
    reason: str
    limits: Limits = DEFAULT


def _tiff_of(stream: bytes, compression: int, rows: int = 64) -> bytes:
    """One strip of 19 px a row that is this stream."""
    contents = write_tiff(seeds.phantom(rows)[:1], compression="zlib", rowsperstrip=rows)
    contents = poke(contents, 259, value=compression)
    return poke(poke(contents, 273, value=len(contents)), 279, value=len(stream)) + stream


def _huge_tiff(side_px: int, tile_px: int, *, counts: bool) -> bytes:
    contents = write_tiff(seeds.phantom()[:1], tile=(16, 16))
    for tag, value in ((256, side_px), (257, side_px), (322, tile_px), (323, tile_px)):
        contents = poke(contents, tag, value=value)
    return contents if counts else poke(contents, 325, code=40000)


def _framed(syntax: UID, frame: bytes, side_px: int) -> bytes:
    """A coded frame behind a header that promises a square of this side."""
    image = np.zeros((1, side_px, side_px), np.uint16)
    return dicom_cases.encapsulated(image, [frame], syntax, "basic", 1).data


def codestream(
    height: int, width: int, *, tile_px: int = 0, block: int = 4, precinct: int = 15, layers: int = 1
) -> bytes:
    """A JPEG 2000 codestream that is all header: what its decoder would allocate for.

    `block` and `precinct` are exponents of two, the former less two, as they stand in the header.
    """
    tile_width, tile_height = (tile_px, tile_px) if tile_px else (width, height)
    sizes = struct.pack(">H8IHBBB", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, 1, 15, 1, 1)
    style = struct.pack(">BBHBBBBBB", precinct < 15, 0, layers, 0, 5, block, block, 0, 1)
    style += bytes([precinct * 17]) * 6 * (precinct < 15)
    main = b"\xff\x4f\xff\x51" + struct.pack(">H", 2 + len(sizes)) + sizes
    main += b"\xff\x52" + struct.pack(">H", 2 + len(style)) + style + b"\xff\x5c\x00\x13\x40" + bytes([0x80]) * 16
    part = struct.pack(">HHHIBBH", 0xFF90, 10, 0, 14 + 64, 0, 1, 0xFF93) + bytes(64)
    return main + part + b"\xff\xd9"


def _dicom_with(*pieces: bytes) -> bytes:
    """The imager's own file with more elements in front of its rows."""
    contents = seeds.dicoms()[0]
    at = contents.index(b"\x28\x00\x02\x00US")
    return contents[:at] + b"".join(pieces) + contents[at:]


def _nested(depth: int) -> bytes:
    inside = b""
    for _ in range(depth):
        inside = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inside
    return inside


def bombs() -> Iterator[Bomb]:
    """One after the other, each made when it is its turn."""
    yield Bomb("tiff: 32767 x 32767 px in tiles of 1 px", _huge_tiff(32767, 1, counts=False), "limits")
    yield Bomb("tiff: 65535 x 65535 px", _huge_tiff(65535, 16, counts=True), "limits")
    zeros = bytes(1 << 26)
    yield Bomb("tiff: deflate, 64 MiB in 64 KiB", _tiff_of(zlib.compress(zeros, 9), 8), "limits", SMALL)
    yield Bomb(
        "tiff: lzw, 8 MiB in 8 KiB", _tiff_of(bytes(imagecodecs.lzw_encode(zeros[: 1 << 23])), 5), "limits", SMALL
    )
    yield Bomb("tiff: zstd, 64 MiB in 4 KiB", _tiff_of(bytes(imagecodecs.zstd_encode(zeros)), 50000), "limits", SMALL)
    yield Bomb("tiff: a directory of 65535 tags", b"II*\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 4000, "limits")
    yield Bomb("tiff: a directory that follows itself", _loop(), "malformed")
    yield Bomb("dicom: 65535 x 65535 px", _framed(RLELossless, bytes(64), 65535), "limits")
    yield Bomb("dicom: RLE, 11000 x 11000 px in 68 bytes", _framed(RLELossless, _rle(), 11000), "malformed")
    for syntax in (JPEGLossless, JPEGLSLossless, JPEG2000Lossless):
        frame = seeds.encoded(seeds.phantom()[0], syntax)
        yield Bomb(f"dicom: 9000 x 9000 px, {syntax.name[:9]} of 19 x 17", _framed(syntax, frame, 9000), "malformed")
    for name, (side_px, claim) in CLAIMS.items():
        stream = codestream(side_px, side_px, **claim)
        yield Bomb(f"dicom: JPEG 2000 in {name}", _framed(JPEG2000Lossless, stream, side_px), "limits")
    private = b"\x09\x00\x10\x10"
    yield Bomb("dicom: an element of 4 GiB", _dicom_with(element(private, b"OB", b"", 0xFFFFFFF0)), "limits")
    yield Bomb("dicom: sequences nested 900 deep", _dicom_with(_nested(900)), "limits")
    yield Bomb("dicom: 20,000 elements", _dicom_with(element(private, b"UN", b"") * 20_000), "limits")
    yield Bomb("dicom: 200,000 empty fragments", _fragments(), "limits")
    yield Bomb("dicom: a text in punycode", _punycode(), "unsupported")


CLAIMS: dict[str, tuple[int, dict[str, int]]] = {
    "tiles of 1 px": (255, {"tile_px": 1}),
    "code blocks of 4 px": (8000, {"block": 0}),
    "precincts of 2 px": (4000, {"precinct": 1}),
    "65535 layers": (4000, {"precinct": 6, "layers": 65535}),
}
"""What a codestream of about a hundred bytes may ask its decoder to allocate: side in px, and how."""


def _loop() -> bytes:
    contents = bytearray(write_tiff(seeds.phantom()[:1]))
    at = struct.unpack_from("<I", contents, 4)[0]
    entries = struct.unpack_from("<H", contents, at)[0]
    struct.pack_into("<I", contents, at + 2 + 12 * entries, at)
    return bytes(contents)


def _rle() -> bytes:
    """Two segments of one run each."""
    return struct.pack("<3I", 2, 64, 66).ljust(64, b"\0") + b"\x81\0\x81\0"


def _fragments() -> bytes:
    contents = seeds.encapsulated(JPEGLSLossless, 1)
    at = contents.rindex(b"\xfe\xff\x00\xe0")
    return contents[:at] + b"\xfe\xff\x00\xe0\0\0\0\0" * 200_000 + contents[at:]


def _punycode() -> bytes:
    contents = seeds.dicoms()[0].replace(element(b"\x08\x00\x05\x00", b"CS", b"ISO_IR 192"), b"")
    at = contents.index(b"\x08\x00\x08\x00")
    return contents[:at] + element(b"\x08\x00\x05\x00", b"CS", b"punycode") + contents[at:]


def reason(bomb: Bomb) -> str:
    """What the daemon makes of a file that it finds whole."""
    pixels, window = 0, Bytes(bomb.contents)
    try:
        parser = open_parser(window, bomb.limits, None)
        for event in parser.advance(window, settled=True) if parser else ():
            pixels += event.pixels.size if isinstance(event, Region) else 0
    except FormatError as refusal:
        return refusal.reason
    return f"{pixels} pixels"


def main() -> int:
    """A line for each: what it is, its size, its refusal, what it cost."""
    failures = 0
    for bomb in bombs():
        cage.forget_peak()
        before, began = cage.resident_bytes(), time.process_time()
        found = reason(bomb)
        took_s, grew = time.process_time() - began, (cage.peak_bytes() - before) / (1 << 20)
        good = found == bomb.reason and took_s <= MOST_CPU_S and grew <= MOST_MIB
        failures += not good
        cost = f"{len(bomb.contents) / 1024:8.1f} KiB  {found:12} {took_s * 1000:7.1f} ms  {max(grew, 0):6.1f} MiB"
        print(f"{'ok  ' if good else 'FAIL'} {bomb.name:46} {cost}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
