"""The DICOM objects: valid for real validators, equal to the payload, honest about what they are."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.pm import ParametricMap
from highdicom.sr import ComprehensiveSR, MeasurementReport
from PIL import Image
from pydicom.dataset import Dataset

from agent.dicom_out.codes import SCHEME
from agent.dicom_out.grid import EMPTY, REJECTED, grid_of
from agent.dicom_out.naming import NameBook
from agent.dicom_out.objects import DicomObject, objects_of
from agent.messages import ProfileRef
from agent.spool import SpooledResult
from tests.agent.dicom_out.results import (
    CLASSES,
    EVENT,
    INTERVAL,
    ORIGIN,
    PATIENT,
    PROBABILITIES,
    SLIDE,
    nothing_used,
    patches,
    patient_result,
    slide_result,
)
from tests.brokers import need

SPINE = ProfileRef(name="spine", version=3, sha256="cd" * 32)
REAL = ORIGIN.model_copy(update={"intended_use": "research use only; trained on spinal tumours"})
RESULTS: dict[str, SpooledResult] = {
    "slide": slide_result(),
    "patient": patient_result(),
    "corrected": slide_result(event_id="c" * 32, revision=2, supersedes=EVENT),
    "corrected patient": patient_result(event_id="d" * 32, revision=2, supersedes="f" * 32),
    "nothing used": slide_result(**nothing_used()),
    "no patches": slide_result(**nothing_used()).model_copy(update={"patches": ()}),
    "patient without slides": patient_result(**nothing_used()).model_copy(update={"slides": ()}),
    "other profile": slide_result(profile=SPINE).model_copy(update={"origin": REAL}),
    "not ASCII": slide_result().model_copy(
        update={"origin": ORIGIN.model_copy(update={"intended_use": "nur für Forschung: ≥ 20 Proben"})}
    ),
}


def made(result: SpooledResult) -> list[DicomObject]:
    """The objects under pseudonyms."""
    return objects_of(result, NameBook().names_of(result), 0.5)


def read(item: DicomObject) -> Dataset:
    """As pydicom reads it."""
    return pydicom.dcmread(BytesIO(item.content))


def kinds(result: SpooledResult) -> dict[str, Dataset]:
    """report, map, picture → object."""
    return {item.path.stem.rsplit("-", 1)[1]: read(item) for item in made(result)}


@pytest.fixture(params=RESULTS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """The files of one result, each kind of result in turn."""
    found = []
    for item in made(RESULTS[request.param]):
        path = tmp_path / item.path.name
        path.write_bytes(item.content)
        found.append(path)
    return found


def said_by(program: str, *words: str | Path, package: str = "dcmtk") -> str:
    """What a program says about a file, on either stream; it must not fail."""
    done = subprocess.run([need(program, package), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def content_items(report: Dataset) -> list[Dataset]:
    """Every content item of a report, at every depth."""
    found: list[Dataset] = []
    for item in report.get("ContentSequence", ()):
        found += [item, *content_items(item)]
    return found


def numbers(report: Dataset) -> dict[str, float]:
    """Code value of every number → the number, to the last bit."""
    found: dict[str, float] = {}
    for item in content_items(report):
        if item.ValueType == "NUM":
            measured = item.MeasuredValueSequence[0]
            code = item.ConceptNameCodeSequence[0]
            found[code.CodeValue] = measured.get("FloatingPointValue", float(measured.NumericValue))
    return found


def words(report: Dataset) -> dict[str, str]:
    """Code value of every coded answer → its code value."""
    return {
        item.ConceptNameCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeValue
        for item in content_items(report)
        if item.ValueType == "CODE"
    }


def texts(report: Dataset) -> list[str]:
    """Every text of a report."""
    return [item.TextValue for item in content_items(report) if item.ValueType == "TEXT"]


# Real validators


def test_dciodvfy_finds_no_error(files: list[Path]) -> None:
    """Every object fulfils its IOD; the only warnings are about our private scheme and two newer terms."""
    program = need("dciodvfy", "dicom3tools")
    for path in files:
        done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if "Error" in line] == [], path.name
        warnings = [line for line in lines if "Warning" in line]
        assert [line for line in warnings if SCHEME not in line and "QUANTITY" not in line] == []
        assert any(line in ("ComprehensiveSR", "ParametricMap", "SCImage") for line in lines)


def test_dcmtk_reads_every_object(files: list[Path]) -> None:
    """dcmdump prints each file whole and finds nothing to remark."""
    for path in files:
        said = said_by("dcmdump", "+L", path)
        assert "SOPInstanceUID" in said
        assert [line for line in said.splitlines() if line.startswith(("W:", "E:", "F:"))] == []


def test_dsrdump_reads_every_report(files: list[Path]) -> None:
    """dcmtk's SR parser walks the whole tree without a warning (it cannot check UTF-8, and says so)."""
    report = next(path for path in files if "report" in path.name)
    lines = said_by("dsrdump", report).splitlines()
    remarks = [line for line in lines if line.startswith(("W:", "E:", "F:"))]
    assert [line for line in remarks if "Specific Character Set: ISO_IR 192" not in line] == []
    assert any("Imaging Measurement Report" in line for line in lines)
    assert any("Research use only" in line for line in lines)


