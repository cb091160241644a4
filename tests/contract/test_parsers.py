"""One contract for every parser plug-in (agent.formats.Parser): a new line in FORMATS needs its files here.

What is particular to a format (orders of writing, codings, refusals) is tested beside it, in tests/agent/formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Parser
from agent.formats.detect import FORMATS, open_parser
from agent.formats.dicom import DicomParser
from agent.formats.tiff import TiffParser
from tests.agent.formats import dicom_cases
from tests.agent.formats.tiff_cases import Bytes, Canvas, make_image, oracle, write_tiff

Image = NDArray[np.uint16]
Made = tuple[bytes, Image]
"""A finished file, and its pixels as another program reads them: [planes, height, width]."""


@dataclass(frozen=True)
class Plugin:
    """A parser and finished files of its format."""

    parser: Callable[[Limits, int | None], Parser]
    plain: Callable[[Image], bytes]
    """Writes an image uncompressed, so that a byte of the file is a byte of a pixel."""
    files: dict[str, Callable[[], Made]] = field(default_factory=dict)

    def open(self, planes: int, limits: Limits | None = None) -> Parser:
        """A parser of a file that must hold so many planes."""
        return self.parser(limits or Limits(), planes)


def tiff(layout: str, **options: object) -> Callable[[], Made]:
    """A TIFF by tifffile, which is also its oracle."""

    def make() -> Made:
        contents = write_tiff(make_image(), layout, **options)  # type: ignore[arg-type]
        return contents, oracle(contents)

    return make


def dicom(name: str) -> Callable[[], Made]:
    """A DICOM by pydicom, which is also its oracle."""

    def make() -> Made:
        case = dicom_cases.case(name)
        return case.data, case.oracle

    return make


def plain_tiff(image: Image) -> bytes:
    """Two pages of strips, each directory in front of its pixels."""
    return write_tiff(image, "pages", rowsperstrip=2)


def plain_dicom(image: Image) -> bytes:
    """Two native frames."""
    data = dicom_cases.describe(image)
    data.PixelData = image.tobytes()
    data["PixelData"].VR = "OW"
    return dicom_cases.save(data, ExplicitVRLittleEndian)


PLUGINS = {
    "tiff": Plugin(
        TiffParser,
        plain_tiff,
        {
            "pages of strips": tiff("pages", rowsperstrip=4),
            "interleaved tiles, deflate": tiff("interleaved", tile=(16, 16), compression="zlib"),
            "separate, big-endian BigTIFF, lzw": tiff("separate", order=">", big=True, compression="lzw"),
        },
    ),
    "dicom": Plugin(
        DicomParser,
        plain_dicom,
        {
            "native": dicom("explicit-2"),
            "big-endian, one plane": dicom("big-1"),
            "rle frames": dicom("rle-2-basic"),
            "jpeg 2000 in fragments": dicom("j2k-2-in-3-fragments"),
        },
    ),
}
CASES = [(plugin, name) for plugin in PLUGINS for name in PLUGINS[plugin].files]


@cache
def made(plugin: str, name: str) -> Made:
    """A file, made once."""
    return PLUGINS[plugin].files[name]()


@dataclass
class Case:
    """One finished file before a parser."""

    plugin: Plugin
    contents: bytes
    expected: Image

    def open(self) -> Parser:
        """A new parser of this file."""
        return self.plugin.open(len(self.expected))

    def sizes(self) -> range:
        """Every size that the file has while it grows byte by byte."""
        return range(len(self.contents) + 1)


@pytest.fixture(params=CASES, ids=[f"{plugin}: {name}" for plugin, name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    """Every file of every plug-in."""
    plugin, name = request.param
    return Case(PLUGINS[plugin], *made(plugin, name))


@pytest.fixture(params=PLUGINS)
def plugin(request: pytest.FixtureRequest) -> Plugin:
    """Every plug-in."""
    return PLUGINS[request.param]


def key(event: Event) -> object:
    """Events that can be compared."""
    if isinstance(event, Header | Complete):
        return event
    return event.plane, event.y, event.x, event.pixels.shape, event.pixels.tobytes()


def sorted_keys(events: list[Event]) -> list[str]:
    """All events in an order of their own."""
    return sorted(str(key(event)) for event in events)


class TestEveryFile:
    """Promises about finished files and their beginnings."""

    def test_a_finished_file_gives_every_pixel_once(self, case: Case) -> None:
        """Header first, then each pixel of each plane exactly once and as the oracle reads it, Complete last."""
        events = list(case.open().advance(Bytes(case.contents), settled=False))
        assert isinstance(events[0], Header)
        assert isinstance(events[-1], Complete)
        canvas = Canvas(case.expected)
        canvas.take(events)
        assert canvas.complete

    @pytest.mark.parametrize("step", [1, 7, 100])
    def test_growth_in_steps_equals_the_whole(self, case: Case, step: int) -> None:
        """Shown byte by byte, or in larger steps, the parser gives the same pixels, each as soon as it may."""
        parser, canvas = case.open(), Canvas(case.expected)
        for size in [*case.sizes()[::step], len(case.contents)]:
            canvas.take(parser.advance(Bytes(case.contents[:size]), settled=False))
        assert canvas.complete

    def test_a_file_cut_anywhere_shows_only_what_is_right(self, case: Case) -> None:
        """A new parser on every beginning of the file raises nothing and is complete only with every pixel."""
        for size in case.sizes():
            canvas = Canvas(case.expected)
            canvas.take(case.open().advance(Bytes(case.contents[:size]), settled=False))
            assert size < len(case.contents) or canvas.complete

    def test_nothing_comes_after_complete(self, case: Case) -> None:
        """Behind Complete an advance gives nothing, settled or not, whatever bytes follow."""
        parser = case.open()
        list(parser.advance(Bytes(case.contents), settled=False))
        for more in (b"", b"\0" * 100, b"\xff" * 100):
            for settled in (False, True):
                assert not list(parser.advance(Bytes(case.contents + more), settled=settled))

    def test_trailing_bytes_change_nothing(self, case: Case) -> None:
        """Bytes behind the image are not looked at: the same events as without them."""
        alone = list(case.open().advance(Bytes(case.contents), settled=False))
        for more in (b"\0" * 100, b"\xff" * 100):
            found = list(case.open().advance(Bytes(case.contents + more), settled=False))
            assert list(map(key, found)) == list(map(key, alone))

    def test_the_same_bytes_again_give_nothing_new(self, case: Case) -> None:
        """At every size a second look at the same bytes yields no event."""
        parser = case.open()
        for size in case.sizes()[::5]:
            window = Bytes(case.contents[:size])
            list(parser.advance(window, settled=False))
            assert not list(parser.advance(window, settled=False))

    @pytest.mark.parametrize("taken", [1, 2, 3])
    def test_an_abandoned_iterator_loses_nothing(self, case: Case, taken: int) -> None:
        """Whoever takes a few events, drops the iterator and asks again gets every event, each once."""
        parser, found = case.open(), list[Event]()
        while not (found and isinstance(found[-1], Complete)):
            events = parser.advance(Bytes(case.contents), settled=False)
            before = len(found)
            found += take(events, taken)
            assert len(found) > before, "the parser came to an end without Complete"
        whole = list(case.open().advance(Bytes(case.contents), settled=False))
        assert sorted_keys(found) == sorted_keys(whole)

    def test_growth_with_abandoned_iterators_loses_nothing(self, case: Case) -> None:
        """The same while the file grows: one event at a time, then the iterator is dropped."""
        parser, canvas = case.open(), Canvas(case.expected)
        for size in case.sizes()[::3]:
            canvas.take(take(parser.advance(Bytes(case.contents[:size]), settled=False), 1))
        while more := take(parser.advance(Bytes(case.contents), settled=False), 1):
            canvas.take(more)
        assert canvas.complete

    def test_settling_changes_no_pixel_of_a_whole_file(self, case: Case) -> None:
        """A finished file that has settled gives what it gives at once."""
        at_once = list(case.open().advance(Bytes(case.contents), settled=False))
        settled = list(case.open().advance(Bytes(case.contents), settled=True))
        assert list(map(key, settled)) == list(map(key, at_once))

    def test_the_header_can_be_had_alone(self, case: Case) -> None:
        """Reading up to the header only and going on later gives the rest without the header."""
        parser, canvas = case.open(), Canvas(case.expected)
        canvas.take(take(parser.advance(Bytes(case.contents), settled=False), 1))
        assert canvas.header is not None and not canvas.seen.any()
        canvas.take(parser.advance(Bytes(case.contents), settled=False))
        assert canvas.complete

    def test_it_is_the_parser_that_its_first_bytes_ask_for(self, case: Case) -> None:
        """detect.open_parser opens this plug-in for the file, for every size from which it answers."""
        kinds = {
            type(parser)
            for size in case.sizes()
            if (parser := open_parser(Bytes(case.contents[:size]), Limits(), None)) is not None
        }
        assert kinds == {case.plugin.parser}


def take(events: Iterator[Event], count: int) -> list[Event]:
    """The first events; the iterator is dropped."""
    return list(islice(events, count))


def dense(zero_rows: int = 0) -> Image:
    """[2, 9, 8] without a zero byte, except for the last rows of the last plane."""
    image = make_image(2, dicom_cases.HEIGHT, dicom_cases.WIDTH)
    if zero_rows:
        image[-1, -zero_rows:] = 0
    return image


class TestEveryPlugin:
    """Promises about preallocation, settling and refusals."""

    def test_a_preallocated_file_shows_only_written_pixels(self, plugin: Plugin) -> None:
        """A file of full size, filled from its first byte on and opened as soon as its kind can be told, gives
        pixels only where they are written.
        """
        expected = dense()
        contents = plugin.plain(expected)
        canvas, parser = Canvas(expected), None
        for written in range(len(contents) + 1):
            window = Bytes(contents[:written] + bytes(len(contents) - written))
            parser = parser or open_parser(window, Limits(), 2)
            canvas.take(parser.advance(window, settled=False) if parser else ())
        assert canvas.complete

    def test_trailing_zeros_are_pixels_once_settled(self, plugin: Plugin) -> None:
        """Zeros at the end might be preallocated: they count when the file has settled, and only then."""
        expected = dense(zero_rows=3)
        contents = plugin.plain(expected)
        parser, canvas = plugin.open(2), Canvas(expected)
        canvas.take(parser.advance(Bytes(contents), settled=False))
        assert not canvas.complete and canvas.header is not None
        canvas.take(parser.advance(Bytes(contents), settled=True))
        assert canvas.complete

    def test_a_cut_file_that_settled_is_not_complete(self, plugin: Plugin) -> None:
        """Silence completes nothing: with bytes missing the pixels at the end never come."""
        expected = dense()
        contents = plugin.plain(expected)
        for missing in (1, 2, 16, 17, len(contents) // 2):
            canvas = Canvas(expected)
            canvas.take(plugin.open(2).advance(Bytes(contents[:-missing]), settled=True))
            assert not canvas.complete

    def test_too_many_planes_are_a_wrong_shape(self, plugin: Plugin) -> None:
        """Two planes where the name promises one are refused."""
        assert refusal(plugin.open(1), plugin.plain(dense())) == "wrong_shape"

    @pytest.mark.parametrize("side", [7, 8])
    def test_sides_beyond_the_limit_are_refused(self, plugin: Plugin, side: int) -> None:
        """An image that is larger than the limits allow is refused before a pixel is decoded."""
        parser = plugin.open(2, Limits(max_side_px=side))
        assert refusal(parser, plugin.plain(dense())) == "limits"

    def test_a_plane_beyond_the_limit_is_refused(self, plugin: Plugin) -> None:
        """A plane of more bytes than the limits allow is refused."""
        assert refusal(plugin.open(2, Limits(max_plane_bytes=100)), plugin.plain(dense())) == "limits"

    @pytest.mark.parametrize("contents", [b"GIF89a" + bytes(range(1, 200)), b"\xff" * 500])
    def test_foreign_bytes_are_no_image(self, plugin: Plugin, contents: bytes) -> None:
        """Bytes of another kind are refused as not_an_image."""
        assert refusal(plugin.open(2), contents) == "not_an_image"

    def test_an_impossible_number_of_planes_is_our_mistake(self, plugin: Plugin) -> None:
        """Only one plane, two planes, or None can be asked for."""
        with pytest.raises(ValueError, match="planes must be"):
            plugin.parser(Limits(), 3)

    @pytest.mark.parametrize("size", [0, 1, 3])
    def test_the_first_bytes_may_be_missing(self, plugin: Plugin, size: int) -> None:
        """An empty file, or one of a few bytes, needs more: no event and no error, settled or not."""
        contents = plugin.plain(dense())[:size]
        for settled in (False, True):
            assert not list(plugin.open(2).advance(Bytes(contents), settled=settled))


def refusal(parser: Parser, contents: bytes) -> str:
    """The reason for which a file is refused; fails when it gives a pixel first, or is not refused."""
    with pytest.raises(FormatError) as refused:
        for event in parser.advance(Bytes(contents), settled=True):
            assert isinstance(event, Header)
    return refused.value.reason


def test_every_registered_format_keeps_the_contract() -> None:
    """The plug-ins tested here are those of agent.formats.detect.FORMATS, no fewer."""
    assert {plugin.parser for plugin in PLUGINS.values()} == {parser for _, parser in FORMATS}
