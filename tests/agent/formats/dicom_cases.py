"""Real DICOM files for the parser's tests, and a canvas that accepts every pixel once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
)

from agent.formats import Complete, Event, Header, Region
from agent.formats.dicom import DicomParser

HEIGHT, WIDTH = 9, 8


class Shown:
    """The first `size` bytes of a file as a Window; holds its reader to the contract."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """All that is shown can be read."""
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Refuses what a real file could not give."""
        assert 0 <= offset <= offset + length <= self.size
        return self._data[offset : offset + length]


class Canvas:
    """Every event in order; fails when one repeats or comes out of order."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.complete = False
        self.planes = np.zeros((0, 0, 0), np.uint16)
        self.times = np.zeros((0, 0, 0), np.uint8)

    def take(self, event: Event) -> None:
        """Accept one event."""
        assert not self.complete, "an event behind Complete"
        match event:
            case Header(height, width, planes):
                assert self.header is None, "a second Header"
                self.header = event
                self.planes = np.zeros((planes, height, width), np.uint16)
                self.times = np.zeros((planes, height, width), np.uint8)
            case Region(plane, y, x, pixels):
                assert pixels.dtype == np.uint16 and pixels.size
                place = (plane, slice(y, y + pixels.shape[0]), slice(x, x + pixels.shape[1]))
                assert self.planes[place].shape == pixels.shape
                self.planes[place] = pixels
                self.times[place] += 1
            case Complete():
                self.complete = True

    def take_all(self, events: Iterator[Event]) -> Canvas:
        """Accept everything up to the end or an error."""
        for event in events:
            self.take(event)
        return self

    @property
    def rows(self) -> int:
        """Rows seen so far, over all planes."""
        return int(self.times[:, :, :1].sum())

    def agrees_with(self, oracle: NDArray[np.uint16]) -> bool:
        """Is every pixel seen so far the oracle's, and none seen twice?"""
        if self.header is None:
            return self.times.size == 0
        seen = self.times == 1
        return bool(self.times.max() <= 1 and np.array_equal(self.planes[seen], oracle[seen]))


@dataclass(frozen=True)
class Case:
    """A finished file and what pydicom reads from it: uint16 [planes, height, width]."""

    data: bytes
    oracle: NDArray[np.uint16]
    native: bool

    @property
    def pixels_at(self) -> int:
        """Where native pixels begin: they are the file's last bytes."""
        return len(self.data) - self.oracle.nbytes


def counts(frames: int) -> NDArray[np.uint16]:
    """Counts with many zero bytes in either half, whose last one has none."""
    rng = np.random.default_rng(frames)
    pixels = rng.choice([0, 1, 255, 256, 4096, 5000, 9000, 65535], (frames, HEIGHT, WIDTH)).astype(np.uint16)
    pixels[:, 3] = 0
    pixels[-1, -1, -1] = 0x1234
    return pixels


def describe(pixels: NDArray[np.uint16]) -> Dataset:
    """A header of about 1 kB with nested sequences of defined and undefined length."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    data.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    data.AccessionNumber = "A-17"
    data.Modality = "OT"
    data.SeriesDescription = "Größe CH2"
    data.PatientID = "P01"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data.InstanceNumber = 6
    data.ReferencedStudySequence = [nested(depth) for depth in (0, 1, 3)]
    data["ReferencedStudySequence"].is_undefined_length = True
    data.SourceImageSequence = [nested(2)]
    data.ContainerIdentifier = "S-2"
    path = Dataset()
    path.OpticalPathDescription = "2845 per cm"
    data.OpticalPathSequence = [path]
    data.Rows, data.Columns = pixels.shape[1:]
    data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    return data


def nested(depth: int) -> Dataset:
    """An item of undefined length that holds `depth` more within, and pixel data of its own (an icon)."""
    item = Dataset()
    item.is_undefined_length_sequence_item = True
    item.ReferencedSOPInstanceUID = "1.2.3.4.5"
    if depth:
        item.PurposeOfReferenceCodeSequence = [nested(depth - 1)]
        item["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    else:
        item.add_new(0x7FE00010, "OW", b"\1\2\3\4")
    return item


def save(data: Dataset, syntax: UID) -> bytes:
    """The data set as a file in this transfer syntax."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def native(syntax: UID, frames: int) -> Case:
    """Uncompressed, as pydicom writes it."""
    pixels = counts(frames)
    data = describe(pixels)
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    data.PixelData = pixels.astype(order).tobytes()
    data["PixelData"].VR = "OW"
    return finished(save(data, syntax), native=True)


