"""What is particular to OpenVINO: no torch at run time, nothing sent anywhere, the precision that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.engine import class_probabilities, load_built, open_built, predict_padded
from agent.engine.backend import PRECISIONS
from agent.engine.eager import EagerBackend
from agent.engine.gates import independence_gate, require
from agent.engine.manifest import Artefacts, ProfileRef, engine_folder, read_engine
from agent.engine.openvino import IR_XML, OpenVinoBackend, OpenVinoEngine
from agent.engine_limits import STRICT
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_openvino, write_profile
from tests.agent.engine.unproven import build_unproven

ROOT = Path(__file__).parents[3]

# Runs in a fresh process: every attempt to reach the network or to start a process is recorded and refused.
WATCHED = """
import sys, threading, time
attempts = []
def refuse(event, args):
    if event.startswith(("socket.", "os.fork", "subprocess.", "os.posix_spawn", "urllib.")):
        attempts.append(event)
        raise OSError(event)
from pathlib import Path
from agent.engine import choose
from models.profile import load_profile
sys.addaudithook(refuse)
folder = Path(sys.argv[1])
profile = load_profile(lambda name: (folder / name).read_bytes())
choice = choose(folder, profile, ("openvino",), 1)
deadline = time.monotonic() + 5
while any("elemetry" in t.name for t in threading.enumerate()) and time.monotonic() < deadline:
    time.sleep(0.01)
print(choice.engine.name, "torch" in sys.modules, "openvino_telemetry.main" in sys.modules, attempts)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder shared by this module."""
    need_openvino()
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def profile(folder: Path) -> LoadedProfile:
    """The profile in it, with an fp32 engine beside it."""
    made = write_profile(folder)
    build_unproven(OpenVinoBackend(), made, engine_folder(folder, "openvino", "fp32", 1), "fp32", 1)
    return made


@pytest.mark.usefixtures("profile")
def test_no_torch_and_no_call_home(folder: Path, tmp_path: Path) -> None:
    """Loading and running the engine in a fresh process imports no torch, opens no socket, starts no process and
    leaves nothing in the user's home."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.split(maxsplit=3) == ["openvino", "False", "False", "[]\n"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_precisions_of_this_machine() -> None:
    """fp32 is always there; int8, which must be asked for, comes after it; every precision named is one of ours."""
    need_openvino()
    found = OpenVinoBackend().precisions()
    assert "fp32" in found
    assert set(found[found.index("fp32") + 1 :]) <= {"int8"}
    assert set(found) <= set(PRECISIONS)


def test_layers_run_in_the_precision_asked_for(folder: Path, profile: LoadedProfile) -> None:
    """The census of the compiled graph shows every convolution and product in the precision of the manifest."""
    artefacts = read_engine(engine_folder(folder, "openvino", "fp32", 1), ProfileRef.of(profile))
    for precision in set(OpenVinoBackend().precisions()) - {"int8"}:
        manifest = artefacts.manifest.model_copy(update={"precision": precision})
        engine = OpenVinoEngine(profile, Artefacts(manifest, artefacts.files), 1)
        assert engine.census[precision] >= STRICT.of(precision).layer_share * sum(engine.census.values())
        assert sum(engine.census.values()) >= 20 + 6  # ResNet-18's convolutions, the head's products
        engine.close()


def test_a_graph_that_is_not_quantised_is_no_int8_engine(folder: Path, profile: LoadedProfile) -> None:
    """A manifest that says int8 beside a graph in fp32 is refused with what its layers run in."""
    if "int8" not in OpenVinoBackend().precisions():
        pytest.skip("this processor has no int8")
    artefacts = read_engine(engine_folder(folder, "openvino", "fp32", 1), ProfileRef.of(profile))
    manifest = artefacts.manifest.model_copy(update={"precision": "int8"})
    with pytest.raises(RuntimeError, match="asked for int8"):
        OpenVinoEngine(profile, Artefacts(manifest, artefacts.files), 1)


def test_damaged_ir_is_a_clear_error(folder: Path, profile: LoadedProfile) -> None:
    """Bytes that are no IR raise one of the errors that the choice of an engine expects."""
    artefacts = read_engine(engine_folder(folder, "openvino", "fp32", 1), ProfileRef.of(profile))
    with pytest.raises(RuntimeError):
        OpenVinoEngine(profile, Artefacts(artefacts.manifest, {**artefacts.files, IR_XML: b"<net/>"}), 1)


def test_a_model_with_other_outputs_is_refused(folder: Path, profile: LoadedProfile) -> None:
    """A model that does not give what its manifest says raises one of the errors that the choice expects."""
    artefacts = read_engine(engine_folder(folder, "openvino", "fp32", 1), ProfileRef.of(profile))
    assert artefacts.manifest.outputs == {"logits": 4, "embedding": 64}
    manifest = artefacts.manifest.model_copy(update={"outputs": {"logits": 4}})
    with pytest.raises(RuntimeError, match="gives logits, embedding"):
        OpenVinoEngine(profile, Artefacts(manifest, artefacts.files), 1)


def test_engine_without_artefacts(profile: LoadedProfile) -> None:
    """OpenVINO never runs from a profile alone."""
    with pytest.raises(ValueError, match="needs a built engine"):
        OpenVinoBackend().load(profile, None, 1)


def test_weights_are_those_of_the_profile(folder: Path, profile: LoadedProfile) -> None:
    """fp32 OpenVINO and eager agree to rounding: BatchNorm was folded with this profile's statistics."""
    built = load_built(profile, engine_folder(folder, "openvino", "fp32", 1), 1)
    eager = EagerBackend().load(profile, None, 1)
    for x_CHW in profile.golden_inputs:
        found, expected = built.predict(x_CHW[None])["logits"], eager.predict(x_CHW[None])["logits"]
        assert abs(found - expected).max() < 1e-4


SIZES = [{}, {"attention_heads": 2}, {"token_dim": 16, "attention_heads": 4}, {"width": 16, "attention_heads": 4}]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_of_any_size(tmp_path: Path, sizes: dict[str, int], precision: str) -> None:
    """Heads of any size agree with eager and repeat bit for bit on two threads, also with as many tokens as heads:
    OpenVINO fuses the usual forms of attention wrongly there."""
    need_openvino()
    if precision not in OpenVinoBackend().precisions():
        pytest.skip(f"this processor has no {precision}")
    profile = write_profile(tmp_path, sizes=sizes)
    target = engine_folder(tmp_path, "openvino", precision, 1)
    build_unproven(OpenVinoBackend(), profile, target, precision, 1)
    engine = open_built(profile, target, 2)
    expected = class_probabilities({"logits": profile.golden_outputs})
    found = class_probabilities(predict_padded(engine, profile.golden_inputs))
    # These random heads are steeper than trained ones; the fault that this guards against gives 0.3 and more.
    assert abs(found - expected).max() < {"fp32": 1e-5, "bf16": 0.1}[precision]
    require(independence_gate(engine, profile))
