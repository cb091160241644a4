"""From the ledger to the spool: every final once it is said, whatever is killed, refused or full."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from agent.ledger import CountedPatch, FinalRow, Ledger, Record
from agent.outlets import DicomOutSettings
from agent.profile_folder import load_profile_folder
from agent.results import PatientFinal, SlideFinal
from agent.settings import Settings
from agent.spool import MOST_WAITING, Spool, SpooledPatch, SpooledResult
from agent.spooler import RETRY_S, Spooler, spooling
from agent.topics import Topics
from models.contract import PatchKey
from models.posterior import FRACTION_BITS
from tests.agent.dicom_out.results import EVENT, MOMENT, ORIGIN, PATIENT, SLIDE, final_fields
from tests.system.processes import PROFILE

SHA = "ab" * 32
ONE = 1 << FRACTION_BITS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger.open(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool that is not there yet."""
    return Spool(tmp_path / "results")


def patch(x: int, slide: str = SLIDE) -> CountedPatch:
    """A used patch, or every third time a rejected one."""
    key = PatchKey(PATIENT, slide, 0, x, 0)
    if x % 3 == 2:
        return CountedPatch(key, None, "dim")
    return CountedPatch(key, (ONE // 4, ONE // 2, ONE // 4, x), None)


def said(scope: Literal["slide", "patient"] = "slide", event_id: str = EVENT, revision: int = 1) -> Record:
    """A final with three patches of its slide and one of another."""
    fields = final_fields(
        event_id=event_id,
        revision=revision,
        supersedes=None if revision == 1 else "e" * 32,
        time=MOMENT + timedelta(days=revision),
    )
    final = SlideFinal(**fields, slide=SLIDE) if scope == "slide" else PatientFinal(**fields, slides=1)
    at = final.time.timestamp()
    row = FinalRow(scope, PATIENT, SLIDE if scope == "slide" else "", revision, event_id, "f", at=at)
    patches = (*map(patch, range(3)), patch(7, "another"))
    return Record(SHA, patches=patches, messages=(Topics().message(final),), finals=(row,))


def read(spool: Spool) -> dict[str, SpooledResult]:
    """The results that wait, by event."""
    return {path.stem: SpooledResult.model_validate_json(path.read_bytes()) for path in spool.waiting()}


def test_a_slides_final_comes_with_its_patches(ledger: Ledger, spool: Spool) -> None:
    """The payload as it was said, the probabilities to the last bit, and no patch of another slide."""
    spooler = Spooler(ledger, spool, ORIGIN)
    record = said()
    ledger.append(record)
    spooler.look()
    result = read(spool)[EVENT]
    assert result.final == SlideFinal.model_validate_json(record.messages[0].payload)
    assert result.patches == (
        SpooledPatch(0, 0, 0, (0.25, 0.5, 0.25, 0.0)),
        SpooledPatch(0, 1, 0, (0.25, 0.5, 0.25, 1 / ONE)),
        SpooledPatch(0, 2, 0, "dim"),
    )
    assert (result.origin, result.slides) == (ORIGIN, ())


def test_a_patients_final_names_the_finals_of_the_slides(ledger: Ledger, spool: Spool) -> None:
    """Slides and their latest event, no patches."""
    spooler = Spooler(ledger, spool, ORIGIN)
    ledger.append(said())
    ledger.append(said("patient", "b" * 32))
    spooler.look(2)
    result = read(spool)["b" * 32]
    assert [tuple(slide) for slide in result.slides] == [(SLIDE, EVENT)]
    assert result.patches == ()


def test_every_result_of_a_patient_names_the_same_beginning(ledger: Ledger, spool: Spool) -> None:
    """The study's date is that of the first final, days later and after a correction too."""
    spooler = Spooler(ledger, spool, ORIGIN)
    ledger.append(said())
    ledger.append(said(event_id="2" * 32, revision=2))
    spooler.look(2)
    results = read(spool)
    assert {result.study_at for result in results.values()} == {MOMENT + timedelta(days=1)}
    assert results["2" * 32].final.supersedes == "e" * 32


def test_what_was_said_before_a_crash_is_spooled_after_it(tmp_path: Path, spool: Spool) -> None:
    """Between the ledger's commit and the spool's file nothing can be lost, whoever starts next."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    Spooler(ledger, spool, ORIGIN)
    ledger.append(said())
    ledger.close()  # as a kill would; SQLite itself survives those (tests of the ledger)
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    Spooler(ledger, spool, ORIGIN.model_copy(update={"site": "moved"})).look()
    assert read(spool)[EVENT].origin == ORIGIN
    ledger.close()


def test_a_result_is_spooled_once(ledger: Ledger, spool: Spool) -> None:
    """Taken out by dicom-out, it does not come back."""
    spooler = Spooler(ledger, spool, ORIGIN)
    ledger.append(said())
    spooler.look()
    spool.remove(spool.waiting()[0])
    spooler.look()
    assert spool.waiting() == []


def test_a_spool_that_cannot_be_written_stops_nothing(ledger: Ledger, spool: Spool) -> None:
    """Told once, tried again after a pause, nothing lost: the ledger keeps what is due."""
    now = [0.0]
    spooler = Spooler(ledger, spool, ORIGIN, clock=lambda: now[0])
    spool.folder.write_text("a file where the folder should be")
    ledger.append(said())
    with capture_logs() as logs:
        for _ in range(3):
            spooler.look()
            now[0] += RETRY_S
    assert [log["event"] for log in logs] == ["results_wait_in_the_ledger"]
    spool.folder.unlink()
    spooler.look()
    assert list(read(spool)) == [EVENT]


def test_more_results_than_one_query_takes(ledger: Ledger, spool: Spool) -> None:
    """Messages wait while a result is written, so a look takes one; the last look before the end takes all."""
    spooler = Spooler(ledger, spool, ORIGIN)
    for number in range(40):
        ledger.append(said(event_id=f"{number:032}", revision=1))
    spooler.look()
    assert [path.stem for path in spool.waiting()] == [f"{0:032}"]
    spooler.look(MOST_WAITING)
    assert len(spool.waiting()) == 40


def test_a_spool_that_nobody_empties_is_bounded(ledger: Ledger, spool: Spool) -> None:
    """A dicom-out that never runs cannot fill the disk: the rest waits in the ledger, is told, and follows later."""
    now = [0.0]
    spooler = Spooler(ledger, spool, ORIGIN, clock=lambda: now[0])
    for number in range(MOST_WAITING - 1):
        spool.folder.mkdir(exist_ok=True)
        (spool.folder / f"{number}.json").touch()
    for event_id in ("a" * 32, "b" * 32):
        ledger.append(said(event_id=event_id))
    with capture_logs() as logs:
        for _ in range(4):
            spooler.look()
            now[0] += RETRY_S
    assert [log["event"] for log in logs] == ["results_wait_in_the_ledger"]
    assert "is dicom-out running?" in logs[0]["reason"]
    assert len(spool.waiting()) == MOST_WAITING
    spool.remove(spool.folder / "0.json")
    spooler.look()
    assert (spool.folder / f"{'b' * 32}.json").exists()


def test_a_patients_final_names_no_report_that_nobody_wrote(ledger: Ledger, spool: Spool) -> None:
    """A slide that was final before the site wanted results as files has no report to refer to."""
    before = FinalRow("slide", PATIENT, "earlier", 1, "9" * 32, "f", at=MOMENT.timestamp())
    ledger.append(Record(SHA, finals=(before,)))
    spooler = Spooler(ledger, spool, ORIGIN)
    ledger.append(said())
    ledger.append(said("patient", "b" * 32))
    spooler.look(2)
    assert [slide.slide for slide in read(spool)["b" * 32].slides] == [SLIDE]


def test_without_a_folder_for_dicom_nothing_is_kept(ledger: Ledger, tmp_path: Path) -> None:
    """The ledger notes no result and no spool appears."""
    settings = Settings(folder=tmp_path / "imager", state_dir=tmp_path, profile=PROFILE)
    look = spooling(settings, load_profile_folder(PROFILE).spec, ledger)
    ledger.append(said())
    look(1)
    assert ledger.results.due(1) == []
    assert not (tmp_path / "results").exists()


def test_the_origin_is_the_settings_and_the_profiles(ledger: Ledger, tmp_path: Path) -> None:
    """Site, instrument, the profile's own words and its patch layout."""
    wanted = DicomOutSettings(folder=tmp_path / "dicom")
    settings = Settings(
        folder=tmp_path / "imager", state_dir=tmp_path, profile=PROFILE, site="theatre", dicom_out=wanted
    )
    spec = load_profile_folder(PROFILE).spec
    look = spooling(settings, spec, ledger)
    ledger.append(said())
    look(1)
    (path,) = (tmp_path / "results").glob("*.json")
    origin = json.loads(path.read_text())["origin"]
    assert (origin["site"], origin["intended_use"]) == ("theatre", spec.intended_use)
    assert (origin["size_px"], origin["stride_px"]) == (300, 900)
    assert datetime.fromisoformat(json.loads(path.read_text())["study_at"]).tzinfo == UTC
