"""Promises of the TIFF parser on files that more bytes cannot mend: one reason each, in bounded time and memory."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FormatError
from agent.formats import Complete, Limits, Region
from agent.formats.tiff import TiffParser
from tests.agent.formats.tiff_cases import (
    CODINGS,
    LAYOUTS,
    SEGMENTS,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    Bytes,
    Order,
    columns,
    directories,
    make_image,
    oracle,
    parse,
    poke,
    write_tiff,
)

WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, ROWS_PER_STRIP = 256, 257, 259, 262, 278
PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 284, 317, 322, 323
MANY = 1 << 30


def tiff_of(*pages: np.ndarray[Any, Any], **options: Any) -> bytes:
    """Pages of any type, by tifffile."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as tiff:
        for page in pages:
            tiff.write(page, metadata=None, **{"photometric": "minisblack", **options})
    return stream.getvalue()


def linked(contents: bytes, page: int, target: int) -> bytes:
    """With the pointer behind a directory replaced."""
    changed = bytearray(contents)
    struct.pack_into("<I", changed, directories(contents)[page][1], target)
    return bytes(changed)


def coded(stream: bytes | bytearray, coding: str = "deflate") -> bytes:
    """One page of 17 × 19 px whose only strip is `stream`."""
    contents = write_tiff(make_image(1), rowsperstrip=17, **CODINGS[coding])
    contents = poke(contents, STRIP_COUNTS, value=len(stream), type=4)
    return poke(contents, STRIP_OFFSETS, value=len(contents)) + stream


PLAIN = write_tiff(make_image(), rowsperstrip=17)
STRIPS = write_tiff(make_image(), rowsperstrip=4)
TILES = write_tiff(make_image(), tile=(16, 16))
ZSTD = write_tiff(make_image(), rowsperstrip=17, compression="zstd")
HIGH = make_image(1)[0]

