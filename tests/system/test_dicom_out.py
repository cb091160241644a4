"""Agent, broker and `dicom-out` as processes: a synthetic phantom slide becomes DICOM, whoever is killed when."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath
from typing import Any

import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset

from agent.finished import survey
from agent.spool import Spool, SpooledResult
from tests.agent.dicom_out.pacs import Answer, Pacs
from tests.agent.dicom_out.results import patient_result, slide_result
from tests.brokers import Listener, Mosquitto, need, wait_until
from tests.system.processes import ROOT, AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FINAL_S = 90.0
TELLING = "MUSTERFRAU_ERIKA"
"""A patient's name, as the imager's folder."""
TELLING_SLIDE = "SLIDE_LUMBAR_17"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> dict[PurePosixPath, bytes]:
    """The files of one synthetic phantom slide of two strips, in folders with telling names."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "1", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return {
        PurePosixPath(TELLING, TELLING_SLIDE, *file.relative.parts[2:]): (out / file.relative).read_bytes()
        for file in survey(out).placed
    }


def agent_at(home: Path, port: int, **dicom_out: Any) -> AgentProcess:
    """An agent that keeps results for `dicom-out`, and writes the names that it sees into a lookup file."""
    return AgentProcess(
        home,
        port,
        dicom_out={"folder": str(home / "dicom"), **dicom_out},
        identity={"lookup_file": str(home / "lookup")},
    )


def image(agent: AgentProcess, phantom: dict[PurePosixPath, bytes]) -> None:
    """Let the slide arrive, with telling names."""
    for name, content in phantom.items():
        path = agent.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def spooled(agent: AgentProcess) -> list[SpooledResult]:
    """What waits in the spool."""
    paths = sorted((agent.state / "results").glob("*.json"))
    return [SpooledResult.model_validate_json(path.read_bytes()) for path in paths]


