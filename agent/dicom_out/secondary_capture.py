"""The picture of a slide as a Secondary Capture image, for viewers that show nothing else."""

from __future__ import annotations

import numpy as np
from highdicom import SpecimenDescription
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from agent.dicom_out.subject import Subject


def secondary_capture(subject: Subject, rgb: NDArray[np.uint8]) -> Dataset:
    """The Secondary Capture of a slide's picture [rows, columns, 3]."""
    image = SCImage(
        pixel_array=rgb,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="SLIDE",
        container_identifier=subject.slide,
        specimen_descriptions=[SpecimenDescription(specimen_id=subject.slide, specimen_uid=subject.uids.specimen)],
        **subject.patient(),
        **subject.instance("picture"),
    )
    image["PatientOrientation"] = DataElement(0x0020_0020, "CS", None)  # type 2C: not known
    image.ConversionType = "WSD"
    image.BurnedInAnnotation = "YES"
    image.RecognizableVisualFeatures = "NO"
    image.ImageComments = "Research use only. Made of the results of a research network; no picture of the specimen."
    return subject.finish(image, "picture")
