"""Whole files of every syntax, compression and layout that agent.formats reads: what mutations start from.

Their pixels are crops of the synthetic phantom (not tissue), some 20 px a side, so that a case costs little.
"""

from __future__ import annotations

import io
from functools import cache

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from pydicom.uid import (
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from agent.imager import dicom_strip, tiff_two_pages
from models.srh.phantom import PhantomSlide, render
from tests.agent.formats import dicom_cases
from tests.agent.formats.tiff_cases import CODINGS, LAYOUTS, SEGMENTS, write_tiff

Image = NDArray[np.uint16]
ENCAPSULATED_UNCOMPRESSED = UID("1.2.840.10008.1.2.1.98")


@cache
def phantom(height: int = 17, width: int = 19) -> Image:
    """[2, height, width] from the middle of a synthetic slide."""
    return render(PhantomSlide(seed=4, label=1), 700, 500, height, width)


@cache
def tiffs() -> tuple[bytes, ...]:
    """Every layout with every coding and segmentation; byte orders, BigTIFF, a thumbnail; the imager's own."""
    image = phantom()
    files = [
        write_tiff(image, layout, **segments, **coding)
        for layout in LAYOUTS
        for segments in SEGMENTS.values()
        for coding in CODINGS.values()
    ]
    for layout in LAYOUTS:
        files.append(write_tiff(image, layout, order=">", rowsperstrip=4))
        files.append(write_tiff(image, layout, big=True, tile=(16, 16), compression="zlib"))
        files.append(write_tiff(image, layout, order=">", big=True, rowsperstrip=3, compression="lzw"))
    return (*files, write_tiff(image[:1], rowsperstrip=5), _with_thumbnails(image), tiff_two_pages(image))


def _with_thumbnails(image: Image) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as tiff:
        for plane in image:
            tiff.write(plane, photometric="minisblack", metadata=None)
            tiff.write(plane[::4, ::4], photometric="minisblack", metadata=None, subfiletype=1)
    return stream.getvalue()


def encoded(plane_HW: Image, syntax: UID) -> bytes:
    """One frame of one of the syntaxes FRAMED."""
    if syntax == ENCAPSULATED_UNCOMPRESSED:
        return plane_HW.astype("<u2").tobytes()
    if syntax == JPEG2000Lossless:
        return bytes(imagecodecs.jpeg2k_encode(plane_HW, level=0, reversible=True, codecformat="j2k"))
    if syntax in (HTJ2KLossless, HTJ2KLosslessRPCL):
        return bytes(imagecodecs.htj2k_encode(plane_HW))
    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(plane_HW))
    return bytes(imagecodecs.ljpeg_encode(plane_HW, bitspersample=16))


FRAMED = (
    ENCAPSULATED_UNCOMPRESSED,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
"""Encapsulated transfer syntaxes beside RLE."""


def encapsulated(syntax: UID, planes: int, *, table: str = "basic", fragments: int = 1) -> bytes:
    """A DICOM file of one of the syntaxes FRAMED."""
    image = phantom()[:planes]
    frames = [encoded(plane, syntax) for plane in image]
    return dicom_cases.encapsulated(image, frames, syntax, table, fragments).data


@cache
def dicoms() -> tuple[bytes, ...]:
    """Every transfer syntax, one frame and two, with and without offset tables; the imager's own."""
    image = phantom()
    own = dicom_strip(image[0], accession="A-1", container="S-1", instance_number=3, comment="CH2")
    made = [case() for name, case in dicom_cases.CASES.items() if not name.startswith("dcm")]
    files = [own, *(case.data for case in made)]
    for syntax in FRAMED:
        files.append(encapsulated(syntax, 1))
        files.append(encapsulated(syntax, 2, table="none"))
    files.append(encapsulated(JPEGLSLossless, 2, table="extended"))
    files.append(encapsulated(JPEG2000Lossless, 1, fragments=3))
    files.append(files[1].replace(RLELossless.encode(), b"1.2.840.10008.1.2.1.99"))  # deflated: refused by its name
    return tuple(files)
