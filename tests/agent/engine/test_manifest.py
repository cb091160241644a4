"""agent.engine.manifest: an engine that does not belong here is refused, with the reason and the mending command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.engine.device import Device, this_cpu
from agent.engine.manifest import (
    MANIFEST,
    Manifest,
    ProfileRef,
    distribution_version,
    engine_folder,
    json_schema,
    mend,
    read_engine,
    verify,
)
from agent.engine_limits import EngineLimits, HalfLimits
from agent.errors import EngineError
from tests.agent.engine.unproven import made_up_figures

ROOT = Path(__file__).parents[3]
PROFILE = ProfileRef(name="p", version=1, sha256="ab" * 32, weights="ef" * 32)
CONTENT = b"compiled"


def manifest(**changes: Any) -> Manifest:
    """A sealed manifest that belongs to this machine, but for `changes`."""
    made = Manifest(
        backend="openvino",
        precision="bf16",
        batch_size=1,
        outputs={"logits": 4, "embedding": 128},
        profile=PROFILE,
        device=this_cpu(),
        requires={"numpy": distribution_version("numpy")},
        built_with={"python": "3.11"},
        files={"model.bin": hashlib.sha256(CONTENT).hexdigest()},
        figures=made_up_figures("bf16", max_dp=0.01 + 0.002),
        limits=EngineLimits().of("bf16"),
        built_at="2026-01-01T00:00:00.000+00:00",
    )
    return made.model_copy(update=changes).sealed()


def written(profile_dir: Path, record: Manifest) -> Path:
    """The engine folder with this manifest and its file."""
    folder = engine_folder(profile_dir, "openvino", "bf16", 1)
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(CONTENT)
    (folder / MANIFEST).write_text(record.to_json())
    return folder


def test_a_matching_engine_is_read(tmp_path: Path) -> None:
    """The manifest survives the way through the file exactly, and the verified bytes come with it."""
    record = manifest()
    artefacts = read_engine(written(tmp_path, record), PROFILE)
    assert artefacts.manifest == record
    assert artefacts.files == {"model.bin": CONTENT}


def test_follows_its_schema(tmp_path: Path) -> None:
    """engine.json is valid against the JSON Schema generated from its type, which the repository holds; a record
    with another field or without one is not.
    """
    schema = json.loads((ROOT / "configs" / "engine.schema.json").read_text())
    assert schema == json_schema(), "run: python -m agent.build_trt schema > configs/engine.schema.json"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    record = json.loads((written(tmp_path, manifest()) / MANIFEST).read_text())
    validator.validate(record)
    assert not validator.is_valid({**record, "more": 1})
    assert not validator.is_valid({name: value for name, value in record.items() if name != "device"})


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("profile", {"profile": PROFILE.model_copy(update={"sha256": "cd" * 32})}, "built for profile cdcdcdcdcdcd…"),
    (
        "weights",
        {"profile": PROFILE.model_copy(update={"weights": "cd" * 32})},
        "built for p 1 with weights cdcd",
    ),
    ("profile version", {"profile": PROFILE.model_copy(update={"version": 2})}, "built for p 2 with weights"),
    ("backend", {"backend": "eager"}, "lies in the place of backend openvino, its manifest says 'eager'"),
    ("unproven", {"figures": None}, "its build was never finished: no gate was passed"),
    (
        "a figure beyond its limit",
        {"figures": made_up_figures("bf16", slide_change=0.011)},
        "gate 'made up', slide_change: 0.011, allowed is at most 0.01",
    ),
    ("a figure that is no number", {"figures": made_up_figures("bf16", mean_dp=float("nan"))}, "mean_dp: nan"),
    ("device", {"device": Device(kind="cpu", model="Z80", instructions=())}, r"built on Z80 \(\)"),
    ("instructions", {"device": this_cpu().model_copy(update={"instructions": ("mmx",)})}, r"built on .*\(mmx\)"),
    (
        "card",
        {"device": Device(kind="cuda", model="Card 9000", instructions=("sm_199",), driver="570.1")},
        r"built on Card 9000 \(sm_199 driver 570\.1\), this machine is ",
    ),
    ("version", {"requires": {"numpy": "0.9"}}, "built with numpy 0.9, this machine has"),
    ("absent library", {"requires": {"no-such-library": "1"}}, "no-such-library 1, this machine has not installed"),
    ("file hash", {"files": {"model.bin": "00" * 32}}, "model.bin differs"),
    ("missing file", {"files": {"model.xml": "00" * 32}}, "model.xml: No such file"),
]


@pytest.mark.parametrize(("changes", "reason"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_mismatch_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """Each mismatch is named, with the command that mends it."""
    folder = written(tmp_path, manifest(**changes))
    with pytest.raises(EngineError, match=reason) as caught:
        verify(folder, PROFILE)
    assert f"run: python -m agent.build_trt --profile {tmp_path} --backend openvino" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engines_of_a_card_have_their_own_place(tmp_path: Path) -> None:
    """The folder names a device other than the CPU, and the command that mends it asks for that device."""
    names = [engine_folder(tmp_path, "inductor", "bf16", 32, kind).name for kind in ("cpu", "cuda")]
    assert names == ["inductor-bf16-b32", "inductor-cuda-bf16-b32"]
    commands = [mend(tmp_path / "engines" / name, "inductor") for name in names]
    assert [command.endswith("--backend inductor --device cuda") for command in commands] == [False, True]


def test_every_fact_of_the_device_counts(tmp_path: Path) -> None:
    """An engine of a device that differs in any field is refused."""
    here = this_cpu()
    for name, value in here.model_dump().items():
        other = ("mmx",) if isinstance(value, tuple) else f"other {value}"
        folder = written(tmp_path / name, manifest(device=here.model_copy(update={name: other})))
        with pytest.raises(EngineError, match=r"built on .*, this machine is "):
            verify(folder, PROFILE)


def test_tightened_limits_refuse_an_engine(tmp_path: Path) -> None:
    """An engine that was built under wider limits than the settings' is refused with its figure, and one whose
    figures keep the settings' limits is not.
    """
    folder = written(tmp_path, manifest())
    assert verify(folder, PROFILE, EngineLimits(bf16=HalfLimits(max_dp=0.0125))).batch_size == 1
    refusal = r"built under other limits: gate 'made up', max_dp: 0\.012, allowed is at most 0\.0115"
    with pytest.raises(EngineError, match=refusal):
        verify(folder, PROFILE, EngineLimits(bf16=HalfLimits(max_dp=0.0115)))


def test_every_edit_by_hand_shows(tmp_path: Path) -> None:
    """Changing any single value of the manifest is noticed."""
    folder = written(tmp_path, manifest())
    original = json.loads((folder / MANIFEST).read_text())
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "precision": lambda r: r.update(precision="fp32"),
        "profile": lambda r: r["profile"].update(sha256="cd" * 32),
        "file": lambda r: r["files"].update({"model.bin": "00" * 32}),
        "figure": lambda r: r["figures"]["gates"][0].update(figure=0.0),
        "limit": lambda r: r["limits"].update(max_dp=1.0),
        "note": lambda r: r["notes"].update(kept="nothing"),
        "date": lambda r: r.update(built_at="2027-01-01T00:00:00.000+00:00"),
        "seal": lambda r: r.update(sha256="0" * 64),
    }
    for name, edit in edits.items():
        record = json.loads(json.dumps(original))
        edit(record)
        (folder / MANIFEST).write_text(json.dumps(record))
        with pytest.raises(EngineError, match="edited after the build"):
            verify(folder, PROFILE)
        assert record != original, name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "not an engine manifest"),
        ('{"format": 4}', "not an engine manifest of this version"),
        ('{"format": 2}', "built by an earlier version, whose gates were fewer; run: python -m agent.build_trt"),
        (
            '{"format": 1}',
            "built by an earlier version, whose engines give no embedding .*; run: python -m agent.bui",
        ),
        ("\udcff", "utf-8"),
    ],
    ids=["empty", "list", "later format", "the last format", "the first format", "not text"],
)
def test_other_contents(tmp_path: Path, text: str, reason: str) -> None:
    """A manifest that cannot be read is refused in one line."""
    folder = written(tmp_path, manifest())
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(EngineError, match=reason):
        verify(folder, PROFILE)


def test_no_manifest(tmp_path: Path) -> None:
    """A folder without manifest is refused."""
    with pytest.raises(EngineError, match="No such file"):
        verify(engine_folder(tmp_path, "openvino", "bf16", 1), PROFILE)
