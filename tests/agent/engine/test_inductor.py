"""What is particular to AOTInductor: nothing left behind, verified bytes, no compiler and no lock at run time."""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.engine import load_built, open_built, predict_padded, self_test
from agent.engine.aoti import PACKAGE, Library, library_of, torch_loader, unpacked, without_executable_stack
from agent.engine.backend import BuildRequest
from agent.engine.device import this_cpu
from agent.engine.eager import EagerBackend
from agent.engine.gates import independence_gate
from agent.engine.inductor import CENSUS, InductorBackend, InductorEngine
from agent.engine.manifest import Artefacts, ProfileRef, engine_folder, read_engine
from agent.errors import EngineError
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_compiler, read_profile, textured, write_profile

ROOT = Path(__file__).parents[3]
BATCH = 2
pytestmark = pytest.mark.timeout(500)  # one build compiles for half a minute of a core

BUILD = """
import multiprocessing, sys
from pathlib import Path
from agent.engine import find_backend
from tests.agent.engine.small_profile import read_profile
from tests.agent.engine.unproven import build_unproven
folder, target = Path(sys.argv[1]), Path(sys.argv[2])
build_unproven(find_backend("inductor"), read_profile(folder), target, "fp32", int(sys.argv[3]))
children = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
print(children, "subproc_pool" in str(multiprocessing.active_children()))
"""

# A fresh process without a compiler and with its own, empty folder for temporary files.
LOAD = """
import os, sys, tempfile
from pathlib import Path
from agent.engine import load_built, predict_padded
from tests.agent.engine.small_profile import read_profile
folder, target = Path(sys.argv[1]), Path(sys.argv[2])
started = []
sys.addaudithook(lambda event, args: started.append(event) if event in ("subprocess.Popen", "os.fork") else None)
profile = read_profile(folder)
engine = load_built(profile, target, 1)
predict_padded(engine, profile.golden_inputs)
stack = next(line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if "[stack]" in line)
print(os.listdir(tempfile.gettempdir()), started, "torch._inductor" in sys.modules, stack)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder shared by this module."""
    made = tmp_path_factory.mktemp("profile")
    write_profile(made, sizes={"layers": 1})
    return made


@pytest.fixture(scope="module")
def target(folder: Path) -> Path:
    """Where its engine lies."""
    return engine_folder(folder, "inductor", "fp32", BATCH)


@pytest.fixture(scope="module")
def build(folder: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A build in a process of its own: what it said, and the only place that it had for files elsewhere."""
    need_compiler()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run(BUILD, str(folder), str(target), str(BATCH), TMPDIR=str(elsewhere), HOME=str(elsewhere))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), elsewhere


@pytest.fixture(scope="module")
def artefacts(build: tuple[str, Path], folder: Path, target: Path) -> Artefacts:
    """The engine's verified bytes."""
    return read_engine(target, ProfileRef.of(read_profile(folder)), unproven=True)


@pytest.fixture(scope="module")
def profile(folder: Path) -> LoadedProfile:
    """The profile."""
    return read_profile(folder)


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_build_leaves_nothing_behind(build: tuple[str, Path], target: Path) -> None:
    """No process of the compiler lives on, no file is left elsewhere, the engine's folder holds the engine alone."""
    said, elsewhere = build
    assert said == "[] False"
    assert [path.relative_to(elsewhere) for path in elsewhere.rglob("*") if path.is_file()] == []
    assert {path.name for path in target.iterdir()} == {PACKAGE, CENSUS, "engine.json"}


def test_loading_needs_no_compiler(artefacts: Artefacts, folder: Path, target: Path, tmp_path: Path) -> None:
    """Without g++ the engine loads and runs, starts no process, leaves no file; the compiler is not imported, and no
    stack becomes executable.
    """
    assert artefacts.manifest.outputs == {"logits": 4, "embedding": 64}
    done = run(LOAD, str(folder), str(target), TMPDIR=str(tmp_path), PATH=str(tmp_path))
    assert done.stdout.strip() == "[] [] False rw-p", done.stderr


def test_the_private_folder_is_private_and_gone(artefacts: Artefacts) -> None:
    """What is loaded lies in a folder of mode 0700 while it is loaded, and not afterwards."""
    with unpacked(artefacts.files[PACKAGE]) as private:
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert library_of(private).is_relative_to(private)
    assert not private.exists()


def test_it_runs_from_the_verified_bytes(artefacts: Artefacts, profile: LoadedProfile) -> None:
    """The engine runs from the bytes that were verified, not from a path; the same bits in every slot."""
    engine = InductorBackend().load(profile, artefacts, 1)
    assert self_test(engine, profile) < 1e-4
    independence_gate(engine, profile)
    engine.close()


def test_the_same_bits_as_by_torchs_own_loader(artefacts: Artefacts, profile: LoadedProfile) -> None:
    """Calling the library by its C interface changes no bit; torch's loader takes the same folder (cards use it)."""
    x = torch.rand(BATCH, 3, 64, 64)
    with unpacked(artefacts.files[PACKAGE]) as private:
        library, loader = Library(library_of(private)), torch_loader(private, -1)
    found, expected = library.run(x), loader.boxed_run([x])
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]
    library.close()


def test_a_run_does_not_hold_the_interpreters_lock(artefacts: Artefacts) -> None:
    """The library is called as ctypes calls foreign code, without the lock: readers run while it computes."""
    with unpacked(artefacts.files[PACKAGE]) as private:
        library = Library(library_of(private))
    assert isinstance(library.functions, ctypes.CDLL) and not isinstance(library.functions, ctypes.PyDLL)
    library.close()


