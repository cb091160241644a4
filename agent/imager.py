"""A synthetic imager: writes slides in the imager's formats and namings, growing chunk by chunk at its pace.

Decides names, headers and pace; pixels come from the caller, and nothing here reads a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, get_args

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from models.srh.config import SrhInput
from models.srh.patches import steps

Pixels = NDArray[np.uint16]
Layout = Literal["strips-a", "strips-b", "strips-c", "tiff-strip", "tiff-mosaic", "opensrh"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

GEOMETRY = SrhInput()
"""The published geometry: 1000 px wide strips, trimmed by 50 px on either side, 300 px patches."""
FIELD_OF_VIEW_PX = 1000
BYTES_PER_S = 6000 * 1000 * 2 * 2 / 16
"""The imager's pace: a strip pair of 6000 rows, 24 MB in both channels, in 16 s."""


Wait = Callable[[float], bool]
"""Waits for some seconds and returns True to cancel."""


class PlannedFile(NamedTuple):
    """One file that the imager will write; files with the same `group` grow together."""

    relative: PurePosixPath
    content: bytes
    group: int
    """Index of the scan strip; of the file itself where files do not grow together."""


def dicom_strip(
    plane_HW: Pixels, *, accession: str, container: str, instance_number: int, series: str = "", comment: str = ""
) -> bytes:
    """One channel of a scan strip as the imager's DICOM: single frame, explicit VR little endian, uncompressed.

    `plane_HW` uint16 [H, W]; `accession` is the study's number, `container` the slide's barcode, `comment` may name
    the channel. Equal arguments give equal bytes. About 1 kB of header (SRH facts; the SOP class is our choice).
    """
    identity = [accession, container, series, str(instance_number), hashlib.sha256(plane_HW.tobytes()).hexdigest()]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(*identity)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyDate = dataset.StudyTime = ""
    dataset.AccessionNumber = _fitting(accession, 16)
    dataset.Modality = "OT"
    dataset.ConversionType = "SYN"
    dataset.Manufacturer = "Synthetic imager"
    dataset.ManufacturerModelName = "SRH phantom"
    dataset.StudyDescription = "Stimulated Raman histology, synthetic phantom, not tissue"
    dataset.SeriesDescription = "Scan strips"
    dataset.ReferringPhysicianName = dataset.PatientName = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.PatientID = _fitting(accession, 64)
    dataset.StudyInstanceUID = _uid("study", accession)
    dataset.SeriesInstanceUID = _uid("series", accession, container, series)
    dataset.StudyID = dataset.PatientOrientation = ""
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = instance_number
    if comment:
        dataset.ImageComments = comment
    dataset.ContainerIdentifier = _fitting(container, 64)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane_HW.shape
    dataset.PixelSpacing = [0.0005, 0.0005]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = np.ascontiguousarray(plane_HW, dtype="<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def tiff_two_pages(x_2HW: Pixels) -> bytes:
    """An uncompressed TIFF of uint16 [2, H, W], page 0 = CH2 and page 1 = CH3, as tifffile writes it."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for plane_HW in x_2HW:
            # One IFD per page, each followed by its pixels; `metadata=None` keeps the file free of descriptions.
            writer.write(plane_HW, photometric="minisblack", metadata=None, software=False)
    return buffer.getvalue()


def trimmed(strip_2HW: Pixels) -> Pixels:
    """A scan strip without the columns that it shares with its neighbours: uint16 [2, H, 900]."""
    return strip_2HW[:, :, GEOMETRY.trim_px : strip_2HW.shape[2] - GEOMETRY.trim_px]


def plan(strips: Iterable[Pixels], layout: Layout, patient: str, slide: str) -> Iterator[PlannedFile]:
    """The files of one slide, in the order in which the imager writes them.

    `strips` are its scan strips, uint16 [2, H, 1000], taken one by one. In strips-c the slide must be a number.
    """
    if layout == "tiff-mosaic":
        yield mosaic_file(np.concatenate([trimmed(strip_2HW) for strip_2HW in strips], axis=2), patient, slide)
    elif layout == "opensrh":
        yield from patch_files((trimmed(strip_2HW) for strip_2HW in strips), patient, slide)
    else:
        for index, strip_2HW in enumerate(strips):
            yield from _strip_files(strip_2HW, layout, patient, slide, index)


def columns_of(mosaic_2HW: Pixels) -> Iterator[Pixels]:
    """The trimmed scan strips of a mosaic, uint16 [2, H, 900] each; raises ValueError for another width."""
    width_px = GEOMETRY.strip_width_px - 2 * GEOMETRY.trim_px
    if mosaic_2HW.shape[2] % width_px:
        raise ValueError(f"a mosaic {mosaic_2HW.shape[2]} px wide is not made of {width_px} px wide scan strips")
    for left in range(0, mosaic_2HW.shape[2], width_px):
        yield mosaic_2HW[:, :, left : left + width_px]


def mosaic_file(mosaic_2HW: Pixels, patient: str, slide: str) -> PlannedFile:
    """A whole mosaic, uint16 [2, H, 900 · strips], as one TIFF."""
    return PlannedFile(PurePosixPath(patient, slide, "mosaic.tif"), tiff_two_pages(mosaic_2HW), 0)


def patch_files(columns: Iterable[Pixels], patient: str, slide: str) -> Iterator[PlannedFile]:
    """Patches in the OpenSRH layout from trimmed scan strips, uint16 [2, H, 900].

    Names are `ix_jx_iy_jy`: the field of view's origin (ix, jx) in multiples of 1000, and the place (iy, jy) in it.
    """
    folder = PurePosixPath("studies", patient, slide, "patches")
    size, group = GEOMETRY.size_px, 0
    for index, column_2HW in enumerate(columns):
        for y in steps(column_2HW.shape[1], size):
            for x in steps(column_2HW.shape[2], size):
                top, inner = FIELD_OF_VIEW_PX * (y // FIELD_OF_VIEW_PX), y % FIELD_OF_VIEW_PX
                name = f"{patient}-{slide}-{FIELD_OF_VIEW_PX * index}_{top}_{x}_{inner}.tif"
                content = tiff_two_pages(column_2HW[:, y : y + size, x : x + size])
                yield PlannedFile(folder / name, content, group)
                group += 1


def _strip_files(strip_2HW: Pixels, layout: Layout, patient: str, slide: str, index: int) -> Iterator[PlannedFile]:
    if layout == "tiff-strip":
        relative = PurePosixPath(patient, slide, f"strip_{index}.tif")
        yield PlannedFile(relative, tiff_two_pages(strip_2HW), index)
        return
    for channel, plane_HW in enumerate(strip_2HW):
        # Naming B counts from 6 in steps of 5, as other objects lie between; A and C count the files from 0.
        number = 6 + 5 * index + channel if layout == "strips-b" else 2 * index + channel
        content = dicom_strip(
            plane_HW, accession=patient, container=f"{patient}-{slide}", instance_number=number + 1, series=slide
        )
        if layout == "strips-a":
            relative = PurePosixPath(f"{patient}_{slide}_{number}.dcm")
        elif layout == "strips-b":
            relative = PurePosixPath(patient, slide, "strips", f"CH{2 + channel}", f"IMG{number:05d}.dcm")
        else:
            digest = hashlib.sha256(content).hexdigest()[:8]
            relative = PurePosixPath(patient, f"img{slide}_{number}_{digest}.dcm")
        yield PlannedFile(relative, content, index)


def _uid(*identity: str) -> UID:
    return generate_uid(entropy_srcs=list(identity))


def _fitting(text: str, limit: int) -> str:
    """`text` where a DICOM value of at most `limit` characters holds it, its digest otherwise."""
    return text if len(text) <= limit else hashlib.sha256(text.encode()).hexdigest()[:limit]


def sleep(seconds: float) -> bool:
    """Wait without a way to cancel."""
    time.sleep(seconds)
    return False


def write_growing(
    folder: Path,
    files: Sequence[tuple[PurePosixPath, bytes]],
    duration_s: float,
    *,
    chunk_kib: int = 64,
    wait: Wait = sleep,
    clock: Callable[[], float] = time.monotonic,
    rename: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> bool:
    """Write files that grow together, in step and at an even pace, so that the last byte lands after `duration_s`.

    The largest file grows by `chunk_kib`, the others in proportion. `wait(seconds)` returns True to cancel, which
    leaves the files cut, as a stopped imager would; then False is returned. With `rename` a file is written as
    `.NAME.part` and renamed when whole. `progress` is told the number of bytes just written.
    Raises FileExistsError for a file that is already there; other OSErrors pass.
    """
    rounds = max(1, *(-(-len(content) // (chunk_kib * 1024)) for _, content in files))
    for taken in (folder / relative for relative, _ in files if (folder / relative).exists()):
        raise FileExistsError(f"{taken} is already there")
    start = clock()
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(_create(folder / relative, rename)) for relative, _ in files]
        for step in range(1, rounds + 1):
            behind_s = start + duration_s * step / rounds - clock()
            if behind_s > 0 and wait(behind_s):
                return False
            for sink, (_, content) in zip(sinks, files, strict=True):
                part = memoryview(content)[len(content) * (step - 1) // rounds : len(content) * step // rounds]
                sink.write(part)
                progress(len(part))
    if rename:
        for relative, _ in files:
            _part(folder / relative).rename(folder / relative)
    return True


def _create(path: Path, rename: bool) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return (_part(path) if rename else path).open("xb", buffering=0)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
