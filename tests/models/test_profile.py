"""Promises of the profile: nothing is trusted that its sha256, its keys or its shapes do not vouch for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from agent.errors import ProfileError
from agent.profile_folder import load_profile_folder
from models.profile import (
    GOLDEN,
    MANIFEST,
    REFERENCE,
    WEIGHTS,
    LoadedProfile,
    ProfileInvalid,
    load_profile,
    parse_profile,
)
from tests.fakes import fake_reference

PHANTOM = Path(__file__).resolve().parents[2] / "configs" / "profiles" / "phantom"
CLASSES = ["a", "b", "c"]


def golden(
    inputs: NDArray[Any] | None = None, outputs: NDArray[Any] | None = None, **more: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Tensors of a golden pair that fits, or those given instead."""
    x = np.arange(2 * 2 * 4 * 4, dtype=np.uint16).reshape(2, 2, 4, 4) if inputs is None else inputs
    y = np.arange(6, dtype=np.float32).reshape(2, 3) if outputs is None else outputs
    return {"inputs": x, "outputs": y, **more}


def document(**changes: Any) -> dict[str, Any]:
    """A small profile.yaml; a value of None leaves the key out."""
    whole = {
        "name": "small",
        "version": 1,
        "modality": "srh",
        "classes": CLASSES,
        "input": {},
        "network": {},
        "licence": "none",
        "intended_use": "research use only",
        "source": "tests",
        "files": {WEIGHTS: "0", GOLDEN: "0"},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def folder(tensors: dict[str, NDArray[Any]] | None = None, **changes: Any) -> dict[str, bytes]:
    """Every file of a small profile, sha256 and all."""
    files = {WEIGHTS: b"weights", GOLDEN: save_safetensors(golden() if tensors is None else tensors)}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {**files, MANIFEST: yaml.safe_dump(document(files=sums, **changes)).encode()}


def load(files: dict[str, bytes]) -> LoadedProfile:
    """Load from memory; a file that is not there is a FileNotFoundError, as on disk."""

    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    return load_profile(read)


def test_a_profile_that_agrees_is_loaded() -> None:
    """Weights come as they are, the golden pair as arrays, and the sha256 is that of profile.yaml."""
    files = folder()
    profile = load(files)
    assert profile.weights == b"weights"
    assert profile.sha256 == hashlib.sha256(files[MANIFEST]).hexdigest()
    assert profile.golden_inputs.dtype == np.uint16
    assert profile.golden_outputs.dtype == np.float32
    np.testing.assert_array_equal(profile.golden_inputs, golden()["inputs"])
    assert profile.spec.classes == ("a", "b", "c")


def test_defaults_are_those_of_the_publication() -> None:
    """Without further sections: no calibration, the 0.77 operating point, 50 patches at least."""
    spec = parse_profile(yaml.safe_dump(document()))
    assert spec.calibration.kind == "none"
    assert spec.operating_points == {"high_confidence": 0.77}
    assert spec.minimum_patches == 50


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN])
@pytest.mark.parametrize("spoil", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_one_changed_bit_is_refused(name: str, spoil: Callable[[bytes], bytes]) -> None:
    """A file that is longer, shorter or one bit different is refused by name, with both checksums."""
    files = folder()
    files[name] = spoil(files[name])
    with pytest.raises(ProfileInvalid, match=rf"{name} has sha256 [0-9a-f]{{12}}…, {MANIFEST} says"):
        load(files)


def test_every_listed_file_is_checked() -> None:
    """A file beyond weights and golden pair (a model card) is verified, too; a missing one is an OSError."""
    files = folder()
    listed = yaml.safe_load(files[MANIFEST])
    listed["files"]["MODEL_CARD.md"] = hashlib.sha256(b"card").hexdigest()
    files[MANIFEST] = yaml.safe_dump(listed).encode()
    with pytest.raises(FileNotFoundError):
        load(files)
    files["MODEL_CARD.md"] = b"another card"
    with pytest.raises(ProfileInvalid, match=r"MODEL_CARD\.md"):
        load(files)
    files["MODEL_CARD.md"] = b"card"
    assert load(files).weights == b"weights"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"calibration": {"kind": "none", "temprature": 2.0}}, "calibration.temprature: Extra inputs"),
        ({"aggregation": {"rule": "vote"}}, "aggregation.rule"),
        ({"aggregation": {"independence": 0.0}}, "aggregation.independence"),
        ({"version": 0}, "version: Input should be greater than or equal to 1"),
        ({"name": "Two Words"}, "name"),
        ({"classes": ["only one"]}, "classes"),
        ({"classes": ["a", "b", "a"]}, "classes must be distinct"),
        ({"licence": None}, "licence: Field required"),
        ({"intended_use": None}, "intended_use: Field required"),
        ({"files": {WEIGHTS: "0"}}, f"files must list the sha256 of {GOLDEN}"),
        ({"files": {}}, f"files must list the sha256 of {GOLDEN}, {WEIGHTS}"),
        ({"files": {WEIGHTS: "0", GOLDEN: "0", "../weights": "0"}}, "plain names"),
        ({"files": {WEIGHTS: "0", GOLDEN: "0", ".hidden": "0"}}, "plain names"),
        ({"files": {WEIGHTS: "0", GOLDEN: "0", MANIFEST: "0"}}, "plain names"),
        ({"minimum_patches": -1}, "minimum_patches"),
        ({"decision": {"least_lower_bound": 1.0}}, "decision.least_lower_bound"),
        ({"decision": {"most_marked": 0.0}}, "decision.most_marked"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    """Unknown keys, missing keys and impossible values are refused, and the text names the field."""
    with pytest.raises(ProfileInvalid) as refused:
        parse_profile(yaml.safe_dump(document(**changes)))
    assert told in str(refused.value)


def test_every_wrong_field_is_named_at_once() -> None:
    """Several mistakes are told together, not one after the other."""
    with pytest.raises(ProfileInvalid, match=r"version.*colour"):
        parse_profile(yaml.safe_dump(document(version=0, colour="blue")))


@pytest.mark.parametrize("text", ["", "- a list", "just text", "{unclosed: ["])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    """Empty, cut or other YAML is refused with the name of the file, not with a traceback of the parser."""
    with pytest.raises(ProfileInvalid, match=MANIFEST):
        parse_profile(text)


ONE_FOLD = [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("calibration", "told"),
    [
        ({"weights": [], "biases": []}, "needs weights and biases"),
        ({"weights": ONE_FOLD, "biases": []}, "needs weights and biases"),
        ({"weights": ONE_FOLD, "biases": [[0.0, 0.0]]}, "same"),
        ({"weights": [*ONE_FOLD, [1.0, 1.0]], "biases": [*ONE_FOLD, [1.0, 1.0]]}, "same"),
        ({"weights": [[1.0, 1.0]], "biases": [[0.0, 0.0]]}, "calibration has 2 columns for 3 classes"),
    ],
)
def test_a_calibration_of_another_shape_is_refused(calibration: dict[str, Any], told: str) -> None:
    """One-vs-rest parameters must be [folds][classes] in both tables, with as many classes as the profile."""
    section = {"kind": "one_vs_rest_sigmoid", **calibration}
    with pytest.raises(ProfileInvalid, match=told):
        parse_profile(yaml.safe_dump(document(calibration=section)))


def test_a_calibration_that_fits_is_read() -> None:
    """Two folds for three classes are taken as written."""
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    section = {"kind": "one_vs_rest_sigmoid", "weights": rows, "biases": rows}
    spec = parse_profile(yaml.safe_dump(document(calibration=section)))
    assert spec.calibration.weights == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    """Logits cannot be divided by zero or less."""
    with pytest.raises(ProfileInvalid, match=r"calibration\.temperature"):
        parse_profile(yaml.safe_dump(document(calibration={"kind": "temperature", "temperature": temperature})))


@pytest.mark.parametrize(
    "tensors",
    [
        {"inputs": golden()["inputs"]},
        {"outputs": golden()["outputs"]},
        {"input": golden()["inputs"], "output": golden()["outputs"]},
        golden(inputs=golden()["inputs"].astype(np.float32)),
        golden(inputs=golden()["inputs"][:0], outputs=golden()["outputs"][:0]),
        golden(outputs=golden()["outputs"][:1]),
        golden(outputs=golden()["outputs"][:, :2]),
        golden(outputs=golden()["outputs"].reshape(-1)),
    ],
    ids=["no outputs", "no inputs", "other names", "float", "empty", "fewer rows", "fewer classes", "flat"],
)
def test_a_golden_pair_that_does_not_fit_is_refused(tensors: dict[str, NDArray[Any]]) -> None:
    """Inputs must be uint16 and at least one; outputs one row per input with one column per class."""
    with pytest.raises(ProfileInvalid, match=GOLDEN.replace(".", r"\.")):
        load(folder(tensors))


def test_a_golden_file_that_is_no_safetensors_is_refused() -> None:
    """A golden file with the right sha256 but without tensors in it is a wrong profile, not a crash."""
    files = folder()
    files[GOLDEN] = b"not tensors"
    listed = yaml.safe_load(files[MANIFEST])
    listed["files"][GOLDEN] = hashlib.sha256(files[GOLDEN]).hexdigest()
    files[MANIFEST] = yaml.safe_dump(listed).encode()
    with pytest.raises(ProfileInvalid, match=GOLDEN.replace(".", r"\.")):
        load(files)


def with_reference(content: bytes) -> dict[str, bytes]:
    """A small profile with this file as its reference, sha256 and all."""
    files = folder()
    listed = yaml.safe_load(files[MANIFEST])
    listed["files"][REFERENCE] = hashlib.sha256(content).hexdigest()
    return {**files, REFERENCE: content, MANIFEST: yaml.safe_dump(listed).encode()}


def test_a_reference_is_read_where_the_profile_has_one() -> None:
    """Without the file there is none; with it its numbers are those that were written."""
    assert load(folder()).reference is None
    found = load(with_reference(fake_reference().to_bytes())).reference
    assert found is not None
    assert found.to_bytes() == fake_reference().to_bytes()


def test_a_wrong_reference_is_refused_by_name() -> None:
    """A changed bit, a file that is no safetensors, and one whose shapes do not fit: each is a wrong profile."""
    files = with_reference(fake_reference().to_bytes())
    files[REFERENCE] = files[REFERENCE][:-1] + b"\1"
    with pytest.raises(ProfileInvalid, match=rf"{REFERENCE} has sha256"):
        load(files)
    with pytest.raises(ProfileInvalid, match=rf"^{REFERENCE}: not safetensors"):
        load(with_reference(b"not tensors"))
    misshapen = replace(fake_reference(), scales=np.ones(7)).to_bytes()
    with pytest.raises(ProfileInvalid, match=rf"^{REFERENCE}: scales has the shape"):
        load(with_reference(misshapen))


def test_the_records_are_frozen() -> None:
    """Nobody changes a profile after it was verified."""
    spec = parse_profile(yaml.safe_dump(document()))
    with pytest.raises(ValueError, match="frozen"):
        spec.minimum_patches = 0  # type: ignore[misc]


def test_the_phantom_profile_is_whole() -> None:
    """The profile in the repository passes every check, and is small enough to travel in it."""
    profile = load_profile_folder(PHANTOM)
    assert profile.spec.name == "phantom"
    assert len(profile.spec.classes) == 4
    assert len(profile.weights) <= 4 << 20
    assert {"MODEL_CARD.md"} <= set(profile.spec.files) | {path.name for path in PHANTOM.iterdir()}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modality": "tarot"}, "modality 'tarot' is not one of srh"),
        ({"input": {"size": 300}}, "size"),
        ({"network": {"encoder": "vgg"}}, "encoder"),
    ],
)
def test_a_folder_error_is_one_that_users_can_act_on(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """An unknown modality or a section that it refuses ends as ProfileError with the folder and the field."""
    for name, content in folder(**changes).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProfileError) as refused:
        load_profile_folder(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert told in str(refused.value)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """A folder that is not there ends as ProfileError, too."""
    with pytest.raises(ProfileError, match="nowhere"):
        load_profile_folder(tmp_path / "nowhere")
