"""Decides where a DICOM header ends, by walking its elements as their bytes arrive, and in which transfer syntax
it is written. It interprets no value but the transfer syntax and knows nothing of images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydicom.config import IGNORE
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from agent.errors import FormatError
from agent.formats import Limits, Window
from agent.formats.dicom_codecs import CODECS, Codec

PREAMBLE_BYTES = 132
"""128 free bytes and the letters DICM (PS3.10, section 7.1)."""
UNDEFINED = 0xFFFFFFFF
"""Length of a value that ends at its delimiter (PS3.5, section 7.1.1)."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = 0x7FE00010
_OTHER_PIXELS = {0x7FE00008: "32 bit float", 0x7FE00009: "64 bit float"}
_LONG_VRS = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32)
_OPEN_VRS = (None, b"SQ", b"UN", b"OB", b"OW")
_MAX_KEPT_BYTES = 1 << 16
"""A longer element is none that is wanted: what reads the kept ones later must not meet a bomb."""
_MAX_DEPTH = 32
"""Nested sequences; real headers stay below ten."""


ByteOrder = Literal["little", "big"]


class Syntax(NamedTuple):
    """How the data set is encoded (PS3.5, section 10)."""

    implicit: bool
    order: ByteOrder
    codec: Codec | None
    """None for native pixel data."""


class PixelElement(NamedTuple):
    """The top-level element PixelData (7FE0,0010)."""

    tag_at: int
    value_at: int
    length: int
    """Bytes of the value, or UNDEFINED."""
    syntax: Syntax
    certain: bool
    """False when the length field may still be zeros that a preallocated file shows."""
    kept: tuple[tuple[int, int], ...]
    """(offset, length) of the wanted elements in front of it, tag and value."""


_EXPLICIT_LE = Syntax(implicit=False, order="little", codec=None)
_NATIVE = {
    "1.2.840.10008.1.2": Syntax(implicit=True, order="little", codec=None),
    "1.2.840.10008.1.2.1": _EXPLICIT_LE,
    "1.2.840.10008.1.2.2": Syntax(implicit=False, order="big", codec=None),
}


class _Level(NamedTuple):
    """A sequence (its items follow) or an item (its elements follow), both of undefined length."""

    is_sequence: bool
    implicit: bool
    order: ByteOrder


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    vr: bytes | None
    length: int
    value_at: int


