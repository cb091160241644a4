"""DICOM files that more bytes cannot mend: each kind is refused with its reason, and nothing else ever escapes."""

from __future__ import annotations

import time
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from agent.errors import FormatError
from agent.formats import Limits
from agent.formats.dicom import DicomParser
from tests.agent.formats.dicom_cases import (
    CASES,
    HEIGHT,
    WIDTH,
    Canvas,
    case,
    counts,
    describe,
    run,
    save,
)

END_OF_SEQUENCE = bytes.fromhex("feffdde000000000")


def plain(syntax: UID = ExplicitVRLittleEndian, frames: int = 1, *, pixel_bytes: int = -1, **values: object) -> bytes:
    """A native file with these attributes instead of the good ones; None removes one."""
    data = describe(counts(frames))
    data.PixelData = counts(frames).tobytes() if pixel_bytes < 0 else b"\x11" * pixel_bytes
    data["PixelData"].VR = "OW"
    for keyword, value in values.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    return save(data, syntax)


def refusal(data: bytes, parser: DicomParser | None = None) -> FormatError:
    """The error that a finished file raises, again at a second look."""
    parser = parser or DicomParser()
    with pytest.raises(FormatError) as first:
        run(parser, data, Canvas())
    with pytest.raises(FormatError) as second:
        run(parser, data, Canvas())
    assert first.value.reason == second.value.reason
    return first.value


WRONG: dict[str, tuple[str, Callable[[], bytes]]] = {
    "8 bit": ("wrong_type", lambda: plain(BitsAllocated=8, BitsStored=8, HighBit=7)),
    "32 bit": ("wrong_type", lambda: plain(BitsAllocated=32, BitsStored=32, HighBit=31)),
    "signed": ("wrong_type", lambda: plain(PixelRepresentation=1)),
    "virtual H&E": ("wrong_type", lambda: plain(SamplesPerPixel=3, PhotometricInterpretation="RGB")),
    "palette": ("wrong_type", lambda: plain(PhotometricInterpretation="PALETTE COLOR")),
    "bits on the left": ("wrong_type", lambda: plain(BitsStored=12, HighBit=15)),
    "bits beyond": ("malformed", lambda: plain(BitsStored=17, HighBit=16)),
    "counts beyond the stored bits": ("malformed", lambda: plain(BitsStored=12, HighBit=11)),
    "three frames": ("wrong_shape", lambda: plain(frames=3)),
    "no frames": ("wrong_shape", lambda: plain(NumberOfFrames=0)),
    "no rows": ("wrong_shape", lambda: plain(Rows=0)),
    "no Rows": ("malformed", lambda: plain(Rows=None)),
    "two Rows": ("malformed", lambda: plain(Rows=[9, 9])),
    "no BitsStored": ("malformed", lambda: plain(BitsStored=None)),
    "too few pixels": ("malformed", lambda: plain(pixel_bytes=HEIGHT * WIDTH * 2 - 2)),
    "too many pixels": ("malformed", lambda: plain(pixel_bytes=HEIGHT * WIDTH * 2 + 2)),
    "too many pixels, implicit": ("malformed", lambda: plain(ImplicitVRLittleEndian, pixel_bytes=400)),
    "empty pixels": ("malformed", lambda: plain(pixel_bytes=0) + b"\xfc\xff\xfc\xffOB\0\0\1\0\0\0x"),
    "deflated": ("unsupported", lambda: plain(DeflatedExplicitVRLittleEndian)),
    "JPEG baseline": ("unsupported", lambda: retyped(JPEGBaseline8Bit)),
    "JPEG-LS near lossless": ("unsupported", lambda: retyped(JPEGLSNearLossless)),
    "unknown transfer syntax": ("unsupported", lambda: retyped(UID("1.2.3.4"))),
    "no transfer syntax": ("malformed", lambda: headless()),
    "not DICOM": ("not_an_image", lambda: b"\x89PNG" * 40),
    "no pixel data": ("not_an_image", lambda: without_pixels()),
    "DICOMDIR": ("not_an_image", lambda: headless(b"\4\0\0\x12UL\4\0\1\2\3\4")),
    "float pixels": ("wrong_type", lambda: float_pixels("FloatPixelData", "OF")),
    "double pixels": ("wrong_type", lambda: float_pixels("DoubleFloatPixelData", "OD")),
    "native of undefined length": ("malformed", lambda: relength(b"\xff\xff\xff\xff")),
    "pixel length beyond 4 GB": ("malformed", lambda: relength(b"\xfe\xff\xff\xff")),
    "encapsulated of known length": ("malformed", lambda: retyped(RLELossless)),
    "header of gigabytes": ("limits", lambda: headless(b"\x09\0\1\x10UN\0\0\xf0\xff\xff\xff")),
    "bomb of undefined lengths": ("limits", lambda: headless(nest(100_000))),
    "more elements than tags": ("limits", lambda: headless(b"\x09\0\x10\x10LO\0\0" * 5000)),
    "stray delimiter": ("malformed", lambda: headless(END_OF_SEQUENCE)),
    "element in a sequence": ("malformed", lambda: headless(b"\x40\0\x55\5SQ\0\0\xff\xff\xff\xff\x40\0\0\0UL\4\0")),
    "undefined length of a text": ("malformed", lambda: headless(b"\x20\0\0\x40UT\0\0\xff\xff\xff\xff")),
    "no value representation": ("malformed", lambda: headless(b"\x20\0\0\x40\1\2\3\4")),
    "group of zero": ("malformed", lambda: headless(b"\0\0\0\0UL\4\0\1\2\3\4")),
}
META = b"\0" * 128 + b"DICM\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"


