"""UIDs and names: the same each time, valid, and no identity without leave."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from agent.dicom_out.naming import NameBook, NameUnknown, Uids, uid
from agent.dicom_out.objects import DicomObject, objects_of
from agent.errors import AgentError
from agent.identity import Pseudonyms
from tests.agent.dicom_out.results import PATIENT, SLIDE, patient_result, slide_result


def test_uids_are_valid_and_made_of_their_words() -> None:
    """Below 2.25, at most 64 characters, equal for equal words, and no word can pass into its neighbour."""
    assert UID(uid("a", "b")).is_valid and uid("a", "b").startswith("2.25.")
    assert uid("a", "b") == uid("a", "b")
    assert len({uid("a", "b"), uid("ab"), uid("b", "a"), uid("a", "b", "")}) == 4


def lookup(path: Path, **originals: list[str]) -> NameBook:
    """A lookup file as agent.identity writes it."""
    lines = [json.dumps({"pseudonym": name, "kind": "x", "original": words}) for name, words in originals.items()]
    path.write_text(
        "\n".join(
            [*lines, '{"pseudonym": "half'],
        )
        + "\n"
    )
    return NameBook(path)


def test_names_come_from_the_agents_own_lookup_file(tmp_path: Path) -> None:
    """What agent.identity writes is what is read; a half-written last line does no harm."""
    path = tmp_path / "lookup"
    naming = Pseudonyms(bytes(32), path)
    patient, slide = (
        naming.of("patient", "Musterfrau^Erika"),
        naming.of("slide", "Musterfrau^Erika", "NIO 7 \udcff\\x"),
    )
    with path.open("a") as file:
        file.write('{"pseudonym": "ha')
    result = slide_result(patient=patient)
    result = result.model_copy(update={"final": result.final.model_copy(update={"slide": slide})})
    names = NameBook(path).names_of(result)
    assert (names.patient, names.slide, names.real) == ("Musterfrau^Erika", "NIO 7 \ufffd/x", True)


def read(item: DicomObject) -> Dataset:
    """As pydicom reads it."""
    return pydicom.dcmread(BytesIO(item.content))


def test_without_leave_a_result_keeps_its_pseudonyms() -> None:
    """No lookup file, no names."""
    names = NameBook().names_of(slide_result())
    assert (names.patient, names.slide, names.real) == (PATIENT, SLIDE, False)
    assert NameBook().names_of(patient_result()).slide is None


def test_a_name_that_is_missing_is_told(tmp_path: Path) -> None:
    """With leave, a result is never written under a pseudonym instead."""
    with pytest.raises(NameUnknown, match=SLIDE):
        lookup(tmp_path / "lookup", **{PATIENT: ["somebody"]}).names_of(slide_result())
    with pytest.raises(AgentError, match="lookup_file"):
        NameBook(tmp_path / "absent").names_of(slide_result())


def test_named_objects_share_no_uid_with_pseudonymous_ones(tmp_path: Path) -> None:
    """Whoever has both cannot be misled: another study, other series, other instances."""
    result = slide_result()
    named, plain = Uids(result, real=True), Uids(result, real=False)
    assert {named.study, named.specimen, named.series("report"), named.instance("report")}.isdisjoint(
        {plain.study, plain.specimen, plain.series("report"), plain.instance("report")}
    )
    book = lookup(tmp_path / "lookup", **{PATIENT: ["Musterfrau^Erika"], SLIDE: ["Musterfrau^Erika", "S-17"]})
    items = objects_of(result, book.names_of(result), 0.5)
    assert all(
        b"Musterfrau^Erika" in item.content and b"PatientIdentityRemoved" not in item.content for item in items
    )
    assert all("Muster" not in str(item.path) and PATIENT.encode() not in item.content for item in items)
