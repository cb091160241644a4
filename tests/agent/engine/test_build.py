"""agent.engine.build: an engine is replaced only by one that passed every gate, and in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from agent.engine import built_engines, load_built
from agent.engine.build import Plan, build_engine, golden_digest
from agent.engine.gates import GateFailedError
from agent.engine.manifest import MANIFEST, verify
from agent.errors import EngineError
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_openvino, read_profile, write_profile


def plan_for(folder: Path, profile: LoadedProfile) -> Plan:
    """The quickest build: fp32, few patches, one thread."""
    return Plan(folder, profile, "openvino", "fp32", 1, 1, patches=8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A profile folder with a proven engine, and the steps that its build announced; tests work on copies."""
    need_openvino()
    folder = tmp_path_factory.mktemp("prepared")
    steps: list[str] = []
    build_engine(plan_for(folder, write_profile(folder)), steps.append)
    return folder, steps


@pytest.fixture
def folder(prepared: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(prepared[0], tmp_path / "profile"))


def inodes(folder: Path) -> dict[str, int]:
    """File → inode of everything under `engines`."""
    return {str(p.relative_to(folder)): p.stat().st_ino for p in (folder / "engines").rglob("*") if p.is_file()}


def test_build_gives_a_usable_engine(folder: Path, prepared: tuple[Path, list[str]]) -> None:
    """The engine verifies, loads, carries its figures, and nothing else lies beside it."""
    profile = read_profile(folder)
    target = folder / "engines" / "openvino-fp32-b1"
    manifest = verify(target, profile.sha256)
    assert manifest.figures is not None
    assert manifest.figures.patches == 8
    assert manifest.figures.max_dp <= 1e-4
    assert manifest.figures.patches_per_s > 0 < manifest.figures.eager_patches_per_s
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert load_built(profile, target, 1).precision == "fp32"
    assert prepared[1] == [
        "compile",
        "golden pair",
        "parity on 8 patches",
        "independence of neighbours",
        "reload in a fresh process",
        "speed",
        "put in place",
    ]


def test_second_build_replaces_the_first(folder: Path) -> None:
    """A new build takes the old one's place completely and leaves no trace of it."""
    before = inodes(folder)
    digest = golden_digest(
        load_built(read_profile(folder), folder / "engines" / "openvino-fp32-b1", 1), read_profile(folder)
    )
    target, manifest = build_engine(plan_for(folder, read_profile(folder)), lambda step: None)
    after = inodes(folder)
    assert after.keys() == before.keys()
    assert set(after.values()).isdisjoint(before.values())
    assert verify(target, read_profile(folder).sha256) == manifest
    assert golden_digest(load_built(read_profile(folder), target, 1), read_profile(folder)) == digest


def test_failed_gate_leaves_the_old_engine(folder: Path) -> None:
    """When the golden pair disagrees the build fails by name and the engine in place is untouched."""
    profile = read_profile(folder)
    shifted = profile.golden_outputs + np.array([2, 0, 0, 0], np.float32)
    spoiled = LoadedProfile(profile.spec, profile.sha256, profile.weights, profile.golden_inputs, shifted)
    before = inodes(folder)
    with pytest.raises(GateFailedError) as caught:
        build_engine(plan_for(folder, spoiled), lambda step: None)
    assert caught.value.gate == "golden pair"
    assert inodes(folder) == before


def test_interrupted_build_leaves_the_old_engine(folder: Path) -> None:
    """Ctrl-C in the middle of a build removes what was half built and nothing else."""
    before = inodes(folder)

    def interrupt(step: str) -> None:
        if step == "put in place":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(plan_for(folder, read_profile(folder)), interrupt)
    assert inodes(folder) == before
    assert len(built_engines(folder)) == 1


def test_leftovers_of_dead_builds_are_removed(folder: Path) -> None:
    """What a killed build left is removed by the next; what a running build writes is not."""
    engines = folder / "engines"
    dead, running = engines / ".openvino-fp32-b1.999999999", engines / f".openvino-fp32-b1.{os.getppid()}"
    for path in (dead, running):
        path.mkdir()
        (path / MANIFEST).write_text("{}")
    build_engine(plan_for(folder, read_profile(folder)), lambda step: None)
    assert not dead.exists()
    assert running.exists()


def test_no_place_to_write(tmp_path: Path) -> None:
    """A folder that cannot take the engine is one clear line."""
    profile = write_profile(tmp_path)
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(EngineError, match=r"cannot write .*engines"):
        build_engine(plan_for(tmp_path, profile), lambda step: None)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """A profile whose weights do not fit its network is refused before anything is compiled."""
    from safetensors.numpy import save

    profile = write_profile(tmp_path)
    wrong = LoadedProfile(
        profile.spec, profile.sha256, save({"x": np.zeros(1)}), profile.golden_inputs, profile.golden_outputs
    )
    with pytest.raises(EngineError, match="openvino cannot compile this profile: weights do not fit"):
        build_engine(plan_for(tmp_path, wrong), lambda step: None)
    assert list((tmp_path / "engines").iterdir()) == []
