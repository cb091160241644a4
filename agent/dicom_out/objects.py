"""A spooled result → its DICOM objects as bytes, under the names of their files. Writes nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath

from pydicom.dataset import Dataset

from agent.dicom_out import codes
from agent.dicom_out.grid import grid_of
from agent.dicom_out.naming import Names
from agent.dicom_out.parametric_map import parametric_map
from agent.dicom_out.picture import picture_of
from agent.dicom_out.report import structured_report
from agent.dicom_out.secondary_capture import secondary_capture
from agent.dicom_out.subject import NOTICE, Kind, Subject
from agent.results import SlideFinal
from agent.spool import SpooledResult


@dataclass(frozen=True)
class DicomObject:
    """One object, ready to be written and sent."""

    path: PurePosixPath
    """Below the folder of the results: pseudonyms and the revision, never a name."""
    sop_instance_uid: str
    content: bytes
    """A whole DICOM file (PS3.10)."""


@dataclass(frozen=True)
class _Words:
    subject: Subject
    final: SlideFinal

    title = property(lambda self: self.subject.title)
    what = property(lambda self: self.subject.what)
    is_synthetic = property(lambda self: self.subject.is_synthetic)
    notice = property(lambda self: NOTICE)
    decision = property(lambda self: codes.DECISIONS[self.final.decision])
    reason = property(lambda self: str(codes.reason(self.final.decision_reason).meaning))


def objects_of(result: SpooledResult, names: Names, pixel_um: float) -> list[DicomObject]:
    """Report and, for a slide, picture and parametric map. The same result gives the same bytes.

    Raises NoSlide for a result whose patches contradict it.
    """
    subject = Subject(result, names)
    final = result.final
    if not isinstance(final, SlideFinal):
        return [_object(subject, "report", structured_report(subject, ()))]
    grid = grid_of(result.patches, result.origin, len(final.classes))
    picture = secondary_capture(subject, picture_of(_Words(subject, final), final, grid))
    heat_map = parametric_map(subject, grid, pixel_um, picture)
    report = structured_report(subject, (heat_map, picture))
    made: tuple[tuple[Kind, Dataset], ...] = (("report", report), ("map", heat_map), ("picture", picture))
    return [_object(subject, kind, dataset) for kind, dataset in made]


def _object(subject: Subject, kind: Kind, dataset: Dataset) -> DicomObject:
    final = subject.result.final
    of = final.slide if isinstance(final, SlideFinal) else "patient"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    path = PurePosixPath(final.patient, f"{of}-r{final.revision}-{kind}.dcm")
    return DicomObject(path, str(dataset.SOPInstanceUID), buffer.getvalue())