def test_what_the_library_cannot_do_is_an_error(artefacts: Artefacts) -> None:
    """A failed call of the library raises RuntimeError with its words; a closed one is not called."""
    with unpacked(artefacts.files[PACKAGE]) as private:
        with pytest.raises(RuntimeError, match=r"\w+"):
            Library(library_of(private), "abacus")
        library = Library(library_of(private))
    library.close()
    library.close()  # a second time does nothing
    with pytest.raises(RuntimeError, match="is closed"):
        library.run(torch.zeros(BATCH, 3, 64, 64))


def test_other_shapes_are_refused(artefacts: Artefacts, profile: LoadedProfile) -> None:
    """The compiled code reads memory of one shape without looking: others raise ValueError before."""
    engine = InductorBackend().load(profile, artefacts, 1)
    with pytest.raises(ValueError, match=f"takes {BATCH} rows"):
        engine.predict(textured(BATCH + 1))
    with pytest.raises(ValueError, match=r"expected \[2, 2, 64, 64\]"):
        engine.predict(np.ascontiguousarray(textured(BATCH)[:, :, :32]))
    engine.close()


def test_damaged_packages_are_clear_errors(artefacts: Artefacts, profile: LoadedProfile) -> None:
    """Bytes that are no package, and a package without a library, raise what the choice of an engine expects."""
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    for package, words in ((b"PK", "no AOTInductor package"), (empty.getvalue(), "holds 0 libraries")):
        with pytest.raises(ValueError, match=words):
            InductorBackend().load(profile, Artefacts(artefacts.manifest, {**artefacts.files, PACKAGE: package}), 1)


def test_a_package_that_needs_torchs_operations_is_refused(tmp_path: Path) -> None:
    """Operations that the compiler left to torch are listed in a file beside the library: that is refused."""
    model = tmp_path / "model" / "data" / "aotinductor" / "model"
    model.mkdir(parents=True)
    (model / "a.wrapper.so").touch()
    (model / "a.wrapper_metadata.json").touch()
    assert library_of(tmp_path) == model / "a.wrapper.so"
    (model / "a.wrapper.json").touch()
    with pytest.raises(ValueError, match=r"operations that only torch has \(a\.wrapper\.json\)"):
        library_of(tmp_path)


def test_other_outputs_than_the_manifest_says(artefacts: Artefacts, profile: LoadedProfile) -> None:
    """A package that does not give what its manifest says is refused at the load."""
    for outputs in ({"logits": 5, "embedding": 64}, {"logits": 4, "embedding": 65}):
        manifest = artefacts.manifest.model_copy(update={"outputs": outputs})
        with pytest.raises(RuntimeError, match="its manifest says"):
            InductorBackend().load(profile, Artefacts(manifest, artefacts.files), 1)


def test_no_library_asks_for_an_executable_stack(artefacts: Artefacts) -> None:
    """The mark is taken off the library that the compiler made, and nothing else is changed; rubbish is refused."""
    with unpacked(artefacts.files[PACKAGE]) as private:
        library = library_of(private).read_bytes()
    assert without_executable_stack(library) == library
    header = next(i for i in range(64, 4096, 8) if library[i : i + 4] == b"\x51\xe5\x74\x64")  # PT_GNU_STACK
    assert library[header + 4] == 6  # to be read and written
    marked = library[: header + 4] + b"\x07" + library[header + 5 :]
    assert without_executable_stack(marked) == library
    with pytest.raises(ValueError, match="no 64-bit"):
        without_executable_stack(b"\x7fELF\x01\x01")


def test_another_torch_is_refused(artefacts: Artefacts, target: Path, profile: LoadedProfile, tmp_path: Path) -> None:
    """The engine is bound to the exact version of torch, and the reason says so."""
    assert artefacts.manifest.requires == {"torch": version("torch")}
    other = tmp_path / "engines" / target.name
    shutil.copytree(target, other)
    manifest = artefacts.manifest.model_copy(update={"requires": {"torch": "2.12.0"}}).sealed()
    (other / "engine.json").write_text(manifest.to_json())
    with pytest.raises(EngineError, match=r"built with torch 2\.12\.0, this machine has .*agent\.build_trt"):
        open_built(profile, other, 1)


def test_weights_are_those_of_the_profile(artefacts: Artefacts, target: Path, profile: LoadedProfile) -> None:
    """fp32 from here and eager agree to rounding; every layer is counted in its precision."""
    engine = load_built(profile, target, 2)
    assert isinstance(engine, InductorEngine) and engine.census.keys() == {"fp32"}
    assert engine.census["fp32"] >= 20 + 6  # ResNet-18's convolutions, the head's products
    found = predict_padded(engine, profile.golden_inputs)
    expected = predict_padded(EagerBackend().load(profile, None, 1), profile.golden_inputs)
    assert abs(found["logits"] - expected["logits"]).max() < 1e-4
    engine.close()


def test_without_a_compiler_a_build_says_so(
    profile: LoadedProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build needs g++ and says how to get it; using a built engine does not."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert InductorBackend().unavailable() is None
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler .*g\+\+"):
        InductorBackend().build(BuildRequest(profile, tmp_path, "fp32", 1, 1))


def test_devices_and_precisions() -> None:
    """bf16 where the processor computes in it, fp32 last; a card takes batches."""
    backend = InductorBackend()
    assert backend.precisions()[-1] == "fp32"
    assert ("bf16" in backend.precisions()) == bool(
        {"avx512_bf16", "amx_bf16", "bf16"} & set(this_cpu().instructions)
    )
    assert (backend.default_batch("cpu"), backend.default_batch("cuda:1")) == (1, 32)
