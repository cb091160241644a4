"""Promises of `agent phantom`: reproducible slides with their truth, in a new folder only."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agent.errors import SettingsError
from agent.finished import strips_of, survey
from agent.phantom_command import FIRST_SEED, add_arguments, main, named_phantoms
from models.contract import SlideKey
from models.srh.phantom import CLASSES, PhantomSlide, strip
from train.recipes import EVALUATION_FIRST_SEED


def run(*arguments: str) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(arguments))


def test_slides_are_the_phantoms_and_truth_says_so(tmp_path: Path) -> None:
    """The files hold the phantom's strips, and truth.json names each slide's class and seed."""
    assert run("--out", str(tmp_path / "new"), "--slides", "1", "--seed", "5", "--layout", "strips-b") == 0
    truth = json.loads((tmp_path / "new" / "truth.json").read_text())
    assert truth["phantom"] is True and "not tissue" in truth["note"]
    assert truth["classes"] == list(CLASSES)
    (entry,) = truth["slides"]
    assert entry["class"] == CLASSES[entry["label"]] and (entry["seed"], entry["height_px"]) == (5, 2000)
    files = survey(tmp_path / "new").slides()[SlideKey(entry["patient"], entry["slide"])]
    source = PhantomSlide(5, entry["label"])
    for index, whole in enumerate(strips_of(tmp_path / "new", files)):
        np.testing.assert_array_equal(whole, strip(source, index))


def test_opensrh_comes_with_its_metadata(tmp_path: Path) -> None:
    """The OpenSRH layout has meta/opensrh.json with every patch by its path from the root."""
    assert run("--out", str(tmp_path), "--slides", "1", "--layout", "opensrh") == 0
    meta = json.loads((tmp_path / "meta" / "opensrh.json").read_text())
    ((patient, entry),) = meta.items()
    assert entry["patient_id"] == patient and entry["class"] in CLASSES
    (slide,) = entry["slides"].values()
    assert len(slide["tumor_patches"]) == 42
    assert slide["normal_patches"] == slide["nondiagnostic_patches"] == []
    assert all((tmp_path / patch).is_file() for patch in slide["tumor_patches"])


def test_patients_have_one_or_two_slides_of_one_class() -> None:
    """Slides of a patient share the class, classes take turns, seeds are distinct, and equal seeds agree."""
    slides = named_phantoms(40, seed=3)
    assert slides == named_phantoms(40, seed=3) != named_phantoms(40, seed=4)
    assert len({named.source.seed for named in slides}) == 40
    per_patient = Counter(named.patient for named in slides)
    assert set(per_patient.values()) == {1, 2}
    classes = {patient: {n.source.label for n in slides if n.patient == patient} for patient in per_patient}
    assert all(len(labels) == 1 for labels in classes.values())
    turns = Counter(next(iter(labels)) for labels in classes.values())
    assert len(turns) == len(CLASSES) and max(turns.values()) - min(turns.values()) <= 1


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    """Nothing is written into a folder that holds something, nor in place of a file."""
    (tmp_path / "precious").write_text("kept")
    for out in (tmp_path, tmp_path / "precious"):
        with pytest.raises(SettingsError, match="not an empty folder"):
            run("--out", str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_default_slides_were_never_trained_on() -> None:
    """Without --seed the slides are from the seeds that training leaves alone."""
    assert FIRST_SEED >= EVALUATION_FIRST_SEED


@pytest.mark.parametrize("wrong", [("--slides", "0"), ("--seed", "-1")])
def test_impossible_numbers_are_refused(tmp_path: Path, wrong: tuple[str, str]) -> None:
    """Counts and seeds that make no slide are wrong arguments."""
    with pytest.raises(SettingsError):
        run("--out", str(tmp_path / "new"), *wrong)


def test_unknown_height_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A height that no imager writes is told with the known ones, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        run("--out", str(tmp_path / "new"), "--height", "3000")
    assert caught.value.code == 2
    assert "10000" in capsys.readouterr().err