def test_dcmtk_renders_the_picture(tmp_path: Path) -> None:
    """dcm2pnm gives the very pixels that were drawn."""
    picture = next(item for item in made(RESULTS["slide"]) if "picture" in item.path.name)
    (tmp_path / "in.dcm").write_bytes(picture.content)
    said_by("dcm2pnm", tmp_path / "in.dcm", tmp_path / "out.ppm")
    with Image.open(tmp_path / "out.ppm") as image:
        rendered = np.asarray(image)
    assert np.array_equal(rendered, read(picture).pixel_array)
    assert len(np.unique(rendered.reshape(-1, 3), axis=0)) > 50


# The numbers are the payload's


def test_the_report_says_the_payloads_numbers() -> None:
    """Probabilities, intervals and counts are equal to the last bit."""
    said = numbers(kinds(RESULTS["slide"])["report"])
    for name, p, (low, high) in zip(CLASSES, PROBABILITIES, INTERVAL, strict=True):
        assert (said[f"P:{name}"], said[f"L:{name}"], said[f"U:{name}"]) == (p, low, high)
    assert (said["SEEN"], said["USED"], said["R:dim"], said["R:saturated"], said["MINIMUM"]) == (42, 35, 5, 2, 20)
    assert (said["OPERATING-POINT"], said["INTERVAL-MASS"], said["REVISION"]) == (0.77, 0.95, 1)
    assert (said["JUDGED"], said["EMBEDDING-FAR"], said["INTENSITY-OUT"], said["DOMAIN-LIMIT"]) == (35, 1, 2, 0.5)


def test_the_report_says_the_payloads_words() -> None:
    """Class, decision, reason, tissue, state and use are coded, the class in a scheme of our own."""
    report = kinds(RESULTS["slide"])["report"]
    said = words(report)
    assert (said["PREDICTED"], said["DECISION"], said["DECISION-REASON"]) == (
        "meningioma",
        "high_confidence",
        "meets_every_rule",
    )
    assert (said["HIGH-CONFIDENCE"], said["LOW-TISSUE"], said["STATE"]) == ("373066001", "373067005", "complete")
    assert (said["INTENDED-USE"], said["ORIGIN"]) == ("113009", "SYNTHETIC")
    schemes = {
        item.ConceptCodeSequence[0].CodingSchemeDesignator
        for item in content_items(report)
        if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeValue in CLASSES
    }
    assert schemes == {SCHEME}
    parameters = texts(report)
    assert "profile_sha256=" + "ab" * 32 in parameters
    assert "engine=openvino bf16" in parameters
    assert "theatre/nio-2" in parameters


def test_what_was_not_computed_is_not_said() -> None:
    """Without a used patch there are no probabilities, no class and no domain, but counts and the decision."""
    report = kinds(RESULTS["nothing used"])["report"]
    assert not [code for code in numbers(report) if code[:2] in ("P:", "L:", "U:")]
    assert "JUDGED" not in numbers(report)
    assert numbers(report)["SEEN"] == 3
    said = words(report)
    assert (said["PREDICTED"], said["DECISION"], said["LOW-TISSUE"]) == ("NONE", "insufficient", "373066001")


