"""Promises of the TIFF parser on finished files and on their beginnings: tifffile and libtiff are the oracles."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.formats import Complete, Header, Region
from agent.formats.tiff import TiffParser, sniff
from tests.agent.formats.tiff_cases import (
    CODINGS,
    LAYOUTS,
    SEGMENTS,
    STRIP_OFFSETS,
    Bytes,
    Canvas,
    Order,
    columns,
    directories,
    make_image,
    oracle,
    parse,
    tiffcp,
    write_tiff,
)

CONTAINERS: dict[str, tuple[Order, bool]] = {
    "II": ("<", False),
    "MM": (">", False),
    "II big": ("<", True),
    "MM big": (">", True),
}
MATRIX = list(itertools.product(LAYOUTS, SEGMENTS, CODINGS))
TIFFCP = {
    "strips": ["-s", "-c", "none", "-r", "3"],
    "one strip": ["-s", "-c", "none", "-r", "17"],
    "tiles": ["-t", "-w", "16", "-l", "16", "-c", "none"],
    "lzw": ["-s", "-c", "lzw"],
    "lzw, predictor, tiles": ["-t", "-w", "16", "-l", "16", "-c", "lzw:2"],
    "deflate": ["-s", "-c", "zip", "-r", "5"],
    "deflate, predictor, tiles": ["-t", "-w", "16", "-l", "16", "-c", "zip:2"],
    "zstd": ["-s", "-c", "zstd"],
    "zstd, predictor": ["-s", "-c", "zstd:2", "-r", "4"],
    "big-endian": ["-s", "-c", "none", "-B", "-r", "3"],
    "big-endian, lzw, predictor": ["-s", "-c", "lzw:2", "-B"],
    "BigTIFF": ["-s", "-c", "none", "-8", "-r", "3"],
    "BigTIFF, big-endian, tiles": ["-t", "-w", "16", "-l", "16", "-c", "zip:2", "-8", "-B"],
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("layout", "segments", "coding"), MATRIX)
def test_whole_file_equals_tifffile(container: str, layout: str, segments: str, coding: str) -> None:
    """Every byte order, offset size, segment kind, coding and layout gives tifffile's pixels, each once."""
    order, big = CONTAINERS[container]
    contents = write_tiff(make_image(), layout, order=order, big=big, **SEGMENTS[segments], **CODINGS[coding])
    canvas = Canvas(oracle(contents))
    canvas.take(parse(contents, planes=2))
    assert canvas.complete


@pytest.mark.parametrize(("layout", "segments", "coding"), MATRIX)
def test_byte_by_byte_and_trailing_bytes(layout: str, segments: str, coding: str) -> None:
    """Fed byte by byte, with foreign bytes behind it, a file gives the same pixels and nothing after Complete."""
    order, big = list(CONTAINERS.values())[MATRIX.index((layout, segments, coding)) % 4]
    contents = write_tiff(make_image(), layout, order=order, big=big, **SEGMENTS[segments], **CODINGS[coding])
    canvas, parser = Canvas(oracle(contents)), TiffParser(planes=2)
    for size in range(len(contents) + 1):
        canvas.take(parser.advance(Bytes(contents[:size]), settled=False))
    assert canvas.complete
    for trailing in (b"\0" * 64, b"\xff" * 64):
        assert not list(parser.advance(Bytes(contents + trailing), settled=True))
        whole = Canvas(canvas.expected)
        whole.take(parse(contents + trailing, planes=2))
        assert whole.complete


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coding", ["uncompressed", "deflate, predictor", "lzw", "zstd"])
def test_cut_at_every_offset(layout: str, coding: str) -> None:
    """A file cut anywhere is never an error, and a new parser finds in it exactly what the growing one found."""
    contents = write_tiff(make_image(), layout, **SEGMENTS["strips of 4 rows"], **CODINGS[coding])
    expected, parser = oracle(contents), TiffParser(planes=2)
    grown = Canvas(expected)
    for size in range(len(contents)):
        grown.take(parser.advance(Bytes(contents[:size]), settled=False))
        fresh = Canvas(expected)
        fresh.take(parse(contents[:size], planes=2))
        np.testing.assert_array_equal(grown.seen, fresh.seen)
        assert (fresh.header, fresh.complete) == (grown.header, grown.complete)
    assert not grown.complete, "complete before the last byte"


# Not compared: separate samples in tiles, which tiffcp 4.5 writes as if a sample had 8 bits.
@pytest.mark.parametrize(
    ("layout", "case"),
    [(layout, case) for layout in LAYOUTS for case in TIFFCP if (layout, TIFFCP[case][0]) != ("separate", "-t")],
)
def test_files_written_by_libtiff(tmp_path: Path, layout: str, case: str) -> None:
    """Files written by libtiff's tiffcp give tifffile's pixels, whole and byte by byte."""
    image = make_image(seed=1)
    contents = tiffcp(tmp_path, write_tiff(image, layout), *TIFFCP[case])
    np.testing.assert_array_equal(oracle(contents), image)
    whole = Canvas(image)
    whole.take(parse(contents, planes=2))
    assert whole.complete
    canvas, parser = Canvas(image), TiffParser(planes=2)
    for size in range(len(contents) + 1):
        canvas.take(parser.advance(Bytes(contents[:size]), settled=False))
    assert canvas.complete