REFUSED: dict[str, tuple[str, bytes]] = {
    "not a TIFF": ("not_an_image", b"%PDF-1.7\n" + bytes(100)),
    "BigTIFF with other offsets": ("not_an_image", b"II+\0\x04\0\0\0" + bytes(100)),
    "one byte of another format": ("not_an_image", b"\x89"),
    "8 bit": ("wrong_type", tiff_of(HIGH.astype(np.uint8))),
    "32 bit": ("wrong_type", tiff_of(HIGH.astype(np.uint32))),
    "signed": ("wrong_type", tiff_of(HIGH.view(np.int16))),
    "float": ("wrong_type", tiff_of(HIGH.astype(np.float32))),
    "half float": ("wrong_type", tiff_of(np.zeros((17, 19), np.float16))),
    "RGB": ("wrong_type", tiff_of(np.zeros((17, 19, 3), np.uint8), photometric="rgb")),
    "RGB, 16 bit": ("wrong_type", tiff_of(np.zeros((17, 19, 3), np.uint16), photometric="rgb")),
    "white is zero": ("wrong_type", poke(PLAIN, PHOTOMETRIC, value=0)),
    "second page of another type": ("wrong_type", tiff_of(HIGH, HIGH.view(np.int16))),
    "three samples": ("wrong_shape", tiff_of(np.zeros((17, 19, 3), np.uint16), planarconfig="contig")),
    "pages of different shape": ("wrong_shape", tiff_of(HIGH, HIGH[:-1])),
    "pages of different samples": ("wrong_shape", tiff_of(HIGH, np.stack([HIGH, HIGH], -1), planarconfig="contig")),
    "three pages": ("wrong_shape", write_tiff(make_image(3))),
    "two pages of two samples": (
        "wrong_shape",
        tiff_of(*[np.stack([HIGH, HIGH], -1)] * 2, planarconfig="contig"),
    ),
    "other page behind": ("wrong_shape", tiff_of(HIGH, HIGH, np.zeros((4, 4), np.uint8))),
    "packbits": ("unsupported", tiff_of(HIGH, compression="packbits")),
    "JPEG 2000": ("unsupported", tiff_of(HIGH, compression="jpeg2000")),
    "unknown compression": ("unsupported", poke(PLAIN, COMPRESSION, value=60000)),
    "floating-point predictor": (
        "unsupported",
        poke(write_tiff(HIGH[None], **CODINGS["lzw, predictor"]), PREDICTOR, value=3),
    ),
    "predictor without compression": (
        "unsupported",
        poke(write_tiff(HIGH[None], **CODINGS["lzw, predictor"]), COMPRESSION, value=1),
    ),
    "no width": ("malformed", poke(PLAIN, WIDTH, code=65000)),
    "no height": ("malformed", poke(PLAIN, HEIGHT, value=0)),
    "no rows in a strip": ("malformed", poke(PLAIN, ROWS_PER_STRIP, value=0)),
    "no columns in a tile": ("malformed", poke(TILES, TILE_WIDTH, value=0)),
    "no offsets": ("malformed", poke(PLAIN, STRIP_OFFSETS, code=65000)),
    "no byte counts with compression": ("malformed", poke(ZSTD, STRIP_COUNTS, code=65000)),
    "width as a string": ("malformed", poke(PLAIN, WIDTH, type=2)),
    "width of many values": ("malformed", poke(PLAIN, WIDTH, count=MANY)),
    "offsets as floats": ("malformed", poke(PLAIN, STRIP_OFFSETS, type=11)),
    "too few offsets": ("malformed", poke(STRIPS, STRIP_OFFSETS, count=4)),
    "absurdly many offsets": ("malformed", poke(STRIPS, STRIP_OFFSETS, count=MANY)),
    "a strip shorter than its rows": ("malformed", poke(PLAIN, STRIP_COUNTS, value=645)),
    "a tile shorter than its rows": ("malformed", poke(TILES, TILE_HEIGHT, value=32)),
    "planar configuration": ("malformed", poke(write_tiff(make_image(), "interleaved"), PLANAR, value=7)),
    "loop of one page": ("malformed", linked(PLAIN, 1, directories(PLAIN)[1][0])),
    "loop of two pages": ("malformed", linked(PLAIN, 1, directories(PLAIN)[0][0])),
    "directory in the header": ("malformed", linked(PLAIN, 0, 2)),
    "broken deflate": ("malformed", coded(zlib.compress(HIGH.tobytes())[:-9] + b"broken!!!")),
    "broken zstd": ("malformed", coded(b"no zstandard", "zstd")),
    "broken lzw": ("malformed", coded(b"\0no lzw at all", "lzw")),
    "short deflate": ("malformed", coded(zlib.compress(HIGH.tobytes()[:-2]))),
    "short zstd": ("malformed", coded(imagecodecs.zstd_encode(HIGH.tobytes()[:-2]), "zstd")),
    "short lzw": ("malformed", coded(imagecodecs.lzw_encode(HIGH.tobytes()[:-2]), "lzw")),
    "too wide": ("limits", poke(PLAIN, WIDTH, value=65536, type=4)),
    "too high": ("limits", poke(PLAIN, HEIGHT, value=0xFFFFFFFF, type=4)),
    "plane too large": ("limits", poke(poke(PLAIN, WIDTH, value=65535, type=4), HEIGHT, value=65535, type=4)),
    "tile too large": ("limits", poke(TILES, TILE_WIDTH, value=1 << 27, type=4)),
    "tiles that are mostly padding": (
        "limits",
        poke(poke(TILES, TILE_HEIGHT, value=1 << 22, type=4), WIDTH, value=65535, type=4),
    ),
    "too many tags": ("limits", b"II*\0\x08\0\0\0\xff\xff" + bytes(100)),
    "absurdly many tags": ("limits", b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 1 << 63) + bytes(100)),
    "deflate bomb": ("limits", coded(zlib.compress(b"\x07" * (1 << 22), 9))),
    "zstd bomb": ("limits", coded(imagecodecs.zstd_encode(b"\x07" * (1 << 22)), "zstd")),
    "lzw bomb": ("limits", coded(imagecodecs.lzw_encode(b"\x07" * (1 << 13)), "lzw")),
    "compressed segment larger than any coder makes it": ("limits", poke(ZSTD, STRIP_COUNTS, value=1 << 20, type=4)),
}


@pytest.mark.parametrize(("reason", "contents"), REFUSED.values(), ids=REFUSED)
def test_refused_with_its_reason(reason: str, contents: bytes) -> None:
    """A file that cannot be read is refused with the word that others count, at every call and quickly."""
    parser = TiffParser(planes=2)
    for settled in (False, True):
        began = time.perf_counter()
        with pytest.raises(FormatError) as caught:
            list(parser.advance(Bytes(contents), settled=settled))
        assert caught.value.reason == reason
        assert time.perf_counter() - began < 1


def test_more_planes_than_the_name_promises() -> None:
    """A file that must hold one channel is refused when it holds two, as pages or as samples."""
    for layout in LAYOUTS:
        with pytest.raises(FormatError, match="wrong_shape"):
            parse(write_tiff(make_image(), layout), planes=1)