def retyped(syntax: UID) -> bytes:
    """A native file that claims another transfer syntax."""
    data = plain()
    old = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    assert old in data
    return data.replace(old, b"\x02\0\x10\0UI" + len(value).to_bytes(2, "little") + value)


def headless(elements: bytes | None = None) -> bytes:
    """A data set of these raw elements; None: a data set without a transfer syntax."""
    if elements is None:
        return META[:132] + b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + plain()[-160:]
    return META + elements + plain()[-160:]


def nest(depth: int) -> bytes:
    """Sequences of undefined length within each other."""
    return (b"\x40\0\x55\5SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * depth


def without_pixels() -> bytes:
    """An object whose elements go on beyond where pixels would be."""
    data = describe(counts(1))
    data.add_new(0xFFFCFFFC, "OB", b"\1\2\3\4")
    return save(data, ExplicitVRLittleEndian)


def float_pixels(keyword: str, vr: str) -> bytes:
    """A parametric map."""
    data = describe(counts(1))
    data.add_new(keyword, vr, np.ones(HEIGHT * WIDTH, "f4" if vr == "OF" else "f8").tobytes())
    return save(data, ExplicitVRLittleEndian)


def relength(length: bytes) -> bytes:
    """A native file whose pixel data states this length."""
    data = plain()
    at = data.rindex(b"\xe0\x7f\x10\0OW")
    return data[: at + 8] + length + data[at + 12 :]


@pytest.mark.parametrize("kind", WRONG)
def test_reason(kind: str) -> None:
    """Each kind of bad file is refused with its own reason, whole or in small pieces."""
    reason, make = WRONG[kind]
    data = make()
    assert refusal(data).reason == reason
    parser = DicomParser()
    with pytest.raises(FormatError) as caught:
        for size in range(0, len(data) + 7, 7):
            run(parser, data[:size], Canvas())
    assert caught.value.reason == reason


@pytest.mark.parametrize(("expected", "frames"), [(1, 2), (2, 1)])
def test_unexpected_planes(expected: int, frames: int) -> None:
    """A file with another number of frames than the layout asks for has the wrong shape."""
    assert refusal(plain(frames=frames), DicomParser(planes=expected)).reason == "wrong_shape"
    assert run(DicomParser(planes=frames), plain(frames=frames), Canvas()).complete


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_side_px=HEIGHT - 1),
        Limits(max_plane_bytes=HEIGHT * WIDTH * 2 - 1),
        Limits(max_segment_bytes=HEIGHT * WIDTH * 2 - 1),
        Limits(max_header_bytes=500),
        Limits(max_tags=10),
    ],
)
def test_limits(limits: Limits) -> None:
    """A file beyond any limit is refused as such."""
    assert refusal(plain(), DicomParser(limits)).reason == "limits"


def test_limits_are_inclusive() -> None:
    """A file exactly at the limits of size is read."""
    size = HEIGHT * WIDTH * 2
    limits = Limits(max_side_px=HEIGHT, max_plane_bytes=size, max_segment_bytes=size)
    assert run(DicomParser(limits), plain(), Canvas()).complete


def test_a_bomb_in_a_wanted_sequence_costs_nothing() -> None:
    """Nesting within a value of known length, where an optical path is looked for, is refused and not followed."""
    path = nest(3000)
    head = b"\x48\0\x05\x01SQ\0\0" + (len(path) + 8).to_bytes(4, "little") + b"\xfe\xff\0\xe0"
    element = head + len(path).to_bytes(4, "little") + path
    data = plain()
    at = data.rindex(b"\xe0\x7f\x10\0OW")
    start = time.monotonic()
    assert refusal(data[:at] + element + data[at:]).reason == "malformed"
    assert time.monotonic() - start < 2


def coded(encoded: bytes, syntax: UID = JPEGLSLossless, *, frames: int = 1) -> bytes:
    """A file with an empty offset table and one frame of these bytes."""
    encoded += b"\0" * (len(encoded) % 2)
    return fragmented(b"\xfe\xff\0\xe0" + len(encoded).to_bytes(4, "little") + encoded, syntax, frames=frames)


