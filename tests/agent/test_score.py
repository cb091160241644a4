"""Promises of `agent score` on phantom slides: the document that other programs read, and the exit codes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import score as scoring
from agent.__main__ import main
from agent.engine import Choice
from agent.engine.eager import EagerEngine
from agent.engine.service import Service
from agent.profile_folder import load_profile_folder
from agent.score import finished_folders
from models.decision import REASONS, WORDS
from models.posterior import FRACTION_BITS
from tests.agent.engine.breaking import Breaking
from tests.logs import logging_undone

PROFILE = Path(__file__).resolve().parents[2] / "configs" / "profiles" / "phantom"
RESULT_KEYS = {
    "n_patches",
    "probabilities",
    "interval",
    "predicted",
    "confidence",
    "decision",
    "decision_reason",
    "domain",
    "high_confidence",
    "low_tissue",
    "counts",
}


@pytest.fixture(autouse=True)
def _undo_logging() -> Iterator[None]:
    with logging_undone():
        yield


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom slides of two patients as scan strips, with their truth."""
    folder = tmp_path_factory.mktemp("phantom") / "slides"
    with logging_undone():
        assert main(["phantom", "--out", str(folder), "--slides", "2", "--layout", "strips-b"]) == 0
    return folder


def score(*paths: Path, out: Path | None = None, more: tuple[str, ...] = ()) -> int:
    """Run the command with the eager engine; its exit code."""
    words = ["score", *map(str, paths), "--profile", str(PROFILE), "--backend", "eager", "--threads", "1", *more]
    return main([*words, "--out", str(out)] if out else words)


