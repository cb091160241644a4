"""A growing DICOM file: the same pixels as pydicom's on the finished file, however its bytes arrive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from agent.formats.dicom import DicomParser, sniff
from tests.agent.formats.dicom_cases import CASES, HEIGHT, WIDTH, Canvas, Shown, case, counts, describe, run, save

TRAILING = bytes.fromhex("fcfffcff4f4200000400000001020304")
"""DataSetTrailingPadding, explicit VR."""
each_case = pytest.mark.parametrize("name", CASES)
PREALLOCATED = ["explicit-1", "implicit-2", "big-2", "rle-1-in-3-fragments", "rle-2-basic", "rle-2-extended"]
PREALLOCATED += ["j2k-2-in-3-fragments", "dcmcjpls-2", "dcmcjpeg-sv1"]


@each_case
def test_whole(name: str) -> None:
    """A finished file gives pydicom's pixels, its shape and Complete at the first look, and then nothing more."""
    file = case(name)
    parser = DicomParser()
    canvas = run(parser, file.data, Canvas())
    assert canvas.complete
    assert np.array_equal(canvas.planes, file.oracle)
    assert (canvas.times == 1).all()
    assert list(parser.advance(Shown(file.data), settled=True)) == []


@each_case
def test_byte_by_byte(name: str) -> None:
    """A file that grows by one byte gives the same, and never the same pixel twice."""
    file = case(name)
    parser, canvas = DicomParser(), Canvas()
    for size in range(len(file.data) + 1):
        run(parser, file.data[:size], canvas)
    assert canvas.complete
    assert np.array_equal(canvas.planes, file.oracle)
    assert (canvas.times == 1).all()


@each_case
@pytest.mark.parametrize("trailing", [TRAILING, b"\0" * 700, b"anything"])
def test_trailing_bytes(name: str, trailing: bytes) -> None:
    """Elements, padding and rubbish behind the pixel data change nothing."""
    file = case(name)
    canvas = run(DicomParser(), file.data + trailing, Canvas())
    assert canvas.complete
    assert np.array_equal(canvas.planes, file.oracle)


@each_case
def test_cut_at_every_offset(name: str) -> None:
    """A file cut anywhere raises nothing and gives only true pixels; native ones: exactly the rows it holds."""
    file = case(name)
    for cut in range(len(file.data)):
        canvas = run(DicomParser(), file.data[:cut], Canvas(), settled=True)
        assert canvas.agrees_with(file.oracle), cut
        if file.native:
            assert canvas.rows == max(0, cut - file.pixels_at) // (2 * WIDTH), cut
            assert not canvas.complete, cut


@pytest.mark.parametrize("name", ["rle-2-basic", "rle-2-no-table", "rle-2-extended"])
def test_frames_do_not_wait(name: str) -> None:
    """The first frame comes when its own bytes are there, the last one by the tag of the delimiter at the latest."""
    file = case(name)
    second = file.data.rindex(b"\xfe\xff\0\xe0")
    canvas = run(DicomParser(), file.data[: second + 4], Canvas())
    assert canvas.rows == HEIGHT
    assert canvas.agrees_with(file.oracle)
    assert run(DicomParser(), file.data[:-4], Canvas()).complete


@pytest.mark.parametrize("name", PREALLOCATED)
def test_preallocated_at_every_offset(name: str) -> None:
    """A preallocated file, zero behind any offset, gives no pixel that is not written, and all of them in the end."""
    file = case(name)
    for cut in range(len(file.data)):
        parser = DicomParser()
        zeros = b"\0" * (len(file.data) - cut)
        canvas = run(parser, file.data[:cut] + zeros, Canvas())
        assert canvas.agrees_with(file.oracle), cut
        assert not file.native or canvas.rows <= max(0, cut - file.pixels_at) // (2 * WIDTH), cut
        run(parser, file.data, canvas)
        assert canvas.complete and canvas.agrees_with(file.oracle) and (canvas.times == 1).all(), cut


@pytest.mark.parametrize("name", ["explicit-1", "implicit-1", "big-1", "dcmconv-big"])
def test_preallocated_header_survives_settling(name: str) -> None:
    """A writer that pauses long within a preallocated header is waited for, not refused."""
    file = case(name)
    for cut in range(file.pixels_at):
        parser = DicomParser()
        zeros = b"\0" * (len(file.data) - cut)
        canvas = run(parser, file.data[:cut] + zeros, Canvas(), settled=cut < file.pixels_at - 8)
        run(parser, file.data, canvas)
        assert canvas.complete and canvas.agrees_with(file.oracle), cut


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([n for n in CASES if not n.startswith("dcm")]), st.data())
def test_any_chunking_and_any_abandoning(name: str, data: st.DataObject) -> None:
    """Chunks of any size, iterators dropped after any event, preallocated or appended: nothing lost or repeated."""
    file = case(name)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(file.data)), max_size=12)))
    preallocated = data.draw(st.booleans())
    parser, canvas = DicomParser(), Canvas()
    for cut in cuts:
        zeros = b"\0" * (len(file.data) - cut) if preallocated else b""
        events = parser.advance(Shown(file.data[:cut] + zeros), settled=False)
        for _ in range(data.draw(st.integers(0, 4))):
            if (event := next(events, None)) is not None:
                canvas.take(event)
        assert canvas.agrees_with(file.oracle)
    while (event := next(parser.advance(Shown(file.data), settled=False), None)) is not None:
        canvas.take(event)
    assert canvas.complete
    assert np.array_equal(canvas.planes, file.oracle)


