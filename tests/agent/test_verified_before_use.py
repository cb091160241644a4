"""Profile and engine: every byte that is parsed or compiled is one whose sha256 was compared before."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from agent.engine import load_built
from agent.engine.manifest import MANIFEST, ProfileRef, engine_folder, read_engine
from agent.engine.openvino import OpenVinoBackend
from agent.errors import EngineError
from models.profile import LoadedProfile, ProfileInvalid, load_profile
from tests.agent.engine.small_profile import write_profile
from tests.agent.engine.test_manifest import PROFILE, manifest, written
from tests.agent.engine.unproven import build_unproven

ROOT = Path(__file__).resolve().parents[2]
PHANTOM = ROOT / "configs" / "profiles" / "phantom"
FILES = sorted(yaml.safe_load((PHANTOM / "profile.yaml").read_text())["files"])
HOSTILE = (b"\xff" * 8 + b"{}", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"")
"""A header of 2^64 bytes for safetensors, a pickle, and nothing."""


def test_every_file_of_a_profile_is_read_once() -> None:
    """What is hashed is what is parsed: a file that changes between two reads cannot slip through, for there is no
    second read."""
    reads: Counter[str] = Counter()

    def read(name: str) -> bytes:
        reads[name] += 1
        return (PHANTOM / name).read_bytes()

    load_profile(read)
    assert reads == dict.fromkeys(["profile.yaml", *FILES], 1)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", HOSTILE)
def test_a_hostile_file_is_refused_unparsed(name: str, content: bytes) -> None:
    """Each file of a profile is refused for its sha256, before any parser could complain about it."""
    with pytest.raises(ProfileInvalid, match=rf"{name} has sha256 .*, profile\.yaml says"):
        load_profile(lambda asked: content if asked == name else (PHANTOM / asked).read_bytes())


@pytest.fixture(scope="module")
def profile_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with an engine of OpenVINO."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("profile")
    made: LoadedProfile = write_profile(folder)
    build_unproven(OpenVinoBackend(), made, engine_folder(folder, "openvino", "fp32", 1), "fp32", 1)
    return folder


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_hostile_engine_never_reaches_its_library(profile_dir: Path, name: str, tmp_path: Path) -> None:
    """One changed byte in a built engine: refused with the reason, and the library that would compile it is not even
    imported."""
    folder = tmp_path / "profile"
    shutil.copytree(profile_dir, folder)
    blob = engine_folder(folder, "openvino", "fp32", 1) / name
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    code = """
import sys
from pathlib import Path
from agent.engine import choose
from agent.errors import EngineError
from agent.profile_folder import load_profile_folder
folder = Path(sys.argv[1])
try:
    choose(folder, load_profile_folder(folder), ["openvino"], 1)
except EngineError as error:
    print("openvino" in sys.modules, error)
"""
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False no engine can be used: ")
    assert f"{name} differs from the file that was built" in done.stdout


def test_an_engine_that_changes_after_the_look_is_not_seen(profile_dir: Path, tmp_path: Path) -> None:
    """The bytes that were verified are those that are compiled: nothing is opened again afterwards."""
    folder = tmp_path / "profile"
    shutil.copytree(profile_dir, folder)
    profile = load_profile(lambda name: (folder / name).read_bytes())
    built = engine_folder(folder, "openvino", "fp32", 1)
    artefacts = read_engine(built, ProfileRef.of(profile))
    for path in built.iterdir():
        path.write_bytes(b"spoiled")
    engine = OpenVinoBackend().load(profile, artefacts, 1)
    assert engine.precision == "fp32"
    engine.close()
    with pytest.raises(EngineError):
        load_built(profile, built, 1)


@pytest.mark.parametrize("name", ["../profile.yaml", "/dev/zero", ".hidden", MANIFEST, "sub/model.bin"])
def test_a_manifest_names_its_own_files_only(tmp_path: Path, name: str) -> None:
    """A sealed manifest that points elsewhere is refused before anything is opened there."""
    folder = written(tmp_path, manifest())
    record = json.loads((folder / MANIFEST).read_text())
    record["files"] = {name: hashlib.sha256(b"").hexdigest()}
    del record["sha256"]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**record, "sha256": digest}))
    with pytest.raises(EngineError, match=r"not an engine manifest of this version \(see files\)"):
        read_engine(folder, PROFILE)
