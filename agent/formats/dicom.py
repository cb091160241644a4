"""Decides what is complete in the bytes of a growing DICOM file: header, rows or frames, end.

It joins the walk over the header, pydicom's reading of it and the pixel data; it knows no file, clock or naming.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Window
from agent.formats.dicom_header import PREAMBLE_BYTES, UNDEFINED, HeaderWalk, PixelElement
from agent.formats.dicom_image import WANTED_TAGS, DicomImage, read_image
from agent.formats.dicom_pixels import EncapsulatedPixels, NativePixels
from agent.formats.dicom_written import WrittenPrefix

DEFAULT_LIMITS = Limits()


def sniff(first132: bytes) -> bool | None:
    """Is this DICOM (PS3.10: "DICM" behind 128 free bytes)? None with fewer than 132 bytes."""
    if len(first132) < PREAMBLE_BYTES:
        return None
    return first132[128:132] == b"DICM"


class DicomParser:
    """One growing DICOM file with one image, or two frames that are its two planes (frame 0 is CH2).

    Regions are whole rows of native pixel data or whole encapsulated frames, with raw counts: MONOCHROME1 is not
    inverted. `planes` is the number of frames that must be there, None for 1 or 2. Bytes behind the pixel data
    are ignored. Until the file has settled zeros count as written only when a non-zero byte follows, so an image
    that ends with zero bytes completes when it has settled.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, planes: int | None = None) -> None:
        if planes not in (None, 1, 2):
            raise ValueError(f"planes must be 1, 2 or None, not {planes}")
        self._limits = limits
        self._planes = planes
        self._written = WrittenPrefix()
        self._walk = HeaderWalk(limits, WANTED_TAGS)
        self._pixels: NativePixels | EncapsulatedPixels | None = None
        self._completed = False

    def advance(self, window: Window, *, settled: bool) -> Iterator[Event]:
        """Yield what became complete since the last call (see agent.formats.Parser). Raises FormatError."""
        if self._completed:
            return
        written = self._written.reach(window)
        if self._pixels is None:
            header = self._read_header(window, written, settled=settled)
            if header is None:
                return
            yield header
        assert self._pixels is not None
        yield from self._pixels.advance(window, written, settled=settled)
        if self._pixels.complete and not self._completed:
            self._completed = True
            yield Complete()

    def _read_header(self, window: Window, written: int, *, settled: bool) -> Header | None:
        if written < PREAMBLE_BYTES:
            return None
        if not sniff(window.read(0, PREAMBLE_BYTES)):
            raise FormatError("not_an_image", "no DICM at byte 128")
        element = self._walk.advance(window, written)
        if element is None and settled:
            # Only an image that begins with zeros can still hide the last bytes of its length.
            element = self._walk.peek(window, window.size)
        if element is None:
            return None
        image = self._read_image(window, element)
        if not self._length_agrees(image, element):
            return None
        self._pixels = self._open_pixels(image, element)
        return Header(image.height, image.width, image.frames, image.tags)

    def _read_image(self, window: Window, element: PixelElement) -> DicomImage:
        elements = b"".join(window.read(at, length) for at, length in element.kept)
        syntax = element.syntax
        little = syntax.order == "little"
        return read_image(elements, self._limits, self._planes, implicit=syntax.implicit, little=little)

    def _length_agrees(self, image: DicomImage, element: PixelElement) -> bool:
        """False when the length may still be written; raises FormatError when it contradicts the image."""
        native = element.syntax.codec is None
        expected = image.frame_bytes * image.frames if native else UNDEFINED
        if element.length == expected:
            return True
        if not element.certain:
            return False
        found = "undefined length" if element.length == UNDEFINED else f"{element.length} bytes"
        needed = f"{expected} bytes" if native else "undefined length"
        raise FormatError("malformed", f"pixel data of {found}, expected {needed}", element.tag_at)

    def _open_pixels(self, image: DicomImage, element: PixelElement) -> NativePixels | EncapsulatedPixels:
        syntax = element.syntax
        if syntax.codec is None:
            return NativePixels(image, element.value_at, syntax.order)
        return EncapsulatedPixels(image, element.value_at, syntax.codec, self._limits)
