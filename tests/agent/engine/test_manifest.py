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
    Figures,
    Manifest,
    ProfileRef,
    distribution_version,
    engine_folder,
    mend,
    read_engine,
    verify,
)
from agent.errors import EngineError

PROFILE = "ab" * 32
CONTENT = b"compiled"


def manifest(**changes: Any) -> Manifest:
    """A sealed manifest that belongs to this machine, but for `changes`."""
    figures = Figures(
        patches=64,
        golden_max_dp=0.001,
        max_dp=0.1 + 0.2,
        mean_dp=1e-5,
        argmax_agreement=1,
        ties=0,
        embedding_difference=0.01,
        far_agreement=0.99,
        patches_per_s=60.5,
        eager_patches_per_s=17,
        threads=2,
    )
    made = Manifest(
        backend="openvino",
        precision="bf16",
        batch_size=1,
        outputs={"logits": 4, "embedding": 128},
        profile=ProfileRef(name="p", version=1, sha256=PROFILE),
        device=this_cpu(),
        requires={"numpy": distribution_version("numpy")},
        built_with={"python": "3.11"},
        files={"model.bin": hashlib.sha256(CONTENT).hexdigest()},
        figures=figures,
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
    """engine.json is valid against the JSON Schema generated from its type."""
    text = (written(tmp_path, manifest()) / MANIFEST).read_text()
    jsonschema.validate(json.loads(text), Manifest.model_json_schema())


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("profile", {"profile": ProfileRef(name="p", version=1, sha256="cd" * 32)}, "built for profile cdcdcdcdcdcd…"),
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


def test_every_edit_by_hand_shows(tmp_path: Path) -> None:
    """Changing any single value of the manifest is noticed."""
    folder = written(tmp_path, manifest())
    original = json.loads((folder / MANIFEST).read_text())
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "precision": lambda r: r.update(precision="fp32"),
        "profile": lambda r: r["profile"].update(sha256="cd" * 32),
        "file": lambda r: r["files"].update({"model.bin": "00" * 32}),
        "figure": lambda r: r["figures"].update(max_dp=0.0),
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
        ('{"format": 3}', "not an engine manifest of this version"),
        (
            '{"format": 1}',
            "built by an earlier version, whose engines give no embedding .*; run: python -m agent.bui",
        ),
        ("\udcff", "utf-8"),
    ],
    ids=["empty", "list", "later format", "earlier format", "not text"],
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