@pytest.fixture(scope="module")
def document(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What --out writes about them."""
    out = tmp_path_factory.mktemp("out") / "scores.json"
    with logging_undone():
        assert score(slides, out=out) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


# The document


def test_the_document_has_the_promised_shape(document: dict[str, Any]) -> None:
    """Profile, patches, slides and patients with the keys that the design promises."""
    assert {"profile", "patches", "slides", "patients"} <= set(document)
    assert document["intended_use"].startswith("research use only")
    assert set(document["profile"]) == {"name", "version", "sha256"}
    assert document["engine"] == {"name": "eager", "precision": "fp32"}
    for patch in document["patches"]:
        assert set(patch) == {"patient", "slide", "strip", "x", "y", "probabilities"}
    for slide in document["slides"]:
        assert {"patient", "slide", "state", "strips"} | RESULT_KEYS == set(slide)
    for patient in document["patients"]:
        assert {"patient"} | RESULT_KEYS == set(patient)


def test_slides_are_the_mean_of_their_patches(document: dict[str, Any]) -> None:
    """Each slide's probabilities are the normalised sum of its patches' exact ones, added one by one."""
    for slide in document["slides"]:
        total = [0] * len(document["classes"])
        for patch in document["patches"]:
            if (patch["patient"], patch["slide"]) == (slide["patient"], slide["slide"]):
                for index, probability in enumerate(patch["probabilities"]):
                    total[index] += int(probability * (1 << FRACTION_BITS))
        assert slide["probabilities"] == [part / sum(total) for part in total]
        assert slide["confidence"] == max(slide["probabilities"])
        assert slide["predicted"] == document["classes"][int(np.argmax(slide["probabilities"]))]
        assert slide["high_confidence"] is (slide["confidence"] >= 0.77)


def test_every_patch_is_counted_once(document: dict[str, Any]) -> None:
    """Two strips of 21 patches a slide: seen = used + rejected, and the patches listed are the used ones."""
    listed = Counter((patch["patient"], patch["slide"]) for patch in document["patches"])
    for slide in document["slides"]:
        counts = slide["counts"]
        assert counts["seen"] == 42 == counts["used"] + sum(counts["rejected"].values())
        assert slide["n_patches"] == counts["used"] == listed[slide["patient"], slide["slide"]]
        assert (slide["state"], slide["strips"]) == ("complete", {"done": 2, "expected": 2})
    keys = [tuple(patch[name] for name in ("patient", "slide", "strip", "x", "y")) for patch in document["patches"]]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)


def test_a_patient_of_one_slide_says_what_the_slide_says(document: dict[str, Any]) -> None:
    """Patients are their slides together; with one slide both agree to the bit."""
    slides = {slide["patient"]: slide for slide in document["slides"]}
    assert [patient["patient"] for patient in document["patients"]] == sorted(slides)
    for patient in document["patients"]:
        assert all(patient[key] == slides[patient["patient"]][key] for key in RESULT_KEYS)


def test_every_result_is_decided(document: dict[str, Any]) -> None:
    """Slides of 42 phantom patches are known and complete, yet too small for high confidence; the reason says so."""
    for row in [*document["slides"], *document["patients"]]:
        assert row["decision"] == "final"
        assert row["decision_reason"] == ("interval_too_wide" if row["high_confidence"] else "below_operating_point")
        assert row["domain"]["judged"] == row["n_patches"]
        assert row["domain"]["limit"] == 0.5
        assert max(row["domain"]["embedding_far"], row["domain"]["intensity_outside"]) < 0.25 * row["n_patches"]


def test_phantom_slides_are_recognised(document: dict[str, Any], slides: Path) -> None:
    """The phantom model is right about phantom slides that it never saw."""
    truth = json.loads((slides / "truth.json").read_text())["slides"]
    said = {(slide["patient"], slide["slide"]): slide["predicted"] for slide in document["slides"]}
    assert said == {(slide["patient"], slide["slide"]): slide["class"] for slide in truth}


def test_other_layouts_give_the_same_bits(document: dict[str, Any], tmp_path: Path) -> None:
    """The same pixels as one TIFF mosaic give the identical posterior of the slide."""
    with logging_undone():
        main(["phantom", "--out", str(tmp_path / "mosaics"), "--slides", "1", "--layout", "tiff-mosaic"])
    assert score(tmp_path / "mosaics", out=tmp_path / "out.json") == 0
    (slide,) = json.loads((tmp_path / "out.json").read_text())["slides"]
    expected = next(s for s in document["slides"] if s["patient"] == slide["patient"])
    assert all(slide[key] == expected[key] for key in RESULT_KEYS)


def test_a_file_alone_is_scored_as_in_its_folder(document: dict[str, Any], slides: Path, tmp_path: Path) -> None:
    """Single files of a slide find their patient and slide in the folders above them; what lacks is told."""
    patient = document["slides"][0]["patient"]
    files = [sorted((slides / patient).rglob(f"CH{channel}/*.dcm"))[0] for channel in (2, 3)]
    assert score(*files, out=tmp_path / "out.json") == 0
    part = json.loads((tmp_path / "out.json").read_text())
    (slide,) = part["slides"]
    assert (slide["patient"], slide["state"]) == (patient, "stalled")
    assert slide["strips"] == {"done": 1, "expected": 2}
    strips = {patch["strip"] for patch in part["patches"]}
    whole = [p for p in document["patches"] if p["patient"] == patient and p["strip"] in strips]
    assert part["patches"] == whole
    assert [problem["reason"] for problem in part["problems"]] == ["stalled"]


def test_a_bad_file_is_told_and_the_rest_is_scored(
    document: dict[str, Any], slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut strip: its slide says so, the other slide's result is what it was, exit code 0."""
    shutil.copytree(slides, tmp_path / "slides")
    cut, whole = (slide["patient"] for slide in document["slides"])
    broken = sorted((tmp_path / "slides" / cut).rglob("*.dcm"))[0]
    broken.write_bytes(broken.read_bytes()[:100_000])
    assert score(tmp_path / "slides", out=tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    by_patient = {slide["patient"]: slide for slide in found["slides"]}
    assert by_patient[whole] == next(s for s in document["slides"] if s["patient"] == whole)
    assert by_patient[cut]["state"] == "stalled"
    assert by_patient[cut]["counts"]["rejected"]["truncated"] > 0
    assert by_patient[cut]["counts"]["seen"] == 42
    assert {problem["reason"] for problem in found["problems"]} == {"truncated", "stalled"}
    assert "pixels" in capsys.readouterr().err


# What is printed


def test_json_prints_the_document_without_patches(
    document: dict[str, Any], slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json prints one line of JSON on stdout and nothing else."""
    assert score(slides, more=("--json",)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {key: value for key, value in document.items() if key != "patches"}


def test_the_table_says_what_it_is_for(slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People get a line a slide and a patient, `research use only`, and each decision with its reason in words."""
    assert score(slides) == 0
    out = capsys.readouterr().out
    assert "research use only" in out
    assert out.count("all slides") == 2
    assert f"{WORDS['final']}: {REASONS['interval_too_wide']}" in " ".join(out.split())


# Exit codes


def test_nothing_to_score_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a slide ends with exit code 1 and one line that says where to look."""
    (tmp_path / "notes.txt").write_text("nothing here")
    assert score(tmp_path) == 1
    assert "error: no slide was found" in capsys.readouterr().err


def test_a_broken_profile_fails(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile whose weights were changed ends with exit code 1, and names the file."""
    shutil.copytree(PROFILE, tmp_path / "profile", ignore=shutil.ignore_patterns("engines"))
    weights = tmp_path / "profile" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    assert main(["score", str(slides), "--profile", str(tmp_path / "profile")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: profile") and "weights.safetensors has sha256" in err


def test_an_output_that_cannot_be_written_fails(slides: Path, tmp_path: Path) -> None:
    """--out into a folder that is not there ends with exit code 1."""
    assert score(slides, out=tmp_path / "nowhere" / "out.json") == 1


@pytest.mark.parametrize("words", [["nowhere.dcm"], [".", "--backend", "abacus"]])
def test_wrong_arguments_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there and an engine that nobody knows are wrong arguments."""
    assert main(["score", *words, "--profile", str(PROFILE)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_missing_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a profile or a path argparse explains and exits with 2."""
    with pytest.raises(SystemExit) as ended:
        main(["score", "somewhere"])
    assert ended.value.code == 2
    assert "--profile" in capsys.readouterr().err


# Where files belong


def test_files_are_read_from_the_folder_that_names_them(slides: Path) -> None:
    """A single file is read from the nearest folder above it from which a naming rule knows it."""
    path = sorted(slides.rglob("*.dcm"))[0]
    (folder,) = finished_folders([path])
    assert folder.folder / folder.paths[0] == path
    assert folder.paths[0] == path.relative_to(slides).as_posix()


def test_several_files_of_one_slide_share_a_folder(slides: Path) -> None:
    """Files that belong to one root are read together, so that their channels pair."""
    paths = sorted(slides.rglob("*.dcm"))[:3]
    (folder,) = finished_folders(paths)
    assert len(folder.paths) == 3
    assert len(finished_folders([slides, *paths])) == 1


def test_an_engine_that_breaks_is_replaced_and_the_report_says_so(
    slides: Path,
    document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same answers as of one engine (both are eager), a line on stderr, and both engines in the document."""
    profile = load_profile_folder(PROFILE)
    first = Breaking(EagerEngine(profile, 1, 1), "raises", 20)
    choices = iter([Choice(first, label="first"), Choice(EagerEngine(profile, 1, 1), label="eager")])
    monkeypatch.setattr(scoring, "serve", lambda *_: Service(choices, profile))
    out = tmp_path / "scores.json"
    assert score(slides, out=out) == 0
    found = json.loads(out.read_text())
    (change,) = found.pop("replaced")
    assert (change["engine"], change["by"]) == ("first", "eager") and "engine is broken" in change["reason"]
    assert found == {name: value for name, value in document.items() if name != "replaced"}
    assert document["replaced"] == []
    assert "engine first failed and eager has taken over" in capsys.readouterr().err