def fragmented(items: bytes, syntax: UID = JPEGLSLossless, *, frames: int = 1) -> bytes:
    """A file with an empty offset table and these raw items."""
    data = describe(counts(frames))
    data.PixelData = b"\xfe\xff\0\xe0\0\0\0\0" + items
    data["PixelData"].is_undefined_length = True
    return save(data, syntax)


def jpeg_ls(pixels: NDArray[np.uint16]) -> bytes:
    """A JPEG-LS stream by CharLS."""
    return bytes(imagecodecs.jpegls_encode(pixels))


def jpeg_2000(pixels: NDArray[np.uint16]) -> bytes:
    """A reversible JPEG 2000 stream by OpenJPEG."""
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k"))


BAD_FRAMES: dict[str, Callable[[], bytes]] = {
    "JPEG-LS of another size": lambda: coded(jpeg_ls(counts(1)[0, 1:])),
    "JPEG-LS of 8 bit": lambda: coded(bytes(imagecodecs.jpegls_encode(counts(1)[0].astype(np.uint8)))),
    "JPEG-LS without its end": lambda: coded(jpeg_ls(counts(1)[0])[:-4]),
    "JPEG-LS cut short": lambda: coded(jpeg_ls(counts(1)[0])[:-20] + b"\xff\xd9"),
    "JPEG-LS in colour": lambda: coded(bytes(imagecodecs.jpegls_encode(np.stack([counts(1)[0]] * 3, axis=-1)))),
    "JPEG 2000 of another size": lambda: coded(jpeg_2000(counts(1)[0].T), JPEG2000Lossless),
    "JPEG 2000 cut short": lambda: coded(jpeg_2000(counts(1)[0])[:-20] + b"\xff\xd9", JPEG2000Lossless),
    "JPEG 2000 that is JPEG-LS": lambda: coded(jpeg_ls(counts(1)[0]), JPEG2000Lossless),
    "RLE of one byte plane": lambda: coded(b"\1\0\0\0\x40" + b"\0" * 70, RLELossless),
    "RLE cut short": lambda: coded(b"\2\0\0\0\x40\0\0\0\x42" + b"\0" * 55 + b"\xff\x07\xff\x07", RLELossless),
    "RLE too long": lambda: coded(b"\2\0\0\0\x40\0\0\0\x42" + b"\0" * 55 + b"\x81\x07\x81\x07", RLELossless),
    "nothing": lambda: fragmented(b"", RLELossless),
    "table into a fragment": lambda: case("rle-2-basic").data.replace(
        b"\xfe\xff\0\xe0\x08\0\0\0\0\0\0\0", b"\xfe\xff\0\xe0\x08\0\0\0\0\0\0\0\x03", 1
    ),
    "table of another length": lambda: case("rle-2-basic").data.replace(
        b"\xfe\xff\0\xe0\x08\0\0\0\0\0\0\0", b"\xfe\xff\0\xe0\x04\0\0\0\0\0\0\0", 1
    ),
    "end in front of the second frame": lambda: coded(jpeg_ls(counts(2)[0]), frames=2),
    "no item": lambda: fragmented(b"\xfe\xfe\0\xe0\4\0\0\0abcd"),
}


@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_bad_frames(kind: str) -> None:
    """A frame that does not decode to exactly the header's pixels is refused: nothing is filled in."""
    assert refusal(BAD_FRAMES[kind]()).reason == "malformed"


def test_compressed_limits() -> None:
    """A compressed frame that is longer than any frame may be is refused from its length alone."""
    data = fragmented(b"\xfe\xff\0\xe0\xf0\xff\xff\x7f")
    assert refusal(data).reason == "limits"


def test_many_empty_fragments() -> None:
    """Empty fragments without end are refused in bounded time."""
    data = fragmented(b"\xfe\xff\0\xe0\0\0\0\0" * 70_000)
    start = time.monotonic()
    assert refusal(data).reason == "limits"
    assert time.monotonic() - start < 5


MUTABLE = [name for name in CASES if not name.startswith("dcm")]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(MUTABLE), st.data())
def test_mutations(name: str, data: st.DataObject) -> None:
    """Whatever bytes change, a file gives events or a FormatError, and soon."""
    content = bytearray(case(name).data)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(128, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255))
    start = time.monotonic()
    parser = DicomParser(Limits(max_segment_bytes=1 << 20))
    try:
        for size in (len(content) // 2, len(content)):
            run(parser, bytes(content[:size]), Canvas(), settled=True)
    except FormatError as error:
        assert error.reason in FormatError.REASONS
    assert time.monotonic() - start < 5


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]), st.binary(max_size=400)
)
def test_rubbish_data_sets(syntax: UID, rubbish: bytes) -> None:
    """Arbitrary bytes behind a sound beginning give nothing, or a FormatError."""
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = b"\0" * 128 + b"DICM\x02\0\x10\0UI" + len(value).to_bytes(2, "little") + value
    try:
        canvas = run(DicomParser(), meta + rubbish, Canvas(), settled=True)
    except FormatError as error:
        assert error.reason in FormatError.REASONS
    else:
        assert not canvas.complete
