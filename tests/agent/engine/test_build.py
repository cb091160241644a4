"""agent.engine.build: an engine is replaced only by one that passed every gate, and in one step."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.engine import BACKENDS, built_engines, load_built
from agent.engine.backend import BuildRequest, Built
from agent.engine.build import Plan, build_engine, golden_digest
from agent.engine.gates import GateFailedError
from agent.engine.manifest import MANIFEST, ProfileRef, parse_manifest, verify
from agent.engine.openvino import OpenVinoBackend
from agent.engine_limits import BOUNDS, EngineLimits, Fp32Limits
from agent.errors import EngineError
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_openvino, read_profile, write_profile
from tests.agent.engine.steps import Steps

GATES = ["golden pair", "census", "independence", "reload", "speed", "slides", "parity"]


def plan_for(folder: Path, profile: LoadedProfile) -> Plan:
    """The quickest build: fp32, few patches, one slide, one thread; two rows, so that there are neighbours."""
    return Plan(folder, profile, "openvino", "fp32", 2, 1, patches=8, slides=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A profile folder with a proven engine, and the steps that its build announced; tests work on copies."""
    need_openvino()
    folder = tmp_path_factory.mktemp("prepared")
    steps = Steps()
    build_engine(plan_for(folder, write_profile(folder)), steps)
    return folder, steps.names


@pytest.fixture
def folder(prepared: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(prepared[0], tmp_path / "profile"))


def inodes(folder: Path) -> dict[str, int]:
    """File → inode of everything under `engines`."""
    return {str(p.relative_to(folder)): p.stat().st_ino for p in (folder / "engines").rglob("*") if p.is_file()}


def test_build_gives_a_usable_engine(folder: Path, prepared: tuple[Path, list[str]]) -> None:
    """The engine verifies, loads, carries the figures of every gate, and nothing else lies beside it."""
    profile = read_profile(folder)
    target = folder / "engines" / "openvino-fp32-b2"
    figures = verify(target, ProfileRef.of(profile)).figures
    assert figures is not None
    assert list(dict.fromkeys(figure.gate for figure in figures.gates)) == GATES
    assert all(figure.passed and figure.figure is not None for figure in figures.gates)
    assert {figure.setting for figure in figures.gates} - {None} == set(BOUNDS) - {"far_agreement"}
    assert (figures.patches, figures.slides, sum(figures.census.values())) == (8, 1, figures.census["fp32"])
    assert figures.patches_per_s > 0 < figures.eager_patches_per_s
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert load_built(profile, target, 1).precision == "fp32"
    assert prepared[1] == [
        "compile",
        "golden pair",
        "independence of neighbours",
        "reload in a fresh process",
        "speed",
        "phantom slides: paint",
        "phantom slides: eager fp32",
        "phantom slides: new engine",
        "parity: eager fp32",
        "parity: new engine",
        "put in place",
    ]


def test_second_build_replaces_the_first(folder: Path) -> None:
    """A new build takes the old one's place completely and leaves no trace of it."""
    before = inodes(folder)
    digest = golden_digest(
        load_built(read_profile(folder), folder / "engines" / "openvino-fp32-b2", 1), read_profile(folder)
    )
    target, manifest = build_engine(plan_for(folder, read_profile(folder)), Steps())
    after = inodes(folder)
    assert after.keys() == before.keys()
    assert set(after.values()).isdisjoint(before.values())
    assert verify(target, ProfileRef.of(read_profile(folder))) == manifest
    assert golden_digest(load_built(read_profile(folder), target, 1), read_profile(folder)) == digest


def test_failed_gate_leaves_the_old_engine(folder: Path) -> None:
    """When the golden pair disagrees the build fails by name and the engine in place is untouched."""
    profile = read_profile(folder)
    shifted = profile.golden_outputs + np.array([2, 0, 0, 0], np.float32)
    spoiled = LoadedProfile(profile.spec, profile.sha256, profile.weights, profile.golden_inputs, shifted)
    before = inodes(folder)
    with pytest.raises(GateFailedError) as caught:
        build_engine(plan_for(folder, spoiled), Steps())
    assert caught.value.gate == "golden pair"
    assert inodes(folder) == before


@pytest.mark.parametrize(
    ("limit", "gate"), [("slide_change", "slides"), ("embedding_difference", "parity"), ("speed_ratio", "speed")]
)
def test_limits_decide(folder: Path, limit: str, gate: str) -> None:
    """A limit that no engine can keep fails the build by the gate's name and leaves the old engine."""
    before = inodes(folder)
    value = 1e6 if BOUNDS[limit] == "at least" else 1e-12
    limits = EngineLimits(fp32=Fp32Limits.model_validate({limit: value}))
    with pytest.raises(GateFailedError) as caught:
        build_engine(replace(plan_for(folder, read_profile(folder)), limits=limits), Steps())
    assert (
        caught.value.gate
        == {"slide_change": "slides", "embedding_difference": "parity", "speed_ratio": "speed"}[limit]
    )
    assert inodes(folder) == before


