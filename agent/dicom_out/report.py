"""The Structured Report: TID 1500 with the agent as device observer, the algorithm, every number and the notices.

Decides nothing: every value is the payload's.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SubjectContext,
    SubjectContextSpecimen,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from agent.dicom_out import codes as concepts
from agent.dicom_out.subject import NOTICE, PRODUCT, Subject
from agent.results import PatientFinal, SlideFinal

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")


def structured_report(subject: Subject, images: Sequence[Dataset]) -> Dataset:
    """The report of a slide or patient; `images` are the heat maps of the same result."""
    final = subject.result.final
    content = MeasurementReport(
        observation_context=_observation(subject),
        procedure_reported=concepts.SYNTHETIC_PROCEDURE if subject.is_synthetic else concepts.PROCEDURE,
        imaging_measurements=[_group(subject)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    items = content[0].ContentSequence
    if images:
        items.insert(len(items) - 1, _library(images))  # TID 1500 wants it before the measurements
    items.append(_notices(subject))
    evidence = list(images) or [
        subject.reference("report", event_id, slide) for slide, event_id in subject.result.slides
    ]
    report = ComprehensiveSR(
        # highdicom wants evidence, and takes patient and study from it; what is no evidence is taken out below.
        evidence=evidence or [subject.reference("report", final.event_id)],
        content=content,
        **subject.instance("report"),
        is_complete=True,
        is_final=False,
        previous_versions=None if final.supersedes is None else [subject.reference("report", final.supersedes)],
    )
    if not evidence:
        del report.CurrentRequestedProcedureEvidenceSequence
    return subject.finish(report, "report")


def _observation(subject: Subject) -> ObservationContext:
    origin, uids = subject.result.origin, subject.uids
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=uids.observer,
            name=PRODUCT,
            manufacturer_name=PRODUCT,
            model_name=f"{PRODUCT} {origin.version}",
            serial_number=f"{origin.site}/{origin.instrument}",
            physical_location=origin.site,
        ),
    )
    if subject.names.slide is None:
        return ObservationContext(observer_device_context=observer)
    specimen = SubjectContextSpecimen(uid=uids.specimen, identifier=subject.slide, container_identifier=subject.slide)
    return ObservationContext(
        observer_device_context=observer,
        subject_context=SubjectContext(codes.DCM.Specimen, subject_class_specific_context=specimen),
    )


def _group(subject: Subject) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=subject.uids.tracking, identifier=subject.title),
        algorithm_id=_algorithm(subject),
        measurements=_measurements(subject),
        qualitative_evaluations=[QualitativeEvaluation(name, value) for name, value in _words(subject)],
    )


def _algorithm(subject: Subject) -> AlgorithmIdentification:
    final = subject.result.final
    parameters = {
        "profile_sha256": final.profile.sha256,
        "engine": f"{final.engine.name} {final.engine.precision}",
        "calibration": final.calibration,
        "agent_version": subject.result.origin.version,
        "event_id": final.event_id,
    }
    return AlgorithmIdentification(
        name=final.profile.name,
        version=str(final.profile.version),
        parameters=[f"{name}={value}" for name, value in parameters.items()],
        family=codes.DCM.ArtificialIntelligence,
    )


def _measurements(subject: Subject) -> list[Measurement]:
    final = subject.result.final
    counts = final.counts
    rows: list[tuple[CodedConcept, float | None, Code]] = []
    for name, p, (low, high) in zip(final.classes, final.probabilities or (), final.interval or (), strict=False):
        lower, upper = concepts.bounds(name)
        rows += [
            (concepts.probability(name), p, concepts.RATIO),
            (lower, low, concepts.RATIO),
            (upper, high, concepts.RATIO),
        ]
    rows += [
        (concepts.MASS, final.interval_mass, concepts.RATIO),
        (concepts.OPERATING_POINT, final.operating_point, concepts.RATIO),
        (concepts.SEEN, counts.seen, concepts.PATCHES),
        (concepts.USED, counts.used, concepts.PATCHES),
        *((concepts.rejected(why), number, concepts.PATCHES) for why, number in sorted(counts.rejected.items())),
        (concepts.MINIMUM, final.minimum_patches, concepts.PATCHES),
        (concepts.REVISION, final.revision, concepts.RATIO),
    ]
    if isinstance(final, PatientFinal):
        rows.append((concepts.COUNTED_SLIDES, final.slides, concepts.SLIDES))
    if final.domain is not None:
        domain = final.domain.model_dump()
        rows += [(concept, domain[name], concepts.PATCHES) for name, concept in concepts.DOMAIN.items()]
        rows.append((concepts.DOMAIN_LIMIT, final.domain.limit, concepts.RATIO))
    return [_measurement(name, value, unit) for name, value, unit in rows if value is not None]


def _measurement(name: CodedConcept, value: float, unit: Code) -> Measurement:
    measurement = Measurement(name=name, value=value, unit=unit)
    if isinstance(value, int):
        measurement[0].MeasuredValueSequence[0].NumericValue = str(value)  # else 42 is written as 42.0
    return measurement


def _words(subject: Subject) -> list[tuple[CodedConcept, CodedConcept | Code]]:
    final = subject.result.final
    predicted = concepts.NO_CLASS if final.predicted is None else concepts.own(final.predicted, final.predicted)
    words: list[tuple[CodedConcept, CodedConcept | Code]] = [
        (concepts.PREDICTED, predicted),
        (concepts.DECISION, concepts.decision(final.decision)),
        (concepts.REASON, concepts.reason(final.decision_reason)),
        (concepts.HIGH_CONFIDENCE, concepts.YES if final.high_confidence else concepts.NO),
        (concepts.LOW_TISSUE, concepts.YES if final.low_tissue else concepts.NO),
        (concepts.STATE, concepts.own(final.state, final.state.capitalize())),
        (concepts.INTENDED_USE, codes.DCM.ForResearch),
    ]
    if subject.is_synthetic:
        words.append((concepts.SPECIMEN_ORIGIN, concepts.SYNTHETIC))
    return words


def _library(images: Sequence[Dataset]) -> ContainerContentItem:
    # highdicom's own calls every image a source, and knows no parametric maps.
    group = _container(codes.DCM.ImageLibraryGroup)
    group.ContentSequence = ContentSequence(
        [
            ImageContentItem(
                name=concepts.HEAT_MAP,
                referenced_sop_class_uid=image.SOPClassUID,
                referenced_sop_instance_uid=image.SOPInstanceUID,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
            for image in images
        ]
    )
    library = _container(codes.DCM.ImageLibrary)
    library.ContentSequence = ContentSequence([group])
    return library


def _container(name: Code) -> ContainerContentItem:
    return ContainerContentItem(name=name, relationship_type=RelationshipTypeValues.CONTAINS)


def _notices(subject: Subject) -> ContainerContentItem:
    final = subject.result.final
    texts = [f"{NOTICE} {final.intended_use.capitalize()}.", f"Profile {final.profile.name}: "]
    texts[1] += subject.result.origin.intended_use
    if subject.is_synthetic:
        texts.append("Synthetic phantom, not tissue: the classes are those of drawn textures.")
    if isinstance(final, SlideFinal) and not subject.result.patches:
        texts.append("No patch of this slide is in the ledger: the heat map is empty.")
    container = _container(QUALITATIVE_EVALUATIONS)
    container.ContentSequence = ContentSequence(
        [
            TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=RelationshipTypeValues.CONTAINS)
            for text in texts
        ]
    )
    return container
