"""agent.engine.choose: the first usable engine runs, and every one passed over has its reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.engine import BACKENDS, built_engines, choose, load_built, self_test, usable
from agent.engine.eager import EagerBackend
from agent.engine.manifest import MANIFEST, engine_folder, parse_manifest
from agent.engine.openvino import OpenVinoBackend
from agent.engine.order import candidates, parse_entry
from agent.engine.signature import SIGNATURE, sign
from agent.engine_limits import EngineLimits, Fp32Limits
from agent.errors import EngineError, SettingsError
from models.contract import Prediction
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_openvino, read_profile, write_profile
from tests.agent.engine.test_signature import key_pair
from tests.agent.engine.unproven import build_unproven
from tests.fakes import fake_reference

BOTH = ("openvino", "eager")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder with a valid OpenVINO engine; tests work on copies."""
    need_openvino()
    folder = tmp_path_factory.mktemp("prepared")
    profile = write_profile(folder)
    build_unproven(OpenVinoBackend(), profile, engine_folder(folder, "openvino", "fp32", 1), "fp32", 1)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(prepared, tmp_path / "profile"))


def test_prefers_the_first_usable(folder: Path) -> None:
    """A valid built engine that comes first runs, and nothing is passed over."""
    choice = choose(folder, read_profile(folder), BOTH, 1)
    assert (choice.engine.name, choice.engine.precision, choice.passed_over) == ("openvino", "fp32", {})


def test_order_decides(folder: Path) -> None:
    """The order of the settings decides, not which engine is built."""
    assert choose(folder, read_profile(folder), ("eager", "openvino"), 1).engine.name == "eager"


def test_not_built(tmp_path: Path) -> None:
    """Without a built engine eager runs, and the reason names the command that builds one."""
    need_openvino()
    profile = write_profile(tmp_path / "profile")
    choice = choose(tmp_path / "profile", profile, BOTH, 1)
    assert choice.engine.name == "eager"
    command = f"python -m agent.build_trt --profile {tmp_path / 'profile'} --backend openvino"
    assert choice.passed_over == {"openvino": f"not built; run: {command}"}


def test_spoiled_engine_is_passed_over(folder: Path) -> None:
    """A changed file is never loaded: the next engine runs and the reason is told."""
    target = engine_folder(folder, "openvino", "fp32", 1)
    content = bytearray((target / "model.bin").read_bytes())
    content[1000] ^= 1
    (target / "model.bin").write_bytes(content)
    choice = choose(folder, read_profile(folder), BOTH, 1)
    assert choice.engine.name == "eager"
    assert "model.bin differs" in choice.passed_over["openvino-fp32-b1"]


def test_engine_of_another_profile(folder: Path) -> None:
    """New weights make the old engine unusable."""
    profile = write_profile(folder, seed=9)
    choice = choose(folder, profile, BOTH, 1)
    assert "built for profile" in choice.passed_over["openvino-fp32-b1"]


def built_as(folder: Path, name: str, built_at: str, batch: int) -> Path:
    """A copy of the folder's engine whose manifest says another batch and moment; its files are the same."""
    target = folder / "engines" / name
    shutil.copytree(engine_folder(folder, "openvino", "fp32", 1), target)
    manifest = parse_manifest((target / MANIFEST).read_bytes())
    changed = manifest.model_copy(update={"batch_size": batch, "built_at": built_at}).sealed()
    (target / MANIFEST).write_text(changed.to_json())
    return target


def tried(folder: Path, *order: str) -> list[str]:
    """Labels in the order in which they are tried."""
    return [c.label for c in candidates(folder, [parse_entry(name, BACKENDS) for name in order])]


def test_the_batch_in_service_first_then_the_newest(folder: Path) -> None:
    """Of several engines of one entry: those of the service batch, newest first, then the others, newest first."""
    built_as(folder, "openvino-int8-b1", "2001-01-01T00:00:00+00:00", 1)
    built_as(folder, "openvino-fp32-b2", "2099-01-01T00:00:00+00:00", 2)
    built_as(folder, "openvino-bf16-b32", "2098-01-01T00:00:00+00:00", 32)
    unreadable = built_as(folder, "openvino-bf16-b1", "2099-01-01T00:00:00+00:00", 1)
    (unreadable / MANIFEST).write_text("{}")
    by_batch = ["openvino-fp32-b1", "openvino-int8-b1", "openvino-fp32-b2", "openvino-bf16-b32"]
    assert tried(folder, "openvino", "eager") == [*by_batch, "openvino-bf16-b1", "eager"]


