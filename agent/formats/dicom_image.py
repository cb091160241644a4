"""Decides whether a DICOM header describes an image that we read, and which identifiers travel with it.

It must not know how the elements were found or where pixels lie.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from dataclasses import dataclass
from io import BytesIO

from pydicom import Dataset
from pydicom.charset import convert_encodings, python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset

from agent.errors import FormatError
from agent.formats import Limits

TAGS = (
    "AccessionNumber",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "ContainerIdentifier",
    "InstanceNumber",
    "SeriesDescription",
    "OpticalPathDescription",
    "ImageComments",
)
"""Keywords that a naming rule may fall back on."""

_LAYOUT = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "ExtendedOffsetTable",
)
_OPTICAL_PATHS = "OpticalPathSequence"

# What pydicom raises, by its source and by fuzzing, when a value is not what its type promises.
_UNREADABLE: tuple[type[Exception], ...] = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError),
    *(OSError, RecursionError, TypeError, ValueError, struct.error, BytesLengthException),
)

_CODECS = frozenset(
    codecs.lookup(name).name
    for names in python_encoding.values()
    for name in ([names] if isinstance(names, str) else names)
)
"""Python's names of the character sets that DICOM defines (PS3.3, section C.12.1.1.2)."""

WANTED_TAGS = frozenset(
    tag
    for keyword in ("SpecificCharacterSet", *TAGS, *_LAYOUT, _OPTICAL_PATHS)
    if (tag := tag_for_keyword(keyword)) is not None
)
"""Top-level elements that `read_image` needs."""


@dataclass(frozen=True)
class DicomImage:
    """An image of unsigned 16 bit counts with one sample per pixel."""

    height: int
    width: int
    frames: int
    bits_stored: int
    tags: dict[str, str]
    """Those of TAGS that are there and not empty."""
    offsets: tuple[int, ...] | None
    """Extended Offset Table (PS3.3, section C.7.6.3.1.8): one item offset per frame."""

    @property
    def frame_bytes(self) -> int:
        """Decoded size of one frame."""
        return self.height * self.width * 2


def read_image(elements: bytes, limits: Limits, planes: int | None, *, implicit: bool, little: bool) -> DicomImage:
    """Interpret the encoded elements of WANTED_TAGS. `planes` is how many frames must be there, if known.

    Raises FormatError: `malformed` (a needed value is missing or unreadable), `wrong_type` (not one unsigned
    16 bit sample per pixel), `wrong_shape` (frames), `limits`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of values that we do not use
            data = read_dataset(BytesIO(elements), implicit, little)
            _check_character_sets(data)
            image = _describe(data)
    except _UNREADABLE as error:
        # Its words are not told: pydicom quotes the value, which may be somebody's name.
        raise FormatError("malformed", f"a value in the header cannot be read ({type(error).__name__})") from error
    _check_limits(image, limits)
    if image.frames not in (1, 2) or planes not in (None, image.frames):
        raise FormatError("wrong_shape", f"{image.frames} frames, expected {planes or '1 or 2'}")
    return image


def _describe(data: Dataset) -> DicomImage:
    _check_type(data)
    frames = 1 if data.get("NumberOfFrames") is None else _number(data, "NumberOfFrames")
    return DicomImage(
        height=_number(data, "Rows"),
        width=_number(data, "Columns"),
        frames=frames,
        bits_stored=_number(data, "BitsStored"),
        tags=_tags(data),
        offsets=_offsets(data, frames),
    )


def _check_character_sets(data: Dataset) -> None:
    """pydicom takes the name of any Python codec, some of which read for seconds or give what is no text."""
    for item in (data, *(data.get(_OPTICAL_PATHS) or ())[:1]):
        for name in convert_encodings(item.get("SpecificCharacterSet")):
            codec = codecs.lookup(name).name
            if codec not in _CODECS and not codec.startswith("cp"):  # Windows code pages: wrong, and met in the wild
                raise FormatError("unsupported", "a character set that DICOM does not know")


def _number(data: Dataset, keyword: str) -> int:
    value = data.get(keyword)
    if not isinstance(value, int):
        raise FormatError("malformed", f"{keyword} is {'missing' if value is None else 'not one number'}")
    return int(value)


def _check_type(data: Dataset) -> None:
    """One unsigned sample of 16 bits, stored in the low bits: raw counts and nothing else."""
    for keyword, expected in (("SamplesPerPixel", 1), ("BitsAllocated", 16), ("PixelRepresentation", 0)):
        found = _number(data, keyword)
        if found != expected:
            raise FormatError("wrong_type", f"{keyword} is {found}, expected {expected}")
    if data.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise FormatError("wrong_type", "pixels are indices into a palette, not counts")
    stored, high = _number(data, "BitsStored"), _number(data, "HighBit")
    if not 1 <= stored <= 16:
        raise FormatError("malformed", f"BitsStored is {stored} of 16 bits")
    if high != stored - 1:
        raise FormatError("wrong_type", f"HighBit is {high}, expected {stored - 1}")


def _check_limits(image: DicomImage, limits: Limits) -> None:
    if min(image.height, image.width) < 1:
        raise FormatError("wrong_shape", f"image of {image.height} × {image.width} pixels")
    if max(image.height, image.width) > limits.max_side_px:
        raise FormatError("limits", f"image of {image.height} × {image.width} pixels")
    if image.frame_bytes > min(limits.max_plane_bytes, limits.max_segment_bytes):
        raise FormatError("limits", f"frame of {image.frame_bytes} bytes")


def _tags(data: Dataset) -> dict[str, str]:
    values = {keyword: data.get(keyword) for keyword in TAGS}
    if not values["OpticalPathDescription"] and (paths := data.get(_OPTICAL_PATHS)):
        # Whole-slide objects name the optical path within its sequence (PS3.3, section C.8.12.5).
        values["OpticalPathDescription"] = paths[0].get("OpticalPathDescription")
    return {keyword: text for keyword, value in values.items() if value is not None and (text := str(value))}


def _offsets(data: Dataset, frames: int) -> tuple[int, ...] | None:
    table = data.get("ExtendedOffsetTable")
    if not table:
        return None
    if len(table) != 8 * frames:
        raise FormatError("malformed", f"extended offset table of {len(table)} bytes for {frames} frames")
    return struct.unpack(f"<{frames}Q", table)
