"""What the objects of one result have in common: patient, study, series, equipment, times, and how they name others.

Every time is the payload's, so that the same result gives the same bytes on every try.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from agent.dicom_out.codes import SCHEMES
from agent.dicom_out.naming import Names, Uids
from agent.results import SlideFinal
from agent.spool import SpooledResult

Kind = Literal["report", "map", "picture"]

PRODUCT = "spinextract-agent"
NOTICE = "Research use only. Not for diagnosis."
DEIDENTIFICATION = "Keyed pseudonyms (HMAC-SHA256); identity never entered"
_SERIES: dict[Kind, tuple[int, str, str]] = {
    "report": (1, ComprehensiveSRStorage, "SRH report"),
    "map": (2, ParametricMapStorage, "SRH heat map, probabilities"),
    "picture": (3, SecondaryCaptureImageStorage, "SRH heat map, picture"),
}
"""Series number, SOP class and description of each kind of object."""


@dataclass(frozen=True)
class Subject:
    """One result and what its objects are called."""

    result: SpooledResult
    names: Names

    @property
    def uids(self) -> Uids:
        """The UIDs around this result."""
        return Uids(self.result, self.names.real)

    @property
    def is_synthetic(self) -> bool:
        """Whether the profile is the synthetic phantom's."""
        return self.result.final.profile.name == "phantom" or "synthetic" in self.result.origin.intended_use

    @property
    def what(self) -> str:
        """What was imaged, in words."""
        return "Synthetic phantom, not tissue" if self.is_synthetic else "Stimulated Raman histology"

    @property
    def slide(self) -> str:
        """Name of the slide; only for a slide's result."""
        assert self.names.slide is not None
        return self.names.slide

    def instance(self, kind: Kind) -> dict[str, Any]:
        """Series, instance and equipment, as highdicom's constructors take them."""
        number, _, _ = _SERIES[kind]
        origin = self.result.origin
        return {
            "series_instance_uid": self.uids.series(kind),
            "series_number": number,
            "sop_instance_uid": self.uids.instance(kind),
            "instance_number": self.result.final.revision,
            "manufacturer": PRODUCT,
            "manufacturer_model_name": PRODUCT,
            "software_versions": origin.version,
            "device_serial_number": f"{origin.site}/{origin.instrument}",
        }

    def patient(self) -> dict[str, Any]:
        """Study and patient, as highdicom's constructors take them."""
        return {"study_instance_uid": self.uids.study, "patient_id": self.names.patient}

    def reference(self, kind: Kind, event_id: str, slide: str | None = None) -> Dataset:
        """Stands for an object of this study that was, or will be, written for another final."""
        _, sop_class, _ = _SERIES[kind]
        item = Dataset()
        item.StudyInstanceUID = self.uids.study
        item.SeriesInstanceUID = self.uids.series(kind) if slide is None else self.uids.series_of_slide(kind, slide)
        item.SOPClassUID = sop_class
        item.SOPInstanceUID = self.uids.instance(kind, event_id)
        item.PatientID = self.names.patient
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(item, keyword, "")
        item.StudyDate = item.StudyTime = None
        return item

    def finish(self, dataset: Dataset, kind: Kind) -> Dataset:
        """Add what all objects bear, and replace the times that highdicom took from the clock."""
        final = self.result.final
        _, _, description = _SERIES[kind]
        dataset.SpecificCharacterSet = "ISO_IR 100" if self._is_ascii else "ISO_IR 192"
        dataset.TimezoneOffsetFromUTC = "+0000"
        dataset.StudyDate, dataset.StudyTime = _date_and_time(self.result.study_at)
        dataset.StudyID = "SRH"
        dataset.StudyDescription = self.what
        prefix = "Synthetic phantom: " if self.is_synthetic else ""
        dataset.SeriesDescription = f"{prefix}{description}, research only"
        dataset.CodingSchemeIdentificationSequence = SCHEMES
        if not self.names.real:
            dataset.PatientIdentityRemoved = "YES"
            dataset.DeidentificationMethod = DEIDENTIFICATION
        date, time = _date_and_time(final.time)
        for keyword in ("InstanceCreation", "Content"):
            if f"{keyword}Date" in dataset:
                setattr(dataset, f"{keyword}Date", date)
                setattr(dataset, f"{keyword}Time", time)
        for equipment in dataset.get("ContributingEquipmentSequence", ()):
            equipment.ContributionDateTime = f"{date}{time}+0000"
        if "DateOfSecondaryCapture" in dataset:
            dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
        return dataset

    @property
    def _is_ascii(self) -> bool:
        texts = (self.names.patient, self.names.slide or "", self.result.origin.intended_use)
        return all(text.isascii() for text in (*texts, *self.result.final.classes))

    @property
    def title(self) -> str:
        """Slide or patient, and its name."""
        if isinstance(self.result.final, SlideFinal):
            return f"Slide {self.slide}"
        return f"Patient {self.names.patient}"


def _date_and_time(moment: datetime) -> tuple[str, str]:
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y%m%d"), utc.strftime("%H%M%S.%f")