def test_an_entry_may_name_an_engine_more_exactly(folder: Path) -> None:
    """By precision, or by precision and batch: at a dash, each engine once, and the rest of the backend behind it."""
    built_as(folder, "openvino-int8-b3", "2001-01-01T00:00:00+00:00", 3)
    built_as(folder, "openvino-int8-b32", "2002-01-01T00:00:00+00:00", 32)
    assert tried(folder, "openvino-int8") == ["openvino-int8-b32", "openvino-int8-b3"]
    assert tried(folder, "openvino-int8-b3") == ["openvino-int8-b3"]
    order = ("openvino-int8-b32", "openvino-bf16", "eager", "openvino")
    assert tried(folder, *order) == [
        "openvino-int8-b32",
        "openvino-bf16",
        "eager",
        "openvino-fp32-b1",
        "openvino-int8-b3",
    ]
    choice = choose(folder, read_profile(folder), ("openvino-fp32",), 1)
    assert (choice.label, choice.engine.precision, choice.passed_over) == ("openvino-fp32-b1", "fp32", {})


def test_an_entry_that_is_not_built_names_its_command(folder: Path) -> None:
    """The reason names the command with the precision and the batch that were asked for."""
    need_openvino()
    choice = choose(folder, read_profile(folder), ("openvino-int8-b32", "openvino"), 1)
    build = f"python -m agent.build_trt --profile {folder} --backend openvino --precision int8 --batch 32"
    assert choice.passed_over == {"openvino-int8-b32": f"not built; run: {build}"}
    assert choice.label == "openvino-fp32-b1"


def test_a_spoiled_engine_falls_back_on_another_of_its_backend(folder: Path) -> None:
    """Of two built ones the second runs when the first cannot; each reason names a command."""
    profile = read_profile(folder)
    other = engine_folder(folder, "openvino", "fp32", 2)
    build_unproven(OpenVinoBackend(), profile, other, "fp32", 2)
    (engine_folder(folder, "openvino", "fp32", 1) / "model.bin").unlink()
    choice = choose(folder, profile, BOTH, 1)
    assert (choice.engine.name, choice.engine.batch_size) == ("openvino", 2)
    assert list(choice.passed_over) == ["openvino-fp32-b1"]
    assert "; run: python -m agent.build_trt --profile" in choice.passed_over["openvino-fp32-b1"]


def test_an_engine_that_fails_its_self_test_names_the_command(folder: Path) -> None:
    """Not only what the manifest refuses: an engine whose golden pair differs is built anew by the same command."""
    profile = read_profile(folder)
    shifted = profile.golden_outputs + np.array([0, 3, 0, 0], np.float32)
    passed_over: dict[str, str] = {}
    spoiled = replace(profile, golden_outputs=shifted)
    assert next(usable(folder, spoiled, ("openvino",), 1, passed_over), None) is None
    reason = passed_over["openvino-fp32-b1"]
    assert reason.startswith("golden pair differs by") and "; run: python -m agent.build_trt" in reason


def test_half_built_engine_is_never_seen(folder: Path) -> None:
    """What an interrupted build left behind is not an engine."""
    target = engine_folder(folder, "openvino", "fp32", 1)
    target.rename(target.with_name(f".{target.name}.4711"))
    assert built_engines(folder) == []


def test_unreadable_manifest_is_listed(folder: Path) -> None:
    """An engine whose manifest cannot be read is passed over with a reason, not skipped in silence."""
    (engine_folder(folder, "openvino", "fp32", 1) / MANIFEST).write_text("{}")
    assert "not an engine manifest" in choose(folder, read_profile(folder), BOTH, 1).passed_over["openvino-fp32-b1"]


def test_unknown_backend_of_a_manifest(folder: Path) -> None:
    """An engine of a backend that this version does not have is refused by name."""
    manifest = built_engines(folder)[0][1]
    assert manifest is not None
    target = engine_folder(folder, "openvino", "fp32", 1).rename(folder / "engines" / "abacus-fp32-b1")
    (target / MANIFEST).write_text(manifest.model_copy(update={"backend": "abacus"}).sealed().to_json())
    with pytest.raises(EngineError, match="no backend 'abacus'"):
        load_built(read_profile(folder), target, 1)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("openvino-int3", "known precisions: fp32"),
        ("openvino-fp32-32", "unknown engine"),
        ("openvino-fp32-b0", "unknown engine"),
        ("openvino-", "unknown engine"),
        ("openvino-cuda", "openvino runs on cpu"),
        ("inductor-cuda-int3", "known precisions: fp32"),
        ("", "unknown engine"),
        ("eager-fp32", "is not built, name it 'eager'"),
    ],
)
def test_an_entry_that_names_no_engine(tmp_path: Path, name: str, told: str) -> None:
    """A precision, batch or suffix that cannot be is a settings error, also behind a usable engine."""
    profile = write_profile(tmp_path)
    with pytest.raises(SettingsError, match=told):
        choose(tmp_path, profile, ("eager", name), 1)


@pytest.mark.parametrize("order", [("abacus",), ("eager", "abacus")])
def test_unknown_name(tmp_path: Path, order: tuple[str, ...]) -> None:
    """A name that is no engine is a settings error naming the known ones, even behind a usable engine."""
    profile = write_profile(tmp_path)
    with pytest.raises(SettingsError, match=f"unknown engine 'abacus'; known: {', '.join(BACKENDS)}"):
        choose(tmp_path, profile, order, 1)


