"""Real TIFF files for the parser's tests, and a canvas that accepts every pixel once and only the right one."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from agent.formats import Complete, Event, Header, Region
from agent.formats.tiff import TiffParser

Image = NDArray[np.uint16]
Order = Literal["<", ">"]

SEGMENTS: dict[str, dict[str, Any]] = {
    "one strip": {"rowsperstrip": 17},
    "strips of 4 rows": {"rowsperstrip": 4},
    "tiles": {"tile": (16, 16)},
}
CODINGS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "lzw": {"compression": "lzw"},
    "lzw, predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "zlib"},
    "deflate, predictor": {"compression": "zlib", "predictor": True},
    "zstd": {"compression": "zstd"},
    "zstd, predictor": {"compression": "zstd", "predictor": True},
}
STRIP_OFFSETS, STRIP_COUNTS = 273, 279
LAYOUTS = ("pages", "interleaved", "separate")


class Bytes:
    """A window on bytes in memory that holds its reader to the contract."""

    def __init__(self, contents: bytes = b"") -> None:
        self.contents = contents
        self.bytes_read = 0

    @property
    def size(self) -> int:
        """Bytes that can be read now."""
        return len(self.contents)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; asking for others is the reader's mistake."""
        assert offset >= 0
        assert length >= 0
        assert offset + length <= self.size
        self.bytes_read += length
        return self.contents[offset : offset + length]


class Canvas:
    """Takes events in; fails on a pixel that comes twice, differs from `expected` or comes before the header."""

    def __init__(self, expected: Image) -> None:
        self.expected = expected
        self.seen = np.zeros(expected.shape, bool)
        self.header: Header | None = None
        self.complete = False

    def take(self, events: Iterable[Event]) -> None:
        """Check and remember the events."""
        for event in events:
            assert not self.complete, "an event after Complete"
            if isinstance(event, Header):
                assert self.header is None
                assert (event.planes, event.height, event.width) == self.expected.shape
                self.header = event
            elif isinstance(event, Region):
                self._paint(event)
            else:
                assert isinstance(event, Complete)
                assert self.seen.all()
                self.complete = True

    def _paint(self, region: Region) -> None:
        assert self.header is not None
        assert region.pixels.dtype == np.uint16
        assert region.pixels.dtype.isnative
        height, width = region.pixels.shape
        place = (region.plane, slice(region.y, region.y + height), slice(region.x, region.x + width))
        assert self.seen[place].shape == (height, width), "a region that is not clipped to the image"
        assert not self.seen[place].any(), "a pixel came twice"
        np.testing.assert_array_equal(region.pixels, self.expected[place])
        self.seen[place] = True


def make_image(planes: int = 2, height: int = 17, width: int = 19, seed: int = 0) -> Image:
    """[planes, height, width] without a zero byte, so that no byte looks unwritten."""
    image = np.random.default_rng(seed).integers(0, 1 << 16, (planes, height, width), np.uint16)
    image[image & 0xFF == 0] |= 0x01
    image[image & 0xFF00 == 0] |= 0x0100
    return image


def write_tiff(
    image: Image, layout: str = "pages", *, order: Order = "<", big: bool = False, **options: Any
) -> bytes:
    """[planes, height, width] as a TIFF file by tifffile."""
    stream = io.BytesIO()
    write_tiff_to(stream, image, layout, order=order, big=big, **options)
    return stream.getvalue()


def write_tiff_to(
    stream: io.BytesIO, image: Image, layout: str = "pages", *, order: Order = "<", big: bool = False, **options: Any
) -> None:
    """As `write_tiff`, into a stream that may look on while tifffile writes."""
    kinds: dict[str, tuple[list[Image], dict[str, Any]]] = {
        "pages": (list(image), {}),
        "interleaved": ([np.ascontiguousarray(np.moveaxis(image, 0, -1))], {"planarconfig": "contig"}),
        "separate": ([image], {"planarconfig": "separate"}),
    }
    pages, planar = kinds[layout]
    with tifffile.TiffWriter(stream, bigtiff=big, byteorder=order) as tiff:
        for page in pages:
            tiff.write(page, photometric="minisblack", contiguous=False, metadata=None, **planar, **options)


def oracle(contents: bytes) -> Image:
    """What tifffile reads from a finished file, as [planes, height, width]."""
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        pages = [page.asarray() for page in tiff.pages]
        first = tiff.pages.first
    if len(pages) > 1 or first.samplesperpixel == 1:
        return np.stack(pages)
    return pages[0] if first.planarconfig == 2 else np.moveaxis(pages[0], -1, 0)


def parse(contents: bytes, *, planes: int | None = None, settled: bool = False) -> list[Event]:
    """All events of a file that is shown once."""
    return list(TiffParser(planes=planes).advance(Bytes(contents), settled=settled))


def poke(contents: bytes, tag: int, *, page: int = 0, **fields: int) -> bytes:
    """Overwrite fields of one entry of a little-endian classic TIFF: `code`, `type`, `count` or `value`."""
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        offset = tiff.pages[page].aspage().tags[tag].offset
    changed = bytearray(contents)
    places = {"code": ("<H", 0), "type": ("<H", 2), "count": ("<I", 4), "value": ("<I", 8)}
    for name, value in fields.items():
        form, shift = places[name]
        struct.pack_into(form, changed, offset + shift, value)
    return bytes(changed)


def directories(contents: bytes) -> list[tuple[int, int]]:
    """(offset, place of the pointer to the next one) of each directory of a classic TIFF, by tifffile."""
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        return [(page.offset, page.offset + 2 + 12 * len(page.aspage().tags)) for page in tiff.pages]


def directory_ends(contents: bytes) -> list[int]:
    """Where each directory of a classic TIFF ends, with the values that its entries point to."""
    ends = []
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        for page, (_, link) in zip(tiff.pages, directories(contents), strict=True):
            ends.append(max([link + 4, *(tag.valueoffset + tag.valuebytecount for tag in page.aspage().tags)]))
    return ends


def columns(contents: bytes, tag: int) -> list[int]:
    """Where the values of a tag stand, for each page."""
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        return [page.aspage().tags[tag].valueoffset for page in tiff.pages]


def tiffcp(folder: Path, contents: bytes, *arguments: str) -> bytes:
    """The file as libtiff's tiffcp copies it."""
    if shutil.which("tiffcp") is None:
        if os.environ.get("CI"):
            pytest.fail("tiffcp is not installed")
        pytest.skip("tiffcp not installed: apt-get install libtiff-tools")
    source, target = folder / "source.tif", folder / "target.tif"
    source.write_bytes(contents)
    subprocess.run(["tiffcp", *arguments, source, target], check=True, capture_output=True, timeout=60)
    return target.read_bytes()


def libtiff_growth(contents: bytes) -> Iterator[bytes]:
    """A finished classic little-endian file as libtiff writes it: a link is zero until its directory is there."""
    links = [4, *(link for _, link in directories(contents))]
    arrivals = dict(zip(links, directory_ends(contents), strict=False))
    for size in range(len(contents) + 1):
        state = bytearray(contents[:size])
        for link, there in arrivals.items():
            if link + 4 <= size < there:
                state[link : link + 4] = bytes(4)
        yield bytes(state)