def test_highdicom_reads_the_report_as_tid_1500() -> None:
    """The template's own reader finds the observer and the one group of measurements."""
    report = ComprehensiveSR.from_dataset(kinds(RESULTS["slide"])["report"])
    content = report.content
    assert isinstance(content, MeasurementReport)
    (observer,) = content.get_observer_contexts()
    assert observer.observer_identifying_attributes.name == "spinextract-agent"
    (group,) = content.get_image_measurement_groups()
    assert len(group.get_measurements()) == len(numbers(report))
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


# Heat map


def test_the_map_holds_each_patch_once() -> None:
    """One frame per class; cells are the patches' probabilities, rejected and missing ones are marked."""
    heat_map = kinds(RESULTS["slide"])["map"]
    values = np.frombuffer(heat_map.FloatPixelData, "<f4").reshape(4, heat_map.Rows, heat_map.Columns)
    assert values.shape == (4, 7, 6)
    for patch in patches():
        cell = values[:, patch.y // 300, patch.strip * 3 + (patch.x - 50) // 300]
        expected = (REJECTED,) * 4 if isinstance(patch.outcome, str) else patch.outcome
        assert np.array_equal(cell, np.array(expected, np.float32))
    assert (values[:, 6, 5] == EMPTY).all()
    assert (heat_map.FloatPixelPaddingValue, heat_map.FloatPixelPaddingRangeLimit) == (EMPTY, REJECTED)


def test_the_map_says_what_its_frames_mean() -> None:
    """Class of each frame, range of its values, spacing, and no image that nobody has."""
    heat_map = kinds(RESULTS["slide"])["map"]
    mappings = [frame.RealWorldValueMappingSequence[0] for frame in heat_map.PerFrameFunctionalGroupsSequence]
    assert [mapping.LUTLabel for mapping in mappings] == list(CLASSES)
    assert {mapping.DoubleFloatRealWorldValueLastValueMapped for mapping in mappings} == {1.0}
    shared = heat_map.SharedFunctionalGroupsSequence[0]
    assert [float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing] == [0.15, 0.15]
    place = shared.PlanePositionSlideSequence[0]
    assert float(place.XOffsetInSlideCoordinateSystem) == pytest.approx((50 + 150) * 0.0005)
    assert "ReferencedSeriesSequence" not in heat_map and "DerivationImageSequence" not in shared
    frames = ParametricMap.from_dataset(heat_map).get_frames(apply_real_world_transform=False)
    assert np.array_equal(frames, heat_map.pixel_array)
    assert frames.shape == (4, 7, 6)


def test_strips_with_gaps_in_their_numbers_lie_side_by_side() -> None:
    """Some imagers' counters count other files too: the picture has no holes where nothing is missing."""
    gaps = tuple(patch._replace(strip=6 + 5 * patch.strip) for patch in patches())
    assert np.array_equal(grid_of(gaps, ORIGIN, 4).values, grid_of(patches(), ORIGIN, 4).values)


def test_patches_off_the_grid_take_the_nearest_cell() -> None:
    """Finished patches may lie anywhere; none is invented, and hidden ones are counted."""
    some = tuple(
        patch._replace(strip=0, x=x, outcome=(0.7, 0.1, 0.1, 0.1))
        for patch, x in zip(patches()[:4], (1000, 1310, 1590, 1620), strict=True)
    )
    grid = grid_of(tuple(patch._replace(y=40) for patch in some), ORIGIN, 4)
    assert grid.predicted.tolist() == [[0, 0, 0]]
    assert (grid.hidden, grid.left_px, grid.top_px) == (1, 1000, 40)


# Identity, UIDs, times


def test_a_pseudonymous_object_says_so() -> None:
    """Patient ID is the pseudonym, names and birth date are empty, and the method is told."""
    for dataset in kinds(RESULTS["slide"]).values():
        assert (dataset.PatientID, str(dataset.PatientName), dataset.PatientBirthDate) == (PATIENT, "", "")
        assert dataset.PatientIdentityRemoved == "YES"
        assert "pseudonyms" in dataset.DeidentificationMethod


def test_the_same_result_gives_the_same_bytes() -> None:
    """Nothing comes from the clock or from chance, so writing again after a kill changes nothing."""
    for result in RESULTS.values():
        assert made(result) == made(result)


def test_objects_belong_together() -> None:
    """One study a patient, one series a kind and slide, and the report names its heat maps."""
    slide, patient = kinds(RESULTS["slide"]), kinds(RESULTS["patient"])
    everything = [*slide.values(), *patient.values()]
    assert len({dataset.StudyInstanceUID for dataset in everything}) == 1
    assert len({dataset.SeriesInstanceUID for dataset in everything}) == 4
    assert len({dataset.SOPInstanceUID for dataset in everything}) == 4
    assert all(dataset.StudyInstanceUID.startswith("2.25.") for dataset in everything)
    assert {(d.StudyDate, d.StudyTime, d.TimezoneOffsetFromUTC) for d in everything} == {
        ("20260504", "133711.250000", "+0000")
    }
    named = [item.ReferencedSOPSequence[0] for item in content_items(slide["report"]) if item.ValueType == "IMAGE"]
    assert [item.ReferencedSOPInstanceUID for item in named] == [
        slide["map"].SOPInstanceUID,
        slide["picture"].SOPInstanceUID,
    ]
    (study,) = patient["report"].CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (reference,) = series.ReferencedSOPSequence
    assert series.SeriesInstanceUID == slide["report"].SeriesInstanceUID
    assert reference.ReferencedSOPInstanceUID == slide["report"].SOPInstanceUID


@pytest.mark.parametrize(("first", "second"), [("slide", "corrected"), ("patient", "corrected patient")])
def test_a_correction_names_what_it_replaces(first: str, second: str) -> None:
    """A new object in the same series, with the superseded report as its predecessor."""
    old, new = kinds(RESULTS[first])["report"], kinds(RESULTS[second])["report"]
    assert old.SOPInstanceUID != new.SOPInstanceUID
    assert (old.SeriesInstanceUID, old.InstanceNumber, new.InstanceNumber) == (new.SeriesInstanceUID, 1, 2)
    (study,) = new.PredecessorDocumentsSequence
    reference = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert study.StudyInstanceUID == old.StudyInstanceUID
    assert "PredecessorDocumentsSequence" not in old


# Notices


def test_every_object_says_what_it_is_for() -> None:
    """Research use only in texts and descriptions; content qualification RESEARCH where the IOD has it."""
    slide = kinds(RESULTS["slide"])
    assert any("Research use only. Not for diagnosis." in text for text in texts(slide["report"]))
    assert all("research only" in dataset.SeriesDescription for dataset in slide.values())
    assert slide["map"].ContentQualification == "RESEARCH"
    assert slide["picture"].BurnedInAnnotation == "YES"


def phrases(result: SpooledResult) -> str:
    """Every text value of every object of a result."""
    found: list[str] = []

    def visit(_: Dataset, element: Any) -> None:
        if element.VR in ("LO", "SH", "UT", "UC", "LT", "ST"):
            found.append(str(element.value))

    for item in made(result):
        read(item).walk(visit)
    return "\n".join(found).lower()


def test_the_phantom_is_called_synthetic_and_others_are_not() -> None:
    """Each object of the phantom profile says that no tissue was seen; with other weights none says so."""
    for dataset in kinds(RESULTS["slide"]).values():
        assert dataset.StudyDescription == "Synthetic phantom, not tissue"
        assert dataset.SeriesDescription.startswith("Synthetic phantom: ")
    assert "synthetic" in phrases(RESULTS["slide"])
    assert "synthetic" not in phrases(RESULTS["other profile"])


def test_file_names_bear_pseudonyms_and_revision() -> None:
    """Folder per patient; slide, revision and kind in the name."""
    assert [str(item.path) for item in made(RESULTS["corrected"])] == [
        f"{PATIENT}/{SLIDE}-r2-{kind}.dcm" for kind in ("report", "map", "picture")
    ]
