"""From the spool to the folder and the service: nothing lost, nothing doubled, trouble told once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from structlog.testing import capture_logs

from agent.dicom_out.export import Exporter, Outcome
from agent.dicom_out.naming import NameBook
from agent.dicom_out.stow import StowClient
from agent.spool import Spool, SpooledResult
from tests.agent.dicom_out.pacs import Pacs, failed
from tests.agent.dicom_out.results import EVENT, PATIENT, SLIDE, patient_result, slide_result
from tests.brokers import free_port


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """What time.monotonic would say."""
        return self.now


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool with a slide's result and its patient's."""
    spool = Spool(tmp_path / "results")
    put(spool, slide_result())
    put(spool, patient_result())
    for age, path in enumerate(spool.waiting()):
        os.utime(path, (age, age))
    return spool


def put(spool: Spool, result: SpooledResult) -> None:
    """As the agent does."""
    spool.put(result.final.event_id, result.model_dump_json())


def exporter(spool: Spool, stow: StowClient | None = None, clock: Clock | None = None) -> Exporter:
    """An exporter beside the spool."""
    return Exporter(spool, spool.folder.parent / "dicom", NameBook(), pixel_um=0.5, stow=stow, clock=clock or Clock())


def states(outcomes: Iterator[Outcome]) -> list[str]:
    """What became of each result."""
    return [outcome.state for outcome in outcomes]


def written(spool: Spool) -> list[str]:
    """File names in the folder, hidden ones too."""
    return sorted(path.name for path in (spool.folder.parent / "dicom").rglob("*") if path.is_file())


FILES = [*(f"{SLIDE}-r1-{kind}.dcm" for kind in ("map", "picture", "report")), "patient-r1-report.dcm"]


def test_results_become_files_and_leave_the_spool(spool: Spool) -> None:
    """Three objects a slide, one a patient, each whole; one log line a result."""
    with capture_logs() as logs:
        assert states(exporter(spool).turn()) == ["done", "done"]
    assert written(spool) == FILES
    assert spool.waiting() == []
    for path in (spool.folder.parent / "dicom" / PATIENT).iterdir():
        assert pydicom.dcmread(path).PatientID == PATIENT
    assert [(log["event"], log["kind"]) for log in logs] == [
        ("result_written", "slide.final"),
        ("result_written", "patient.final"),
    ]


def test_results_are_sent_and_then_leave_the_spool(spool: Spool) -> None:
    """Each object once."""
    with Pacs() as pacs:
        assert states(exporter(spool, StowClient(pacs.url)).turn()) == ["done", "done"]
    assert (len(pacs.objects), pacs.duplicates, spool.waiting()) == (4, 0, [])


def test_a_service_that_is_away_keeps_results_in_the_spool(spool: Spool) -> None:
    """Files are written at once, sending waits with growing pauses, and the journal hears of it once."""
    clock = Clock()
    with Pacs((503, None), (503, None)) as pacs:
        under_test = exporter(spool, StowClient(pacs.url), clock)
        with capture_logs() as logs:
            for _ in range(3):
                assert states(under_test.turn()) == ["waiting", "waiting"]
        assert written(spool) == FILES
        assert len(pacs.requests) == 1
        clock.now = 5.1
        assert states(under_test.turn()) == ["waiting", "waiting"]
        clock.now = 14.0
        assert states(under_test.turn()) == ["waiting", "waiting"]
        assert len(pacs.requests) == 2
        clock.now = 16.0
        assert states(under_test.turn()) == ["done", "done"]
    assert (len(pacs.objects), pacs.duplicates, spool.waiting()) == (4, 0, [])
    assert [log["event"] for log in logs] == ["results_wait"]


def test_one_result_at_which_the_service_stumbles_holds_up_no_other(spool: Spool) -> None:
    """Some services answer 500 to one object for ever: it is tried again behind the others."""
    clock = Clock()
    with Pacs((500, None)) as pacs:
        under_test = exporter(spool, StowClient(pacs.url), clock)
        assert states(under_test.turn()) == ["waiting", "waiting"]
        pacs.answers.extend([(200, None), (500, None)])
        clock.now = 6.0
        assert states(under_test.turn()) == ["done", "waiting"]
        assert [path.stem for path in spool.waiting()] == [EVENT]
        clock.now = 12.0
        assert states(under_test.turn()) == ["done"]