def test_an_engine_keeps_the_limits_that_it_passed_under(folder: Path) -> None:
    """Built under wider limits an engine is refused by stricter settings only where a figure is beyond them."""
    wider = EngineLimits(fp32=Fp32Limits(max_dp=0.5, mean_dp=0.5))
    profile = read_profile(folder)
    target, manifest = build_engine(replace(plan_for(folder, profile), limits=wider), Steps())
    assert manifest.limits.max_dp == 0.5
    assert verify(target, ProfileRef.of(profile)) == manifest
    with pytest.raises(EngineError, match="built under other limits: gate 'slides'"):
        verify(target, ProfileRef.of(profile), EngineLimits(fp32=Fp32Limits(slide_change=1e-12)))


def test_an_engine_that_changes_with_the_process_fails(folder: Path) -> None:
    """What a fresh process reads must give the bits of the engine in this one: another model's file does not."""
    profile = read_profile(folder)
    old = folder / "engines" / "openvino-fp32-b2"
    spoil = write_profile(folder.parent / "other", seed=5)
    other, _ = build_engine(plan_for(folder.parent / "other", spoil), Steps())

    def swap(step: str) -> None:
        if step == "reload in a fresh process":
            (scratch,) = (folder / "engines").glob(".openvino-*")
            manifest = parse_manifest((scratch / MANIFEST).read_bytes())
            (scratch / "model.bin").write_bytes((other / "model.bin").read_bytes())
            files = manifest.files | {"model.bin": hashlib.sha256((other / "model.bin").read_bytes()).hexdigest()}
            text = manifest.model_copy(update={"files": files}).sealed().to_json()
            (scratch / MANIFEST).write_text(text)

    before = old.stat().st_ino
    with pytest.raises(GateFailedError, match="gate 'reload' failed: rows with other bits") as caught:
        build_engine(plan_for(folder, profile), Steps(swap))
    assert caught.value.gate == "reload"
    assert old.stat().st_ino == before


def test_a_file_that_spoils_during_the_build_is_never_put_in_place(folder: Path) -> None:
    """What lies on the disk is read once more before it replaces the old engine."""
    before = inodes(folder)

    def spoil(step: str) -> None:
        if step == "put in place":
            (scratch,) = (folder / "engines").glob(".openvino-*")
            with (scratch / "model.bin").open("r+b") as file:
                file.write(b"spoiled")

    with pytest.raises(EngineError, match=r"model\.bin differs from the file that was built"):
        build_engine(plan_for(folder, read_profile(folder)), Steps(spoil))
    assert inodes(folder) == before


def test_interrupted_build_leaves_the_old_engine(folder: Path) -> None:
    """Ctrl-C in the middle of a build removes what was half built and nothing else."""
    before = inodes(folder)

    def interrupt(step: str) -> None:
        if step == "put in place":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(plan_for(folder, read_profile(folder)), Steps(interrupt))
    assert inodes(folder) == before
    assert len(built_engines(folder)) == 1


def test_leftovers_of_dead_builds_are_removed(folder: Path) -> None:
    """What a killed build left is removed by the next, even one that had its own number; what a running build writes
    is not.
    """
    engines = folder / "engines"
    dead, running = engines / ".openvino-fp32-b2.999999999", engines / f".openvino-fp32-b2.{os.getppid()}"
    mine = engines / f".openvino-fp32-b2.{os.getpid()}"
    for path in (dead, running, mine):
        path.mkdir()
        (path / MANIFEST).write_text("{}")
    build_engine(plan_for(folder, read_profile(folder)), Steps())
    assert not dead.exists() and not mine.exists()
    assert running.exists()


def test_no_place_to_write(tmp_path: Path) -> None:
    """A folder that cannot take the engine is one clear line."""
    profile = write_profile(tmp_path)
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(EngineError, match=r"cannot write .*engines"):
        build_engine(plan_for(tmp_path, profile), Steps())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """A profile whose weights do not fit its network is refused before anything is compiled."""
    from safetensors.numpy import save

    profile = write_profile(tmp_path)
    wrong = LoadedProfile(
        profile.spec, profile.sha256, save({"x": np.zeros(1)}), profile.golden_inputs, profile.golden_outputs
    )
    with pytest.raises(EngineError, match="openvino cannot compile this profile: weights do not fit"):
        build_engine(plan_for(tmp_path, wrong), Steps())
    assert list((tmp_path / "engines").iterdir()) == []


class Recorder(OpenVinoBackend):
    """A backend that keeps what it was asked for, and compiles nothing."""

    def __init__(self) -> None:
        self.asked: list[BuildRequest] = []

    def build(self, request: BuildRequest) -> Built:
        """Keep the request."""
        self.asked.append(request)
        raise ValueError("recorded")


def test_ranges_are_measured_on_the_profiles_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build in int8 gets the inputs that it was given, else what the profile brings; others get none."""
    profile = write_profile(tmp_path)
    recorder = Recorder()
    monkeypatch.setitem(BACKENDS, "openvino", recorder)
    given = profile.golden_inputs[:2]
    for plan in (
        replace(plan_for(tmp_path, profile), precision="int8", calibration=given),
        replace(plan_for(tmp_path, profile), precision="int8"),
        plan_for(tmp_path, profile),
    ):
        with pytest.raises(EngineError, match="recorded"):
            build_engine(plan, Steps())
    assert recorder.asked[0].calibration is given
    assert recorder.asked[1].calibration is profile.golden_inputs
    assert recorder.asked[2].calibration is None
