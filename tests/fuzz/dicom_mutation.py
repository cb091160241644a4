"""Damage that knows DICOM: types, lengths, nesting, character sets, fragments, and the headers of coded frames."""

from __future__ import annotations

import re
from random import Random

from pydicom.charset import python_encoding
from pydicom.valuerep import VR

from tests.fuzz.mutation import EXTREMES, Mutator, extreme, mutated

_ELEMENT = re.compile(
    rb"[\x02\x08\x10\x20\x28\x40\x48]\x00..[A-Z]{2}|[\x28\x20\x08\x10]\x00[\x00-\x60]\x00", re.DOTALL
)
_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_END = b"\xfe\xff\x0d\xe0" + bytes(4)
_SEQUENCE_END = b"\xfe\xff\xdd\xe0" + bytes(4)
_PIXELS = re.compile(rb"\xe0\x7f\x10\x00O[WB]|\xe0\x7f\x10\x00(?=\xff{4})|\x7f\xe0\x00\x10OW")
_VRS = (*(vr.encode() for vr in VR), b"XX", b"\0\0", b"ow", b"  ")
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OF", b"OD", b"OL", b"OV", b"SV", b"UV")
_SYNTAXES = (
    b"1.2.840.10008.1.2",
    b"1.2.840.10008.1.2.1",
    b"1.2.840.10008.1.2.2",
    b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.1.98",
    b"1.2.840.10008.1.2.1.99",
    b"1.2.840.10008.1.2.4.50",
    b"1.2.840.10008.1.2.4.57",
    b"1.2.840.10008.1.2.4.70",
    b"1.2.840.10008.1.2.4.80",
    b"1.2.840.10008.1.2.4.81",
    b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.4.91",
    b"1.2.840.10008.1.2.4.201",
    b"1.2.840.10008.1.2.4.202",
    b"9" * 64,
    b"",
)
_CHARSETS = (*(name.encode() for name in python_encoding if name), b"utf-7", b"punycode", b"idna", b"unicode_escape")
_CHARSETS += (
    b"rot13",
    b"base64",
    b"zlib",
    b"undefined",
    b"mbcs",
    b"../../etc",
    b"ISO 2022 IR 87\\ISO 2022 IR 13",
    b"\0",
)
_TEXTS = (
    b"1E999999999",
    b"1e308",
    b"9" * 5000,
    b"-1",
    b"NaN",
    b"2\\2",
    b"../../../etc/passwd",
    b"CH2 CH3 2845",
    b"\xff\xfe\x1b$B\x00",
    b"\\ud800",
    b"a" * 70_000,
    b"xn--" + b"9" * 2000,
    b"-" + b"a" * 3000,
    b"\n\r\t\x00\x7f",
    b"",
)
_TAGS = (
    b"\x08\x00\x05\x00",  # SpecificCharacterSet
    b"\x08\x00\x50\x00",  # AccessionNumber
    b"\x10\x00\x20\x00",  # PatientID
    b"\x20\x00\x13\x00",  # InstanceNumber
    b"\x28\x00\x02\x00",  # SamplesPerPixel
    b"\x28\x00\x08\x00",  # NumberOfFrames
    b"\x28\x00\x10\x00",  # Rows
    b"\x28\x00\x11\x00",  # Columns
    b"\x28\x00\x00\x01",  # BitsAllocated
    b"\x28\x00\x01\x01",  # BitsStored
    b"\x48\x00\x05\x01",  # OpticalPathSequence
    b"\x48\x00\x06\x01",  # OpticalPathDescription
    b"\xe0\x7f\x01\x00",  # ExtendedOffsetTable
    b"\xe0\x7f\x10\x00",  # PixelData
    b"\x09\x00\x10\x00",  # private
)