def test_nothing_usable(tmp_path: Path) -> None:
    """When nothing can be used the error lists every reason."""
    profile = write_profile(tmp_path)
    shifted = profile.golden_outputs + np.array([3, 0, 0, 0], np.float32)
    spoiled = LoadedProfile(profile.spec, profile.sha256, profile.weights, profile.golden_inputs, shifted)
    with pytest.raises(EngineError, match=r"openvino: .*; eager: golden pair differs by"):
        choose(tmp_path, spoiled, BOTH, 1)
    with pytest.raises(EngineError, match="order of engines is empty"):
        choose(tmp_path, profile, (), 1)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """Weights of another network give one line that says which keys."""
    from safetensors.numpy import save

    profile = write_profile(tmp_path)
    wrong = LoadedProfile(
        profile.spec,
        profile.sha256,
        save({"model.x": np.zeros(1, np.float32)}),
        profile.golden_inputs,
        profile.golden_outputs,
    )
    with pytest.raises(EngineError, match=r"eager cannot be loaded: weights do not fit the network: .* missing"):
        choose(tmp_path, wrong, ("eager",), 1)


class BrokenEngine:
    """An engine that raises, or returns values that are not finite."""

    name, precision, batch_size = "broken", "fp32", 4

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """NaN for everything."""
        if self._error:
            raise self._error
        return {"logits": np.full((len(x_BCHW), 4), np.nan, np.float32)}

    def close(self) -> None:
        """Nothing to free."""


def test_not_finite_fails_the_self_test(tmp_path: Path) -> None:
    """NaN never passes for agreement."""
    profile = write_profile(tmp_path)
    with pytest.raises(EngineError, match="golden pair differs by nan"):
        self_test(BrokenEngine(), profile)


def test_failure_on_a_batch_fails_the_self_test(tmp_path: Path) -> None:
    """An engine that raises on the golden pair is refused in one line."""
    profile = write_profile(tmp_path)
    with pytest.raises(EngineError, match="golden pair cannot be run: out of registers"):
        self_test(BrokenEngine(RuntimeError("out of\n registers")), profile)


def test_a_reference_of_another_size_fails_the_self_test(tmp_path: Path) -> None:
    """A reference made for another network is found when the engine is loaded, not at the first patch."""
    profile = replace(write_profile(tmp_path), reference=fake_reference())
    with pytest.raises(EngineError, match=r"cannot be compared .* made for embeddings of 8, not 64"):
        self_test(EagerBackend().load(profile, None, 1), profile)


def test_self_test_gives_the_difference(tmp_path: Path) -> None:
    """Eager on the machine that made the golden pair differs by rounding only."""
    profile = write_profile(tmp_path)
    assert self_test(EagerBackend().load(profile, None, 1), profile) < 1e-5


def test_limits_of_the_settings_count_at_every_load(folder: Path) -> None:
    """The golden pair is judged by the settings' limits, of a built engine and of one that needs no build; a limit
    that an engine's build did not keep refuses it.
    """
    profile = read_profile(folder)
    strict = EngineLimits(fp32=Fp32Limits(max_dp=1e-30))
    with pytest.raises(EngineError, match=r"built under other limits: gate 'made up', max_dp: 0\.0001, "):
        choose(folder, profile, ("openvino",), 1, strict)
    shifted = replace(profile, golden_outputs=profile.golden_outputs + np.array([0.05, 0, 0.05, 0], np.float32))
    with pytest.raises(EngineError, match=r"openvino-fp32-b1: golden pair differs .*; eager: golden pair differs"):
        choose(folder, shifted, BOTH, 1)
    wider = EngineLimits(fp32=Fp32Limits(max_dp=0.1))
    assert choose(folder, shifted, BOTH, 1, wider).engine.name == "openvino"


def test_unfinished_builds_are_never_used(folder: Path) -> None:
    """A folder whose gates were not passed is refused even if somebody gives it the name of an engine."""
    target = engine_folder(folder, "openvino", "fp32", 1)
    manifest = built_engines(folder)[0][1]
    assert manifest is not None
    (target / MANIFEST).write_text(manifest.model_copy(update={"figures": None}).sealed().to_json())
    choice = choose(folder, read_profile(folder), BOTH, 1)
    assert "its build was never finished: no gate was passed" in choice.passed_over["openvino-fp32-b1"]


def test_a_public_key_refuses_what_is_not_signed(folder: Path, tmp_path: Path) -> None:
    """With `engine.public_key` an unsigned engine is passed over, a signed one runs, and eager needs no signature."""
    profile = read_profile(folder)
    private, public = key_pair(tmp_path, "ours")
    choice = choose(folder, profile, BOTH, 1, public_key=public)
    assert choice.engine.name == "eager"
    assert "not signed, and engine.public_key" in choice.passed_over["openvino-fp32-b1"]
    target = engine_folder(folder, "openvino", "fp32", 1)
    (target / SIGNATURE).write_bytes(sign((target / MANIFEST).read_bytes(), private))
    assert choose(folder, profile, BOTH, 1, public_key=public).engine.name == "openvino"
