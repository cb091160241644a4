"""The heat map for computers: a Parametric Map with one frame of probabilities per class.

Built by hand on highdicom's modules: its ParametricMap insists on source images, and the agent keeps no UID of the
imager's; a map that pointed at images which nobody has would be worse than one that points at none.
"""

from __future__ import annotations

from highdicom.base import SOPClass
from highdicom.pm import RealWorldValueMapping
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, ParametricMapStorage

from agent.dicom_out.grid import EMPTY, REJECTED, Grid
from agent.dicom_out.subject import Subject

IMAGE_TYPE = ["DERIVED", "PRIMARY", "STATIC", "QUANTITY"]


def parametric_map(subject: Subject, grid: Grid, pixel_um: float, specimen: Dataset) -> Dataset:
    """The Parametric Map of a slide; `specimen` bears the specimen module, `pixel_um` is the imager's pixel."""
    result = SOPClass(
        **subject.patient(),
        **subject.instance("map"),
        sop_class_uid=ParametricMapStorage,
        modality="OT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_qualification="RESEARCH",
    )
    result.FrameOfReferenceUID = subject.uids.frame_of_reference
    result.PositionReferenceIndicator = None
    result.ContentLabel = "SRH_HEATMAP"
    result.ContentDescription = "Probability of each class for each patch; research use only"
    result.ContentCreatorName = None
    result.AcquisitionContextSequence = []
    for keyword in ("ContainerIdentifier", "IssuerOfTheContainerIdentifierSequence", "ContainerTypeCodeSequence"):
        result[keyword] = specimen[keyword]
    result.SpecimenDescriptionSequence = specimen.SpecimenDescriptionSequence
    _add_pixels(result, grid)
    _add_dimension(result, subject)
    _add_place(result, subject, grid, pixel_um)
    classes = subject.result.final.classes
    result.PerFrameFunctionalGroupsSequence = [_frame_groups(k + 1, name) for k, name in enumerate(classes)]
    return subject.finish(result, "map")


def _add_pixels(result: Dataset, grid: Grid) -> None:
    result.ImageType = IMAGE_TYPE
    result.NumberOfFrames, result.Rows, result.Columns = grid.values.shape
    result.SamplesPerPixel, result.BitsAllocated = 1, 32
    result.PhotometricInterpretation = "MONOCHROME2"
    result.PresentationLUTShape, result.PixelPresentation = "IDENTITY", "MONOCHROME"
    result.LossyImageCompression = "00"
    result.BurnedInAnnotation = result.RecognizableVisualFeatures = "NO"
    result.FloatPixelPaddingValue, result.FloatPixelPaddingRangeLimit = EMPTY, REJECTED
    result.FloatPixelData = grid.values.astype("<f4").tobytes()


def _add_dimension(result: Dataset, subject: Subject) -> None:
    organization, index = Dataset(), Dataset()
    organization.DimensionOrganizationUID = index.DimensionOrganizationUID = subject.uids.part("dimension")
    index.DimensionIndexPointer = tag_for_keyword("LUTLabel")
    index.FunctionalGroupPointer = tag_for_keyword("RealWorldValueMappingSequence")
    index.DimensionDescriptionLabel = "Class"
    result.DimensionOrganizationSequence = [organization]
    result.DimensionIndexSequence = [index]


def _add_place(result: Dataset, subject: Subject, grid: Grid, pixel_um: float) -> None:
    groups, frame_type, transform, window, measures, position, origin = (Dataset() for _ in range(7))
    frame_type.FrameType = IMAGE_TYPE
    transform.RescaleIntercept, transform.RescaleSlope, transform.RescaleType = 0, 1, "US"
    window.WindowCenter, window.WindowWidth = 0.5, 1
    size_px = subject.result.origin.size_px
    cell_mm = round(size_px * pixel_um / 1000, 6)
    measures.PixelSpacing = [cell_mm, cell_mm]
    measures.SliceThickness = 0.001  # one optical section; the standard wants a number above 0
    left_mm, top_mm = (round((edge + size_px / 2) * pixel_um / 1000, 6) for edge in (grid.left_px, grid.top_px))
    for item in (position, origin):
        item.XOffsetInSlideCoordinateSystem, item.YOffsetInSlideCoordinateSystem = left_mm, top_mm
    position.ZOffsetInSlideCoordinateSystem = 0
    position.ColumnPositionInTotalImagePixelMatrix = position.RowPositionInTotalImagePixelMatrix = 1
    result.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]
    result.TotalPixelMatrixRows, result.TotalPixelMatrixColumns = grid.values.shape[1:]
    result.TotalPixelMatrixOriginSequence = [origin]
    groups.ParametricMapFrameTypeSequence = [frame_type]
    groups.PixelValueTransformationSequence = [transform]
    groups.FrameVOILUTSequence = [window]
    groups.PixelMeasuresSequence = [measures]
    groups.PlanePositionSlideSequence = [position]
    result.SharedFunctionalGroupsSequence = [groups]


def _frame_groups(number: int, name: str) -> Dataset:
    groups, content = Dataset(), Dataset()
    content.DimensionIndexValues = [number]
    content.FrameLabel = name[:64]
    groups.FrameContentSequence = [content]
    groups.RealWorldValueMappingSequence = [
        RealWorldValueMapping(
            lut_label=name[:16],
            lut_explanation=f"Probability of class {name}"[:64],
            unit=codes.UCUM.NoUnits,
            value_range=(0.0, 1.0),
            quantity_definition=codes.DCM.Probability,
        )
    ]
    return groups