def dicom_out(agent: AgentProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """`dicom-out --once`, to its end."""
    return command("agent", "dicom-out", "--config", agent.config, "--once", *words)


def objects(agent: AgentProcess) -> dict[str, Dataset]:
    """The objects in the folder by kind of SOP and what they speak of: `slide report`, `patient report`..."""
    found: dict[str, Dataset] = {}
    for path in (agent.home / "dicom").rglob("*"):
        if path.is_file():
            assert path.suffix == ".dcm", path
            of, _, kind = path.stem.rsplit("-", 2)
            found[f"{'patient' if of == 'patient' else 'slide'} {kind}"] = pydicom.dcmread(path)
    return found


def numbers(report: Dataset) -> dict[str, float]:
    """Code value of every number of a report → the number."""
    found = {}

    def visit(dataset: Dataset, element: Any) -> None:
        if element.keyword == "MeasuredValueSequence":
            measured = element.value[0]
            found[dataset.ConceptNameCodeSequence[0].CodeValue] = measured.get(
                "FloatingPointValue", float(measured.NumericValue)
            )

    report.walk(visit)
    return found


KINDS = {"slide report", "slide map", "slide picture", "patient report"}


def test_a_slide_becomes_dicom_without_a_name(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """From the imager's files to valid objects whose numbers are those on the wire, and no identity in any byte."""
    listener = Listener(broker.port)
    agent = agent_at(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    image(agent, phantom)
    wait_until(lambda: len(listener.bodies("/final")) == 2, "finals of slide and patient", FINAL_S)
    wait_until(lambda: len(spooled(agent)) == 2, "both results in the spool")
    done = dicom_out(agent, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["done", "done"]
    assert spooled(agent) == []
    assert agent.stop() == 0

    found = objects(agent)
    assert found.keys() == KINDS
    for final in listener.bodies("/final"):
        said = numbers(found["slide report" if final["kind"] == "slide.final" else "patient report"])
        assert [said[f"P:{name}"] for name in final["classes"]] == final["probabilities"]
        assert [[said[f"L:{name}"], said[f"U:{name}"]] for name in final["classes"]] == final["interval"]
        assert (said["SEEN"], said["USED"]) == (final["counts"]["seen"], final["counts"]["used"])
    heat_map = found["slide map"].pixel_array
    slide = next(final for final in listener.bodies("/final") if final["kind"] == "slide.final")
    assert (heat_map[0] >= 0).sum() == slide["counts"]["used"]
    assert (heat_map[0] == -2).sum() == sum(slide["counts"]["rejected"].values())

    assert TELLING in (agent.home / "lookup").read_text()
    written = [path for folder in ("dicom", "state/results") for path in (agent.home / folder).rglob("*")]
    for path in written:
        content = path.read_bytes() if path.is_file() else b""
        for word in ("MUSTERFRAU", "ERIKA", "LUMBAR"):
            assert word not in str(path.relative_to(agent.home)).upper()
            assert word.encode() not in content.upper(), path
    assert "MUSTERFRAU" not in done.stdout + done.stderr + agent.log()
    program = need("dciodvfy", "dicom3tools")
    for path in (path for path in written if path.suffix == ".dcm"):
        checked = subprocess.run([program, path], capture_output=True, text=True, check=False)
        assert "Error" not in checked.stdout + checked.stderr


def test_with_leave_of_the_site_the_objects_bear_the_names(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """dicom_out.identity puts the lookup file's names into the objects, and still into no file name and no log."""
    agent = agent_at(tmp_path / "agent", broker.port, identity=True)
    agents.append(agent.start())
    image(agent, phantom)
    wait_until(lambda: len(spooled(agent)) == 2, "both results in the spool", FINAL_S)
    done = dicom_out(agent)
    assert (done.returncode, done.stdout) == (0, "2 results written, 0 not\n"), done.stderr
    found = objects(agent)
    assert {dataset.PatientID for dataset in found.values()} == {TELLING}
    assert found["slide map"].ContainerIdentifier == TELLING_SLIDE
    assert not any("PatientIdentityRemoved" in dataset for dataset in found.values())
    assert "MUSTERFRAU" not in done.stderr + str(list((agent.home / "dicom").rglob("*"))).upper()


class SlowPacs(Pacs):
    """Keeps the third object and never answers it, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck, self.go_on = threading.Event(), threading.Event()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Store it; hold back the third answer."""
        answer = super().take(path, headers, body)
        if len(self.requests) == 3:
            self.stuck.set()
            self.go_on.wait(60)
        return answer


def test_kills_lose_nothing_and_double_nothing(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """kill -9 of the agent before the spool is written, and of dicom-out while it sends: each object exists once."""
    with SlowPacs() as pacs:
        agent = agent_at(tmp_path / "agent", broker.port, stow_url=pacs.url)
        agent.state.mkdir(parents=True)
        blocker = agent.state / "results"
        blocker.write_text("a file where the spool should be")
        listener = Listener(broker.port)
        agents.append(agent.start())
        image(agent, phantom)
        wait_until(lambda: len(listener.bodies("/final")) == 2, "finals of slide and patient", FINAL_S)
        wait_until(lambda: agent.events("results_wait_in_the_ledger"), "the agent says that results wait")
        agent.kill()
        blocker.unlink()
        agent.start()
        wait_until(lambda: len(spooled(agent)) == 2, "the results of the killed agent")

        words = [sys.executable, "-m", "agent", "dicom-out", "--config", str(agent.config)]
        with (tmp_path / "dicom-out.log").open("wb") as log:
            process = subprocess.Popen(words, cwd=ROOT, stderr=log, stdout=log)
        try:
            assert pacs.stuck.wait(60), (tmp_path / "dicom-out.log").read_text()
            second = dicom_out(agent)
            assert second.returncode == 1 and "already running" in second.stderr
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        pacs.go_on.set()
        assert len(spooled(agent)) > 0
        before = {path: path.read_bytes() for path in (agent.home / "dicom").rglob("*.dcm")}
        done = dicom_out(agent)
        assert done.returncode == 0, done.stderr
    assert spooled(agent) == []
    assert objects(agent).keys() == KINDS
    assert {uid: dataset.SOPInstanceUID for uid, dataset in pacs.objects.items()} == {
        dataset.SOPInstanceUID: dataset.SOPInstanceUID for dataset in objects(agent).values()
    }
    assert all(path.read_bytes() == content for path, content in before.items())
    assert agent.stop() == 0


def test_a_full_disk_keeps_the_results(
    phantom: dict[PurePosixPath, bytes], broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Objects that do not fit leave no half file; the results wait and are written when there is space."""
    agent = agent_at(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    image(agent, phantom)
    wait_until(lambda: len(spooled(agent)) == 2, "both results in the spool", FINAL_S)
    assert agent.stop() == 0
    full = subprocess.run(
        [sys.executable, "-m", "agent", "dicom-out", "--config", str(agent.config), "--once"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert full.returncode == 1
    assert "2 of 2 results are not done" in full.stderr and "Traceback" not in full.stderr
    assert len(spooled(agent)) == 2
    assert all(path.suffix == ".dcm" for path in (agent.home / "dicom").rglob("*") if path.is_file())
    assert dicom_out(agent).returncode == 0
    assert objects(agent).keys() == KINDS


def test_it_works_until_it_is_stopped(tmp_path: Path) -> None:
    """Results become files soon after they come, one after the other; SIGTERM ends it with 0."""
    spool = Spool(tmp_path / "state" / "results")
    config = tmp_path / "agent.yaml"
    base = {"folder": str(tmp_path / "imager"), "state_dir": str(tmp_path / "state"), "profile": str(ROOT)}
    config.write_text(yaml.safe_dump({**base, "dicom_out": {"folder": str(tmp_path / "dicom")}}))
    words = [sys.executable, "-m", "agent", "dicom-out", "--config", str(config), "--json"]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=ROOT, stderr=log, stdout=out)
    try:
        for number, result in enumerate((slide_result(), patient_result()), 1):
            spool.put(result.final.event_id, result.model_dump_json())
            wait_until(lambda: spool.waiting() == [], "the result is dealt with", FINAL_S)
            wait_until(lambda n=number: len((tmp_path / "out").read_text().splitlines()) == n, "it says so")  # type: ignore[misc]
        assert len(list((tmp_path / "dicom").rglob("*.dcm"))) == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events == ["result_written", "result_written"]


def test_settings_that_do_not_suffice_are_told(tmp_path: Path) -> None:
    """Exit code 2 and one line: no folder, a token on plain http, a CA file without a service."""
    base = {"folder": str(tmp_path / "imager"), "state_dir": str(tmp_path / "state"), "profile": str(ROOT)}
    wrong = {
        "dicom_out.folder is not set": {},
        "needs an https": {"folder": "out", "stow_url": "http://pacs.example/dicom-web", "stow_token_file": "token"},
        "need stow_url": {"folder": "out", "stow_ca_file": "ca.pem"},
        "stow_url needs folder": {"stow_url": "https://pacs.example/dicom-web"},
    }
    for words, section in wrong.items():
        config = tmp_path / "agent.yaml"
        config.write_text(yaml.safe_dump({**base, "dicom_out": section}))
        done = command("agent", "dicom-out", "--config", config, "--once")
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr and "Traceback" not in done.stderr