@pytest.mark.parametrize("coding", CODINGS)
def test_one_plane(coding: str) -> None:
    """A file of one page with one sample is one plane where one is expected."""
    contents = write_tiff(make_image(1), **SEGMENTS["strips of 4 rows"], **CODINGS[coding])
    canvas = Canvas(oracle(contents))
    canvas.take(parse(contents, planes=1))
    assert canvas.complete


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(MATRIX),
    container=st.sampled_from(sorted(CONTAINERS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    data=st.data(),
)
def test_any_shape_and_any_chunking(
    case: tuple[str, str, str], container: str, height: int, width: int, data: st.DataObject
) -> None:
    """Any shape, arriving in any pieces, with the iterator abandoned anywhere, gives each pixel exactly once."""
    layout, segments, coding = case
    order, big = CONTAINERS[container]
    image = make_image(2, height, width, seed=height)
    contents = write_tiff(image, layout, order=order, big=big, **SEGMENTS[segments], **CODINGS[coding])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(contents)), max_size=12)))
    canvas, parser = Canvas(image), TiffParser(planes=2)
    for size in [*cuts, *[len(contents)] * 4]:
        takes = data.draw(st.integers(0, 6))
        canvas.take(itertools.islice(parser.advance(Bytes(contents[:size]), settled=False), takes))
    canvas.take(parser.advance(Bytes(contents), settled=True))
    assert canvas.complete


def test_order_of_events_and_of_planes() -> None:
    """The header comes first, Complete last, and the planes of a finished file advance side by side."""
    contents = write_tiff(make_image(2, 64, 64), tile=(16, 16))
    first, *regions, last = parse(contents, planes=2)
    assert first == Header(64, 64, 2)
    assert last == Complete()
    rows = {0: 0, 1: 0}
    for region in regions:
        assert isinstance(region, Region)
        rows[region.plane] = region.y
        assert abs(rows[0] - rows[1]) <= 16


def test_uncompressed_rows_come_in_few_large_regions() -> None:
    """Strips of one row that lie together are read as one: a finished file costs no work per row."""
    contents = write_tiff(make_image(2, 600, 50), rowsperstrip=1)
    window = Bytes(contents)
    events = list(TiffParser(planes=2).advance(window, settled=False))
    assert len(events) == 4
    assert window.bytes_read < 1.2 * len(contents)


def test_each_row_comes_with_its_last_byte() -> None:
    """A row of an uncompressed file is yielded as soon as its last byte is on disk, however long the strip is."""
    image = make_image(2, 30, 25)
    contents = write_tiff(image, rowsperstrip=30)
    data = contents.index(image[0].tobytes())
    canvas, parser = Canvas(image), TiffParser(planes=2)
    for size in range(data, data + image[0].nbytes + 1):
        canvas.take(parser.advance(Bytes(contents[:size]), settled=False))
        assert canvas.seen[0].sum() == (size - data) // 50 * 25


def test_first_page_streams_before_the_second_exists() -> None:
    """Where two planes are expected, rows of the first page come before anything of the second is on disk."""
    image = make_image(2, 40, 30)
    contents = write_tiff(image, rowsperstrip=40)
    second = directories(contents)[1][0]
    canvas = Canvas(image)
    canvas.take(parse(contents[:second], planes=2))
    assert canvas.seen[0].all()
    assert not canvas.seen[1].any()
    assert not canvas.complete


def test_segments_in_any_order_in_the_file() -> None:
    """Strips that lie in the file from the last to the first are found where their offsets say."""
    image = make_image(2, 32, 32)
    contents = write_tiff(image, rowsperstrip=8)
    moved = bytearray(contents)
    for plane, column in zip(image, columns(contents, STRIP_OFFSETS), strict=True):
        start = len(moved)
        moved += b"".join(strip.tobytes() for strip in reversed(np.split(plane, 4)))
        moved[column : column + 16] = np.array([start + 512 * i for i in (3, 2, 1, 0)], "<u4").tobytes()
    canvas = Canvas(image)
    canvas.take(parse(bytes(moved), planes=2))
    assert canvas.complete


@pytest.mark.parametrize(
    ("first16", "answer"),
    [
        (b"II*\0" + bytes(12), True),
        (b"MM\0*" + bytes(12), True),
        (b"II+\0\x08\0\0\0" + bytes(8), True),
        (b"MM\0+\0\x08\0\0" + bytes(8), True),
        (b"II*\0", True),
        (b"", None),
        (b"I", None),
        (b"MM\0", None),
        (b"II+\0", None),
        (b"II+\0\x08\0", None),
        (bytes(16), None),
        (b"IM", False),
        (b"II+\0\x04\0\0\0" + bytes(8), False),
        (b"\x89PNG\r\n\x1a\n" + bytes(8), False),
        (bytes(10) + b"DICOM!", False),
    ],
)
def test_sniff(first16: bytes, answer: bool | None) -> None:
    """Sixteen bytes tell TIFF and BigTIFF of both byte orders from everything else; fewer may not yet."""
    assert sniff(first16) is answer


def test_uncompressed_files_load_no_codec() -> None:
    """Reading an uncompressed file does not import imagecodecs."""
    script = (
        "import sys\n"
        "from agent.formats.tiff import TiffParser\n"
        "class Window:\n"
        "    contents = sys.stdin.buffer.read()\n"
        "    size = len(contents)\n"
        "    def read(self, offset, length):\n"
        "        return self.contents[offset : offset + length]\n"
        "events = list(TiffParser(planes=2).advance(Window(), settled=False))\n"
        "print(len(events), 'imagecodecs' in sys.modules)\n"
    )
    contents = write_tiff(make_image(), rowsperstrip=17)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], input=contents, capture_output=True, check=True, cwd=root, timeout=60
    )
    assert done.stdout.split() == [b"4", b"False"]