class HeaderWalk:
    """Resumes at the element where the bytes ended last time; every element is looked at once."""

    def __init__(self, limits: Limits, wanted: Collection[int]) -> None:
        self._limits = limits
        self._wanted = frozenset(wanted)
        """Top-level tags whose places the walk keeps."""
        self._kept: list[tuple[int, int]] = []
        self._top_at, self._top_tag = 0, 0
        self._at = PREAMBLE_BYTES
        self._elements = 0
        self._levels: list[_Level] = []
        self._stated: Syntax | None = None
        """What the File Meta Information promises for the data set behind it."""
        self._syntax: Syntax | None = None

    def advance(self, window: Window, written: int) -> PixelElement | None:
        """The PixelData element once it is within the `written` bytes; None while more are needed.

        Raises FormatError: `malformed`, `limits`, `unsupported` (transfer syntax), `wrong_type` (float pixels),
        `not_an_image` (no pixel data).
        """
        while (element := self._element(window, written)) is not None:
            if element.tag == _PIXEL_DATA and self._at_top:
                return self._pixels(element, certain=True)
            if not self._take(element, window, written):
                return None
        return None

    def peek(self, window: Window, end: int) -> PixelElement | None:
        """Like `advance`, but only if PixelData is the very next element and with zeros taken as written."""
        if not self._at_top:
            return None
        try:
            element = self._element(window, end)
        except FormatError:  # zeros that are still to be written contradict nothing
            return None
        if element is None or element.tag != _PIXEL_DATA:
            return None
        return self._pixels(element, certain=False)

    @property
    def _at_top(self) -> bool:
        return self._syntax is not None and not self._levels

    def _pixels(self, element: _Element, *, certain: bool) -> PixelElement:
        assert self._syntax is not None
        if element.vr not in (None, b"OW", b"OB"):
            raise self._malformed(f"pixel data of type {element.vr!r}")
        return PixelElement(self._at, element.value_at, element.length, self._syntax, certain, tuple(self._kept))

    def _element(self, window: Window, end: int) -> _Element | None:
        """The header of the element at the current place, or None when it is not all within `end`."""
        if end - self._at < 8:
            return None
        raw = window.read(self._at, min(12, end - self._at))
        if self._syntax is None and raw[:2] != b"\x02\x00":
            self._leave_meta_group()
        implicit, order = self._encoding()
        tag = int.from_bytes(raw[:2], order) << 16 | int.from_bytes(raw[2:4], order)
        vr = None if implicit or tag >> 16 == 0xFFFE else raw[4:6]
        if vr is None:
            return _Element(tag, vr, int.from_bytes(raw[4:8], order), self._at + 8)
        if not (vr.isalpha() and vr.isupper()):
            raise self._malformed(f"{vr!r} is no value representation")
        if vr not in _LONG_VRS:
            return _Element(tag, vr, int.from_bytes(raw[6:8], order), self._at + 8)
        if len(raw) < 12:
            return None
        return _Element(tag, vr, int.from_bytes(raw[8:12], order), self._at + 12)

    def _encoding(self) -> tuple[bool, ByteOrder]:
        level = self._levels[-1] if self._levels else self._syntax or _EXPLICIT_LE
        return level.implicit, level.order

    def _leave_meta_group(self) -> None:
        if self._stated is None:
            raise self._malformed("no transfer syntax in the file meta information")
        self._syntax = self._stated

    def _take(self, element: _Element, window: Window, written: int) -> bool:
        """Step over or into an element; False when its value is needed and not there yet."""
        if element.tag == _TRANSFER_SYNTAX and self._syntax is None:
            if element.value_at + element.length > min(written, self._limits.max_header_bytes):
                self._check_length(element.value_at + element.length)
                return False
            self._stated = _syntax(window.read(element.value_at, element.length))
        elif self._at_top and element.tag >> 16 != 0xFFFE:
            self._check_top_level(element.tag)
        self._elements += 1
        if self._elements > self._limits.max_tags:
            raise FormatError("limits", f"more than {self._limits.max_tags} elements in the header", self._at)
        if not self._levels:
            self._top_at, self._top_tag = self._at, element.tag
        end = element.value_at + (0 if element.length == UNDEFINED else element.length)
        self._check_length(end)
        self._enter_or_leave(element)
        self._at = end
        if self._at_top and self._top_tag in self._wanted and end - self._top_at <= _MAX_KEPT_BYTES:
            self._kept.append((self._top_at, end - self._top_at))
        return True

    def _check_length(self, end: int) -> None:
        if end > self._limits.max_header_bytes:
            raise FormatError("limits", f"header of more than {self._limits.max_header_bytes} bytes", self._at)

    def _check_top_level(self, tag: int) -> None:
        if tag in _OTHER_PIXELS:
            raise FormatError("wrong_type", f"{_OTHER_PIXELS[tag]} pixels, expected 16 bit unsigned", self._at)
        if tag >> 16 == 4:
            raise FormatError("not_an_image", "a DICOMDIR", self._at)
        if tag >> 16 < 8:
            raise self._malformed(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) in the data set")
        if tag > _PIXEL_DATA:  # elements are sorted by tag (PS3.5, section 7.1)
            raise FormatError("not_an_image", "a DICOM object without pixel data", self._at)

    def _enter_or_leave(self, element: _Element) -> None:
        in_sequence = bool(self._levels) and self._levels[-1].is_sequence
        implicit, order = self._encoding()
        if element.tag in (ITEM_END, SEQUENCE_END):
            if not self._levels or in_sequence != (element.tag == SEQUENCE_END) or element.length:
                raise self._malformed("a delimiter without its beginning")
            self._levels.pop()
        elif element.tag >> 16 == 0xFFFE or in_sequence:
            if element.tag != ITEM or not in_sequence:
                raise self._malformed("items and elements of a sequence are mixed up")
            if element.length == UNDEFINED:
                self._push(_Level(False, implicit, order))
        elif element.length == UNDEFINED:
            if element.vr not in _OPEN_VRS or self._syntax is None:
                raise self._malformed("undefined length of an element that cannot have one")
            # An unknown value of undefined length is implicit little endian within (PS3.5, section 6.2.2).
            unknown = element.vr == b"UN"
            self._push(_Level(True, True, "little") if unknown else _Level(True, implicit, order))

    def _push(self, level: _Level) -> None:
        if len(self._levels) >= _MAX_DEPTH:
            raise FormatError("limits", f"sequences nested deeper than {_MAX_DEPTH}", self._at)
        self._levels.append(level)

    def _malformed(self, detail: str) -> FormatError:
        return FormatError("malformed", detail, self._at)


def _syntax(value: bytes) -> Syntax:
    uid = value.decode("ascii", "replace").strip("\0 ")
    if uid in _NATIVE:
        return _NATIVE[uid]
    if uid in CODECS:
        return Syntax(implicit=False, order="little", codec=CODECS[uid])
    name = UID(uid, IGNORE).name if uid.replace(".", "").isdigit() else "that is no UID"  # whatever it is: not told
    raise FormatError("unsupported", f"transfer syntax {name}: only native and lossless ones are read")