def test_good_pixels_come_before_a_broken_segment() -> None:
    """Segments in front of a broken one are yielded; the file is refused when the broken one is reached."""
    contents = bytearray(write_tiff(make_image(1), rowsperstrip=4, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        third = tiff.pages.first.dataoffsets[2]
    contents[third : third + 8] = b"\xff" * 8
    found = []
    with pytest.raises(FormatError, match="malformed"):
        for event in TiffParser(planes=1).advance(Bytes(bytes(contents)), settled=False):
            found.append(event)  # noqa: PERF402 - the loop ends with the error
    assert [event.y for event in found if isinstance(event, Region)] == [0, 4]


@pytest.mark.parametrize(
    ("limits", "contents"),
    [
        (Limits(max_side_px=18), PLAIN),
        (Limits(max_plane_bytes=645), PLAIN),
        (Limits(max_segment_bytes=511), TILES),
        (Limits(max_segment_bytes=645), ZSTD),
        (Limits(max_header_bytes=15), STRIPS),
        (Limits(max_tags=5), PLAIN),
        (Limits(max_pages=1), PLAIN),
    ],
    ids=lambda value: next(iter(value.__dict__)) if isinstance(value, Limits) else "",
)
def test_each_limit(limits: Limits, contents: bytes) -> None:
    """Every configured limit refuses what lies beyond it, and only that."""
    with pytest.raises(FormatError) as caught:
        list(TiffParser(limits, planes=2).advance(Bytes(contents), settled=True))
    assert caught.value.reason == "limits"
    exact = Limits(19, 2 * 512 * 4, 646, 20, 64, 2)
    assert Complete() in TiffParser(exact, planes=2).advance(Bytes(contents), settled=True)


@pytest.mark.parametrize("coding", ["deflate", "zstd", "lzw"])
def test_bombs_take_no_memory(coding: str) -> None:
    """A stream that would expand to 64 MiB is refused without ever holding more than its segment."""
    encode: Callable[[bytes], bytes] = getattr(imagecodecs, f"{coding}_encode")
    contents = coded(encode(b"\x07" * (1 << 26))[:5000], coding)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            parse(contents, planes=1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("target", [1 << 20, 0xFFFFFFFF])
def test_places_beyond_the_end_are_waited_for(target: int) -> None:
    """A directory, a table or a segment beyond the end of the file may still come: never an error."""
    header = b"II*\0" + struct.pack("<I", target)
    assert not parse(header + bytes(100), settled=True)
    for contents in (
        linked(PLAIN, 0, target),
        poke(STRIPS, STRIP_OFFSETS, value=target),
        poke(PLAIN, STRIP_OFFSETS, value=target),
    ):
        assert Complete() not in parse(contents, planes=2, settled=True)


def test_offsets_beyond_64_bits_of_arithmetic_are_waited_for() -> None:
    """The largest offsets that BigTIFF can write are no error and do not overflow."""
    contents = bytearray(write_tiff(make_image(1), big=True, rowsperstrip=4))
    column = columns(bytes(contents), STRIP_OFFSETS)[0]
    contents[column : column + 40] = b"\xff" * 40
    assert len(parse(bytes(contents), planes=1)) == 1
    assert not parse(bytes(contents), settled=True)


CASES: list[tuple[str, str, str, Order, bool]] = [
    ("pages", "one strip", "uncompressed", "<", False),
    ("pages", "strips of 4 rows", "lzw, predictor", ">", False),
    ("interleaved", "tiles", "deflate, predictor", "<", True),
    ("separate", "strips of 4 rows", "zstd", ">", True),
    ("separate", "tiles", "uncompressed", "<", False),
]
MUTABLE = [
    write_tiff(make_image(), layout, order=order, big=big, **SEGMENTS[segments], **CODINGS[coding])
    for layout, segments, coding, order, big in CASES
]


@settings(deadline=None, max_examples=400)
@given(
    case=st.integers(0, len(CASES) - 1),
    seed=st.integers(0, 1 << 32),
    planes=st.sampled_from([None, 1, 2]),
    settled=st.booleans(),
)
def test_mutations(case: int, seed: int, planes: int | None, settled: bool) -> None:
    """A file with random bytes changed, removed or inserted gives events or a FormatError, quickly."""
    chance = random.Random(seed)
    contents = bytearray(MUTABLE[case])
    for _ in range(chance.randint(1, 6)):
        # Structure stands in the first bytes of tifffile's files: most mutations go there.
        at = chance.randrange(min(len(contents), chance.choice([40, 400, len(contents)])))
        change = chance.choice(["byte", "word", "cut", "insert"])
        if change == "byte":
            contents[at] = chance.choice([0, 1, 255, chance.randrange(256)])
        elif change == "word":
            contents[at : at + 4] = chance.choice([b"\0" * 4, b"\xff" * 4, chance.randbytes(4)])
        elif change == "cut":
            del contents[at : at + chance.randint(1, 8)]
        else:
            contents[at:at] = chance.randbytes(chance.randint(1, 8))
        contents = contents or bytearray(1)
    parser = TiffParser(Limits(max_plane_bytes=1 << 24, max_segment_bytes=1 << 22), planes=planes)
    began, pixels = time.perf_counter(), 0
    try:
        for size in (len(contents) // 2, len(contents), len(contents)):
            for event in parser.advance(Bytes(bytes(contents[:size])), settled=settled):
                pixels += event.pixels.size if isinstance(event, Region) else 0
    except FormatError:
        pass
    assert pixels <= 2 << 23
    assert time.perf_counter() - began < 5


def test_the_mutated_files_are_good_before() -> None:
    """The files that the mutations start from are read whole, so that a mutation is what breaks them."""
    for contents in MUTABLE:
        assert Complete() in parse(contents, planes=2)
        assert oracle(contents).shape == (2, 17, 19)