def zero_image(*, leading: int = 0) -> tuple[bytes, NDArray[np.uint16]]:
    """A file whose rows are zero but for the first `leading`."""
    pixels = np.zeros((1, HEIGHT, WIDTH), np.uint16)
    pixels[:, :leading] = 7777
    data = describe(pixels)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    return save(data, ExplicitVRLittleEndian), pixels


@pytest.mark.parametrize("leading", [0, 1, 5])
def test_zero_rows_wait_until_settled(leading: int) -> None:
    """Rows of zeros at the end are pixels once the file has settled, and not before."""
    data, pixels = zero_image(leading=leading)
    parser, canvas = DicomParser(), Canvas()
    run(parser, data, canvas)
    assert canvas.rows == leading
    run(parser, data, canvas, settled=True)
    assert canvas.complete
    assert np.array_equal(canvas.planes, pixels)


def test_zero_rows_followed_by_others_do_not_wait() -> None:
    """Zeros in front of written bytes are written."""
    data, _ = zero_image()
    file = data[:-2] + b"\x34\x12"
    canvas = run(DicomParser(), file, Canvas())
    assert canvas.complete
    assert canvas.planes[0, -1, -1] == 0x1234
    assert not canvas.planes[0, :-1].any()


def test_more_zeros_than_one_look_searches() -> None:
    """Over a megabyte of zeros inside a strip delays it only until its end is written."""
    pixels = np.zeros((1, 1500, 1000), np.uint16)
    pixels[0, 0], pixels[0, -1] = 1111, 2222
    data = describe(pixels)
    data.PixelData = pixels.tobytes()
    file = save(data, ImplicitVRLittleEndian)
    parser, canvas = DicomParser(), Canvas()
    preallocated = file[:-2000] + b"\x01" + b"\0" * 1999
    run(parser, preallocated[:-2000] + b"\0" * 2000, canvas)
    assert canvas.rows == 1
    run(parser, preallocated, canvas)
    assert canvas.rows == 1499
    run(parser, file, canvas)
    assert canvas.complete
    assert np.array_equal(canvas.planes, pixels)


@pytest.mark.parametrize("name", ["explicit-1", "implicit-1", "big-1", "rle-1"])
def test_tags(name: str) -> None:
    """The header carries the identifying tags that are there, decoded, as text."""
    header = run(DicomParser(), case(name).data, Canvas()).header
    assert header is not None
    assert header.tags == {
        "AccessionNumber": "A-17",
        "PatientID": "P01",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.1",
        "ContainerIdentifier": "S-2",
        "InstanceNumber": "6",
        "SeriesDescription": "Größe CH2",
        "OpticalPathDescription": "2845 per cm",
    }


def test_unknown_sequence_is_implicit_within() -> None:
    """An UN element of undefined length holds implicit little endian elements, whatever surrounds it."""
    item = b"\x09\x00\x11\x10" + (4).to_bytes(4, "little") + b"OWOW"
    value = (
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + item + b"\xfe\xff\x0d\xe0" + b"\0" * 4 + b"\xfe\xff\xdd\xe0" + b"\0" * 4
    )
    for name, head in (("explicit-2", b"\x09\x00\x10\x10UN\0\0"), ("big-2", b"\x00\x09\x10\x10UN\0\0")):
        file = case(name)
        at = file.data.index(b"\x10\x00\x20\x00LO" if name == "explicit-2" else b"\x00\x10\x00\x20LO")
        data = file.data[:at] + head + b"\xff\xff\xff\xff" + value + file.data[at:]
        canvas = run(DicomParser(), data, Canvas())
        assert canvas.complete
        assert np.array_equal(canvas.planes, file.oracle)


def test_monochrome1_and_twelve_bits_are_raw_counts() -> None:
    """Neither an inverse photometric interpretation nor fewer stored bits change a count."""
    pixels = (counts(1) >> 4).astype(np.uint16)
    data = describe(pixels)
    data.PhotometricInterpretation, data.BitsStored, data.HighBit = "MONOCHROME1", 12, 11
    del data.NumberOfFrames
    data.PixelData = pixels.tobytes()
    canvas = run(DicomParser(), save(data, ExplicitVRLittleEndian), Canvas(), settled=True)
    assert canvas.complete
    assert np.array_equal(canvas.planes, pixels)


@pytest.mark.parametrize(("size", "verdict"), [(0, None), (131, None), (132, True), (200, True)])
def test_sniff(size: int, verdict: bool | None) -> None:
    """132 bytes tell DICOM, fewer tell nothing."""
    assert sniff(case("explicit-1").data[:size]) is verdict


def test_sniff_refuses_others() -> None:
    """Without DICM at byte 128 a file is not DICOM."""
    assert sniff(b"II*\0" + bytes(128)) is False
