"""Promises of the TIFF parser on files as they are written: late directories, late offsets, preallocated zeros."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.formats import Header, Region
from agent.formats.tiff import TiffParser
from tests.agent.formats.tiff_cases import (
    CODINGS,
    LAYOUTS,
    SEGMENTS,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    Bytes,
    Canvas,
    Image,
    columns,
    directories,
    directory_ends,
    libtiff_growth,
    make_image,
    oracle,
    parse,
    poke,
    tiffcp,
    write_tiff,
    write_tiff_to,
)


class Recorder(io.BytesIO):
    """A file that keeps its contents after every write: what a reader beside the writer may see."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[bytes] = []

    def write(self, data: object, /) -> int:
        """Write and remember."""
        written = super().write(data)  # type: ignore[arg-type]
        self.states.append(self.getvalue())
        return written


def grow(states: Iterable[bytes], canvas: Canvas, planes: int | None = 2) -> TiffParser:
    """Show each state once, unsettled."""
    parser = TiffParser(planes=planes)
    for state in states:
        canvas.take(parser.advance(Bytes(state), settled=False))
    return parser


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("coding", ["uncompressed", "lzw, predictor", "deflate", "zstd"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_state_that_tifffile_leaves(layout: str, coding: str, big: bool) -> None:
    """Seen after each of tifffile's own writes (pointers patched, gaps of zeros), the pixels are right."""
    image, recorder = make_image(), Recorder()
    write_tiff_to(recorder, image, layout, big=big, **SEGMENTS["strips of 4 rows"], **CODINGS[coding])
    canvas = Canvas(image)
    grow(recorder.states, canvas)
    assert canvas.complete
    for state in recorder.states:
        Canvas(image).take(parse(state, planes=2))


@pytest.mark.parametrize("planes", [2, None])
@pytest.mark.parametrize("coding", ["none", "lzw:2", "zip", "zstd:2"])
def test_libtiff_order(tmp_path: Path, coding: str, planes: int | None) -> None:
    """Where each directory comes after its pixels and is linked last, the pixels come with the directory."""
    image = make_image()
    contents = tiffcp(tmp_path, write_tiff(image), "-s", "-r", "4", "-c", coding)
    first_end = directory_ends(contents)[0]
    canvas, parser = Canvas(image), TiffParser(planes=planes)
    for state in libtiff_growth(contents):
        canvas.take(parser.advance(Bytes(state), settled=False))
        assert len(state) >= first_end or canvas.header is None
        if planes == 2 and len(state) == first_end:
            assert canvas.seen[0].all()
    assert canvas.complete


def test_directory_rewritten_at_another_place() -> None:
    """libtiff's checkpoints write a directory again behind the pixels: the new one counts, pixels come once."""
    image = make_image(1)
    contents = write_tiff(image, rowsperstrip=4)
    (start, link), column = directories(contents)[0], columns(contents, STRIP_OFFSETS)[0]
    checkpoint = bytearray(contents)
    checkpoint[column + 8 : column + 20] = bytes(12)
    table = len(contents)
    moved = table + 20
    directory = poke(contents, STRIP_OFFSETS, value=table)[start : link + 4]
    rewritten = checkpoint + contents[column : column + 20] + directory
    struct.pack_into("<I", rewritten, 4, moved)
    canvas = Canvas(image)
    parser = grow([bytes(checkpoint)], canvas, planes=1)
    assert canvas.seen[0].any(axis=1).sum() == 8
    canvas.take(parser.advance(Bytes(bytes(rewritten)), settled=False))
    assert canvas.complete


@pytest.mark.parametrize("coding", CODINGS)
def test_late_offsets_and_counts(coding: str) -> None:
    """A segment whose offset or byte count is still zero waits; the ones in front of it do not."""
    image = make_image()
    contents = write_tiff(image, **SEGMENTS["strips of 4 rows"], **CODINGS[coding])
    canvas, parser = Canvas(image), TiffParser(planes=2)
    places = [(tag, column) for tag in (STRIP_OFFSETS, STRIP_COUNTS) for column in columns(contents, tag)]
    for known, (tag, column) in itertools.product(range(5), places):
        state = bytearray(contents)
        width = 4 if tag == STRIP_OFFSETS else 2
        state[column + width * known : column + width * 5] = bytes(width * (5 - known))
        fresh = Canvas(image)
        fresh.take(parse(bytes(state), planes=2))
        plane = [place for t, place in places if t == tag].index(column)
        assert fresh.seen[plane].any(axis=1).sum() == 4 * known
        assert fresh.seen[1 - plane].all()
    for known in range(6):
        state = bytearray(contents)
        for tag, column in places:
            width = 4 if tag == STRIP_OFFSETS else 2
            state[column + width * known : column + width * 5] = bytes(width * (5 - known))
        canvas.take(parser.advance(Bytes(bytes(state)), settled=False))
    assert canvas.complete


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_preallocated_file(layout: str, segments: str, coding: str) -> None:
    """A file that has its full size from the start never shows a pixel before its bytes are written."""
    image = make_image()
    contents = write_tiff(image, layout, **SEGMENTS[segments], **CODINGS[coding])
    canvas, parser = Canvas(image), TiffParser(planes=2)
    spans = _data_spans(contents)  # structure is written in one piece, pixels byte by byte
    for size in [size for start, stop in spans for size in range(start, stop + 1)]:
        state = contents[:size] + bytes(len(contents) - size)
        canvas.take(parser.advance(Bytes(state), settled=False))
    canvas.take(parser.advance(Bytes(contents), settled=True))
    assert canvas.complete


@settings(deadline=None, max_examples=60)
@given(
    layout=st.sampled_from(LAYOUTS),
    segments=st.sampled_from(sorted(SEGMENTS)),
    dark=st.integers(0, 255),
    writes=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 400)), max_size=30),
)
def test_memory_mapped_file(layout: str, segments: str, dark: int, writes: list[tuple[int, int]]) -> None:
    """With all directories there from the start, planes filled at their own pace and dark pixels among them,
    no pixel is shown before it is written, and all are when the file settles."""
    image = make_image(seed=dark)
    image[:, ::3] &= dark
    contents = write_tiff(image, layout, **SEGMENTS[segments])
    spans = _data_spans(contents)
    state, filled = bytearray(contents), [0] * len(spans)
    for start, stop in spans:
        state[start:stop] = bytes(stop - start)
    canvas, parser = Canvas(image), TiffParser(planes=2)
    for plane, length in writes:
        plane %= len(spans)
        start, stop = spans[plane]
        filled[plane] = min(filled[plane] + length, stop - start)
        state[start : start + filled[plane]] = contents[start : start + filled[plane]]
        canvas.take(parser.advance(Bytes(bytes(state)), settled=False))
    canvas.take(parser.advance(Bytes(contents), settled=True))
    assert canvas.complete


