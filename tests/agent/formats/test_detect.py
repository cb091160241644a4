"""Which parser reads a file, by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import tifffile

from agent.errors import FormatError
from agent.formats import Limits
from agent.formats.detect import SNIFF_BYTES, open_parser
from agent.formats.dicom import DicomParser
from agent.formats.tiff import TiffParser
from tests.agent.formats.dicom_cases import Shown, case


def tiff_file(*, big: bool = False) -> bytes:
    """A small TIFF by tifffile."""
    file = BytesIO()
    tifffile.imwrite(file, np.full((20, 20), 777, np.uint16), bigtiff=big)
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], type[DicomParser] | type[TiffParser]]] = {
    "DICOM": (lambda: case("explicit-1").data, DicomParser),
    "DICOM that poses as TIFF": (lambda: b"II*\0" + case("explicit-1").data[4:], DicomParser),
    "TIFF": (tiff_file, TiffParser),
    "BigTIFF": (lambda: tiff_file(big=True), TiffParser),
}


@pytest.mark.parametrize("kind", FILES)
def test_by_magic_bytes(kind: str) -> None:
    """Every format is known from its first 132 bytes, and no answer is given on fewer."""
    make, parser = FILES[kind]
    data = make()
    for size in range(0, SNIFF_BYTES + 400, 3):
        found = open_parser(Shown(data[:size]), Limits(), None)
        assert isinstance(found, parser) if size >= SNIFF_BYTES else found is None, size


@pytest.mark.parametrize("kind", ["DICOM", "TIFF", "BigTIFF"])
def test_preallocated(kind: str) -> None:
    """A preallocated file is never mistaken, wherever its zeros begin, and is known once its magic is written."""
    make, parser = FILES[kind]
    data = make()
    for size in range(200):
        found = open_parser(Shown(data[:size] + b"\0" * 5000), Limits(), None)
        assert found is None or isinstance(found, parser), size
    assert isinstance(found, parser)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" * 20, b"x" * 4000 + b"\0" * 4000])
def test_not_an_image(data: bytes) -> None:
    """Bytes that no format claims are refused with that reason."""
    with pytest.raises(FormatError) as caught:
        open_parser(Shown(data), Limits(), None)
    assert caught.value.reason == "not_an_image"


def test_limits_and_planes_reach_the_parser() -> None:
    """The parser is given the limits and the number of planes that the layout expects."""
    for limits, planes, reason in ((Limits(), 2, "wrong_shape"), (Limits(max_tags=3), None, "limits")):
        window = Shown(case("explicit-1").data)
        parser = open_parser(window, limits, planes)
        assert parser is not None
        with pytest.raises(FormatError) as caught:
            list(parser.advance(window, settled=True))
        assert caught.value.reason == reason