def finished(data: bytes, *, native: bool) -> Case:
    """Ask pydicom for the pixels."""
    found = dcmread(BytesIO(data)).pixel_array
    return Case(data, found.reshape(-1, HEIGHT, WIDTH).astype(np.uint16), native)


def rle(frames: int, *, table: str = "basic", fragments: int = 1) -> Case:
    """RLE Lossless, encoded and encapsulated by pydicom."""
    pixels = counts(frames)
    encoded = [
        RLELosslessEncoder.encode(
            np.ascontiguousarray(frame),
            rows=HEIGHT,
            columns=WIDTH,
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=16,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
        )
        for frame in pixels
    ]
    return encapsulated(pixels, encoded, RLELossless, table, fragments)


def jpeg_2000(frames: int, *, fragments: int = 1) -> Case:
    """JPEG 2000, encoded by OpenJPEG. pydicom has no decoder for it here: the source is the oracle."""
    pixels = counts(frames)
    encoded = [bytes(imagecodecs.jpeg2k_encode(f, level=0, reversible=True, codecformat="j2k")) for f in pixels]
    return encapsulated(pixels, encoded, JPEG2000Lossless, "basic", fragments)


def encapsulated(
    pixels: NDArray[np.uint16], encoded: Iterable[bytes], syntax: UID, table: str, fragments: int
) -> Case:
    """Compressed frames in a file, by pydicom."""
    encoded = list(encoded)
    data = describe(pixels)
    if table == "extended":
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(encoded)
    else:
        data.PixelData = encapsulate(encoded, fragments_per_frame=fragments, has_bot=table == "basic")
    data["PixelData"].is_undefined_length = True
    return Case(save(data, syntax), pixels, native=False)


def dcmtk(program: str, *options: str, frames: int = 2) -> Case:
    """Re-written by one of dcmtk's programs; lossless, so pydicom's reading of the source is the oracle."""
    if shutil.which(program) is None:
        message = f"{program} not installed: apt-get install dcmtk"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    source = native(ExplicitVRLittleEndian, frames)
    with TemporaryDirectory() as folder:
        before, after = Path(folder, "before.dcm"), Path(folder, "after.dcm")
        before.write_bytes(source.data)
        subprocess.run([program, *options, before, after], check=True, capture_output=True)
        return Case(after.read_bytes(), source.oracle, native=program == "dcmconv")


CASES: dict[str, Callable[[], Case]] = {
    "explicit-1": lambda: native(ExplicitVRLittleEndian, 1),
    "explicit-2": lambda: native(ExplicitVRLittleEndian, 2),
    "implicit-1": lambda: native(ImplicitVRLittleEndian, 1),
    "implicit-2": lambda: native(ImplicitVRLittleEndian, 2),
    "big-1": lambda: native(ExplicitVRBigEndian, 1),
    "big-2": lambda: native(ExplicitVRBigEndian, 2),
    "dcmconv-implicit": lambda: dcmtk("dcmconv", "+ti", "-e"),
    "dcmconv-explicit": lambda: dcmtk("dcmconv", "+te", "+e"),
    "dcmconv-big": lambda: dcmtk("dcmconv", "+tb", "-e"),
    "rle-1": lambda: rle(1),
    "rle-1-in-3-fragments": lambda: rle(1, fragments=3),
    "rle-2-basic": lambda: rle(2),
    "rle-2-no-table": lambda: rle(2, table="none"),
    "rle-2-extended": lambda: rle(2, table="extended"),
    "j2k-1": lambda: jpeg_2000(1),
    "j2k-2-in-3-fragments": lambda: jpeg_2000(2, fragments=3),
    "dcmcrle": lambda: dcmtk("dcmcrle"),
    "dcmcjpls": lambda: dcmtk("dcmcjpls", frames=1),
    "dcmcjpls-2": lambda: dcmtk("dcmcjpls"),
    "dcmcjpeg-sv1": lambda: dcmtk("dcmcjpeg", "+e1"),
    "dcmcjpeg-process14": lambda: dcmtk("dcmcjpeg", "+el", frames=1),
}


@cache
def case(name: str) -> Case:
    """Build a case once per process."""
    return CASES[name]()


def run(parser: DicomParser, data: bytes, canvas: Canvas, *, settled: bool = False) -> Canvas:
    """Show the parser these bytes once."""
    return canvas.take_all(parser.advance(Shown(data), settled=settled))