def test_a_refused_object_is_set_aside_and_the_rest_goes_on(spool: Spool) -> None:
    """Its result is kept with the reason, the other objects are stored, nothing is tried for ever."""
    with Pacs((409, failed(0xC000))) as pacs, capture_logs() as logs:
        assert states(exporter(spool, StowClient(pacs.url)).turn()) == ["refused", "done"]
    assert (len(pacs.requests), len(pacs.objects)) == (4, 3)
    assert spool.waiting() == []
    aside = spool.folder / "refused" / f"{EVENT}.json"
    assert SpooledResult.model_validate_json(aside.read_bytes()) == slide_result()
    assert "report.dcm: failure reason C000" in aside.with_suffix(".reason.txt").read_text()
    assert [log["event"] for log in logs] == ["result_set_aside", "result_written"]
    aside.replace(spool.folder / aside.name)
    assert states(exporter(spool).turn()) == ["done"]


def test_what_no_result_can_be_read_from_is_set_aside(spool: Spool) -> None:
    """Cut, foreign and contradicting files do not stop the others, and no value of theirs is logged."""
    whole = json.loads(slide_result(event_id="9" * 32).model_dump_json())
    wrong = {
        "cut": '{"origin": {"version": "Erika',
        "empty": "",
        "newer": json.dumps({**whole, "unheard": "Erika"}),
        "classes": json.dumps({**whole, "patches": [[0, 0, 0, [0.5, 0.5]]]}),
        "far": json.dumps({**whole, "patches": [[0, 0, 0, "dim"], [9, 10**9, 10**9, "dim"]]}),
    }
    for name, text in wrong.items():
        spool.put(name, text)
    with capture_logs() as logs:
        assert sorted(states(exporter(spool).turn())) == ["done", "done", *["refused"] * 5]
    assert spool.waiting() == []
    reasons = {path.name.split(".")[0]: path.read_text() for path in (spool.folder / "refused").glob("*.txt")}
    assert sorted(reasons) == sorted(wrong)
    assert "unheard: extra_forbidden" in reasons["newer"]
    assert "2 probabilities for 4 classes" in reasons["classes"]
    assert "Erika" not in str(logs) + str(reasons)


def test_a_folder_that_cannot_be_written_keeps_results_in_the_spool(spool: Spool) -> None:
    """Told once, tried again later, and nothing half-written is left."""
    clock = Clock()
    under_test = exporter(spool, clock=clock)
    (spool.folder.parent / "dicom").write_text("a file where the folder should be")
    with capture_logs() as logs:
        assert states(under_test.turn()) == ["waiting", "waiting"]
        assert states(under_test.turn()) == ["waiting", "waiting"]
    assert [log["event"] for log in logs] == ["results_wait"]
    (spool.folder.parent / "dicom").unlink()
    assert states(under_test.turn()) == ["waiting", "waiting"]
    clock.now = 6.0
    assert states(under_test.turn()) == ["done", "done"]
    assert written(spool) == FILES


def test_doing_it_again_writes_the_same_files(spool: Spool) -> None:
    """A result that comes back after a kill (written, sent, not yet removed) changes no byte and no UID."""
    with Pacs() as pacs:
        list(exporter(spool, StowClient(pacs.url)).turn())
        paths = sorted((spool.folder.parent / "dicom" / PATIENT).iterdir())
        before = [(path.read_bytes(), path.stat().st_ino) for path in paths]
        put(spool, slide_result())
        put(spool, patient_result())
        assert states(exporter(spool, StowClient(pacs.url)).turn()) == ["done", "done"]
    assert [(path.read_bytes(), path.stat().st_ino) for path in paths] == before
    assert written(spool) == FILES
    assert len(pacs.objects) == 4


def test_a_lookup_file_that_cannot_be_read_is_waited_for(spool: Spool) -> None:
    """With identity on, nothing is written without the names, and nothing is given up either."""
    clock = Clock()
    lookup = spool.folder.parent / "lookup"
    under_test = Exporter(spool, spool.folder.parent / "dicom", NameBook(lookup), pixel_um=0.5, clock=clock)
    assert states(under_test.turn()) == ["waiting", "waiting"]
    assert written(spool) == []
    names = {PATIENT: ["Musterfrau"]}
    lookup.write_text(
        "".join(json.dumps({"pseudonym": key, "original": value}) + "\n" for key, value in names.items())
    )
    clock.now = 6.0
    with capture_logs() as logs:
        outcomes = {outcome.event_id: outcome.state for outcome in under_test.turn()}
    assert outcomes.pop(EVENT) == "refused" and list(outcomes.values()) == ["done"]
    assert "Musterfrau" not in str(logs)


def test_nobody_at_the_address(spool: Spool) -> None:
    """A service that was never there is waited for."""
    stow = StowClient(f"http://127.0.0.1:{free_port()}/dicom-web")
    assert states(exporter(spool, stow).turn()) == ["waiting", "waiting"]
    assert len(spool.waiting()) == 2