def element(tag: bytes, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Explicit VR little endian; `length` may lie."""
    size = len(value) if length is None else length
    if vr in _LONG:
        return tag + vr + b"\0\0" + (size % (1 << 32)).to_bytes(4, "little") + value
    return tag + vr + (size % (1 << 16)).to_bytes(2, "little") + value


def _at_element(rng: Random, data: bytearray) -> int | None:
    places = [found.start() for found in _ELEMENT.finditer(data, 132)]
    return rng.choice(places) if places else None


def vr(rng: Random, data: bytearray) -> None:
    """Another type for an element."""
    at = _at_element(rng, data)
    if at is not None:
        data[at + 4 : at + 6] = rng.choice(_VRS)


def length(rng: Random, data: bytearray) -> None:
    """A length that lies."""
    at = _at_element(rng, data)
    if at is None:
        return
    if bytes(data[at + 4 : at + 6]) in _LONG:
        data[at + 8 : at + 12] = extreme(rng, 4).to_bytes(4, "little")
    else:
        data[at + 6 : at + 8] = extreme(rng, 2).to_bytes(2, "little")


def value(rng: Random, data: bytearray) -> None:
    """An extreme number as the value of a short element."""
    at = _at_element(rng, data)
    if at is not None:
        data[at + 8 : at + 10] = (rng.choice(EXTREMES) % (1 << 16)).to_bytes(2, "little")


def _nested(rng: Random, depth: int) -> bytes:
    """Sequences in sequences, of stated or undefined length; deeper than anything that is meant."""
    inside, undefined = b"", rng.random() < 0.5
    for _ in range(depth):
        item = _ITEM + (b"\xff" * 4 if undefined else len(inside).to_bytes(4, "little")) + inside
        if undefined:
            item += rng.choice((_ITEM_END, _ITEM_END, b""))
        value = item + (_SEQUENCE_END if undefined else b"")
        inside = element(b"\x48\x00\x05\x01", rng.choice((b"SQ", b"UN")), value, 0xFFFFFFFF if undefined else None)
    return inside


def insertion(rng: Random, data: bytearray) -> None:
    """An element more: a tag again with another type and text, deep nesting, many of them."""
    at = _at_element(rng, data)
    if at is None:
        return
    kind = rng.randrange(4)
    if kind == 0:
        piece = _nested(rng, rng.choice((1, 5, 33, 100, 900)))
    elif kind == 1:
        piece = element(rng.choice(_TAGS), b"UN", rng.randbytes(8)) * rng.choice((1, 50, 200))
    else:
        text = rng.choice(_TEXTS)
        piece = element(rng.choice(_TAGS), rng.choice(_VRS), text + b" " * (len(text) % 2))
    data[at:at] = piece


def charset(rng: Random, data: bytearray) -> None:
    """Another character set, and a text that it makes something of."""
    at = data.find(b"\x08\x00\x05\x00CS")
    if at >= 0:
        size = int.from_bytes(data[at + 6 : at + 8], "little")
        chosen = rng.choice(_CHARSETS)
        data[at : at + 8 + size] = element(b"\x08\x00\x05\x00", b"CS", chosen + b" " * (len(chosen) % 2))
    if rng.random() < 0.7 and (at := data.find(b"\x10\x00\x20\x00LO")) >= 0:
        size = int.from_bytes(data[at + 6 : at + 8], "little")
        data[at : at + 8 + size] = element(b"\x10\x00\x20\x00", b"UT", rng.choice(_TEXTS))


def syntax(rng: Random, data: bytearray) -> None:
    """Another transfer syntax for the same bytes."""
    at = data.find(b"\x02\x00\x10\x00UI")
    if at >= 0:
        size = int.from_bytes(data[at + 6 : at + 8], "little")
        chosen = rng.choice(_SYNTAXES)
        data[at : at + 8 + size] = element(b"\x02\x00\x10\x00", b"UI", chosen + b"\0" * (len(chosen) % 2))


def text(rng: Random, data: bytearray) -> None:
    """InstanceNumber or NumberOfFrames, which are numbers in letters, as another text."""
    tag = rng.choice((b"\x20\x00\x13\x00IS", b"\x28\x00\x08\x00IS"))
    at = data.find(tag)
    if at >= 0:
        size = int.from_bytes(data[at + 6 : at + 8], "little")
        data[at : at + 8 + size] = element(tag[:4], b"IS", rng.choice(_TEXTS))


def _items(data: bytearray) -> list[tuple[int, int]]:
    """(place of the value, length) of the fragments behind the pixel data's tag."""
    found = None
    for found in _PIXELS.finditer(data):  # noqa: B007 - the last one is the image's own
        pass
    at = data.find(_ITEM, found.start()) if found else -1
    items: list[tuple[int, int]] = []
    while 0 <= at <= len(data) - 8 and data[at : at + 4] == _ITEM and len(items) < 16:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        items.append((at + 8, min(size, len(data) - at - 8)))
        at += 8 + size
    return items


def fragment(rng: Random, data: bytearray) -> None:
    """Fragments: wrong lengths, empty ones, delimiters too early, too many."""
    items = _items(data)
    if not items:
        return
    at, _ = rng.choice(items)
    kind = rng.randrange(4)
    if kind == 0:
        data[at - 4 : at] = extreme(rng, 4).to_bytes(4, "little")
    elif kind == 1:
        data[at - 8 : at - 8] = (_ITEM + bytes(4)) * rng.choice((1, 10, 500))
    elif kind == 2:
        data[at - 8 : at - 8] = rng.choice((_SEQUENCE_END, _ITEM_END, _SEQUENCE_END[:4] + b"\1\0\0\0"))
    else:
        data[at:at] = extreme(rng, 4).to_bytes(4, "little")
        data[at - 4 : at] = (int.from_bytes(data[at - 4 : at], "little") + 4).to_bytes(8, "little")[:4]


def frame(rng: Random, data: bytearray) -> None:
    """What a coded frame holds changes, and its fragment's length with it, so that a decoder sees it."""
    items = _items(data)
    if items:
        at, size = rng.choice(items)
        fresh = mutated(rng, [bytes(data[at : at + size])], (stream_header, stream_end))
        fresh += b"\0" * (len(fresh) % 2)
        data[at - 4 : at + size] = len(fresh).to_bytes(4, "little") + fresh


_MARKERS = re.compile(rb"\xff[\x50-\x64\x90-\x93\xc0-\xcf\xda-\xdd\xf7\xf8]", re.DOTALL)


def stream_header(rng: Random, data: bytearray) -> None:
    """A field behind a marker of JPEG, JPEG-LS or JPEG 2000: sizes, tiles, precincts, levels, tables."""
    places = [found.end() for found in _MARKERS.finditer(data)]
    if places:
        at = rng.choice(places) + rng.randrange(48)
        size = rng.choice((1, 1, 2, 4))
        if at + size <= len(data):
            data[at : at + size] = extreme(rng, size).to_bytes(size, "big")


def stream_end(rng: Random, data: bytearray) -> None:
    """Coded data is cut, and the end marker put behind the cut as if nothing were missing."""
    del data[rng.randrange(len(data)) :]
    data += b"\xff\xd9"


KNOWING: tuple[Mutator, ...] = (vr, length, value, insertion, charset, syntax, text, fragment, frame, frame, frame)