def _data_spans(contents: bytes) -> list[tuple[int, int]]:
    """Where the pixels of each lane (page, or separate plane) lie in a file of tifffile's."""
    spans = []
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        for page in (each.aspage() for each in tiff.pages):
            pairs = list(zip(page.dataoffsets, page.databytecounts, strict=True))
            lanes = page.samplesperpixel if page.planarconfig == 2 else 1
            share = len(pairs) // lanes
            parts = [pairs[lane * share : (lane + 1) * share] for lane in range(lanes)]
            spans += [(part[0][0], sum(part[-1])) for part in parts]
    return spans


@pytest.mark.parametrize("coding", ["uncompressed", "deflate", "lzw", "zstd"])
@pytest.mark.parametrize("segments", SEGMENTS)
def test_image_of_zeros(segments: str, coding: str) -> None:
    """Pixels that are truly zero wait while they might not be written yet, and count once the file settles."""
    image = np.zeros((2, 17, 19), np.uint16)
    contents = write_tiff(image, **SEGMENTS[segments], **CODINGS[coding])
    canvas, parser = Canvas(image), TiffParser(planes=2)
    canvas.take(parser.advance(Bytes(contents), settled=False))
    assert coding != "uncompressed" or not canvas.seen.any()
    canvas.take(parser.advance(Bytes(contents), settled=True))
    assert canvas.complete


@pytest.mark.parametrize("segments", SEGMENTS)
def test_zeros_in_front_of_written_pixels(segments: str) -> None:
    """Zero rows need not wait when pixels behind them are written."""
    image = make_image()
    image[:, :13] = 0
    canvas = Canvas(image)
    canvas.take(parse(write_tiff(image, **SEGMENTS[segments]), planes=2))
    assert canvas.complete


def test_zeros_far_in_front_of_written_pixels() -> None:
    """A zero area larger than any block or probe does not hold up a growing file."""
    image = np.zeros((1, 3000, 1000), np.uint16)
    image[0, -1] = 7000 | 0x0101
    for rows in (3000, 1):
        canvas = Canvas(image)
        canvas.take(parse(write_tiff(image, rowsperstrip=rows), planes=1))
        assert canvas.complete


def test_half_written_row_waits() -> None:
    """The row that may be half written waits with the zeros behind it; the rows in front of it are shown."""
    image = make_image(1, 10, 16)
    contents = write_tiff(image, rowsperstrip=10)
    start = contents.index(image.tobytes())
    canvas, parser = Canvas(image), TiffParser(planes=1)
    for written in range(image.nbytes + 1):
        state = contents[: start + written] + bytes(image.nbytes - written)
        canvas.take(parser.advance(Bytes(state), settled=False))
        assert canvas.seen.sum() == written // 32 * 16
    assert canvas.complete


def test_unwritten_directory_in_a_preallocated_file() -> None:
    """Zeros where a header or a directory belongs mean that it is not written yet, settled or not."""
    image = make_image()
    contents = write_tiff(image)
    start = directories(contents)[0][0]
    for size in (0, 3, 8, start, start + 1, start + 2, start + 20):
        state = contents[:size] + bytes(len(contents) - size)
        for settled in (False, True):
            assert not [event for event in parse(state, planes=2, settled=settled) if isinstance(event, Region)]


@pytest.mark.parametrize("settled", [False, True])
def test_one_page_may_be_followed_by_another(settled: bool) -> None:
    """With an unknown number of planes, a single page counts as one plane only when the file settled whole."""
    image = make_image(1)
    contents = write_tiff(image, rowsperstrip=4)
    assert not parse(contents[:-1], settled=settled)
    assert not parse(contents, settled=False)
    canvas = Canvas(image)
    canvas.take(parse(contents, settled=True))
    assert canvas.complete


def test_second_page_decides_an_unknown_number_of_planes() -> None:
    """With an unknown number of planes, the second page's directory makes two of them, without settling."""
    image = make_image()
    contents = write_tiff(image)
    canvas = Canvas(image)
    canvas.take(parse(contents))
    assert canvas.complete


def test_a_missing_second_page_is_waited_for() -> None:
    """Where two planes are expected, one page is never complete, settled or not."""
    image = make_image(1)
    events = parse(write_tiff(image), planes=2, settled=True)
    assert events[0] == Header(17, 19, 2)
    assert {event.plane for event in events[1:] if isinstance(event, Region)} == {0}
    assert len(events) == 2


def test_thumbnails_are_skipped() -> None:
    """Reduced-resolution pages of any type, wherever they stand, are no planes."""
    image = make_image()
    thumbnail = np.full((4, 5, 3), 200, np.uint8)
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as tiff:
        tiff.write(thumbnail, photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(image[0], photometric="minisblack", metadata=None)
        tiff.write(thumbnail, photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(image[1], photometric="minisblack", metadata=None)
        tiff.write(thumbnail, photometric="rgb", subfiletype=1, metadata=None)
    for planes in (2, None):
        canvas = Canvas(image)
        canvas.take(parse(stream.getvalue(), planes=planes))
        assert canvas.complete


def test_contiguous_stack() -> None:
    """A stack whose second directory tifffile writes on closing, behind all pixels, is read like any other."""
    image, recorder = make_image(), Recorder()
    with tifffile.TiffWriter(recorder) as tiff:
        for plane in image:
            tiff.write(plane, photometric="minisblack", contiguous=True)
    canvas = Canvas(oracle(recorder.getvalue()))
    grow(recorder.states, canvas)
    assert canvas.complete


@pytest.mark.parametrize("layout", LAYOUTS)
def test_abandoned_after_every_event(layout: str) -> None:
    """An iterator that is dropped after each single event loses and repeats none, and keeps their order."""
    contents = write_tiff(make_image(), layout, **SEGMENTS["tiles"], **CODINGS["zstd"])
    whole = parse(contents, planes=2)
    parser, window = TiffParser(planes=2), Bytes(contents)
    single = [
        event for _ in range(len(whole) + 3) for event in itertools.islice(parser.advance(window, settled=False), 1)
    ]
    assert [_place(event) for event in single] == [_place(event) for event in whole]


def _place(event: object) -> tuple[object, ...]:
    if isinstance(event, Region):
        return (event.plane, event.y, event.x, event.pixels.shape)
    return (event,)


def test_the_slow_obvious_reading_agrees() -> None:
    """Big-endian samples, interleaved and differenced, are undone as a loop over single pixels undoes them."""
    image: Image = make_image(2, 17, 19, seed=5)
    contents = write_tiff(image, "interleaved", order=">", compression="zlib", predictor=True, rowsperstrip=17)
    with tifffile.TiffFile(io.BytesIO(contents)) as tiff:
        page = tiff.pages.first
        raw = contents[page.dataoffsets[0] :][: page.databytecounts[0]]
    words = struct.unpack(">646H", zlib.decompress(raw))
    slow = np.zeros((2, 17, 19), np.uint16)
    for row in range(17):
        for column in range(19):
            for sample in range(2):
                left = int(slow[sample, row, column - 1]) if column else 0
                slow[sample, row, column] = (words[(row * 19 + column) * 2 + sample] + left) % 65536
    np.testing.assert_array_equal(slow, image)
    canvas = Canvas(slow)
    canvas.take(parse(contents, planes=2))
    assert canvas.complete
