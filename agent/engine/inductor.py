"""AOTInductor, on the CPU and on cards: compiled by torch and a C++ compiler; loading needs torch, but no compiler.

Decides what is compiled with which options, and that a build leaves nothing behind. On the CPU raw counts are scaled
on the host, as for OpenVINO; on a card they go up as they are and are scaled there, in fp32.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.aoti import PACKAGE, Library, library_of, make_loadable, torch_loader, unpacked
from agent.engine.backend import BuildRequest, Built, Engine, check_rows, kind_of, thread_count
from agent.engine.cuda import Card, CudaEngine, Forward, TorchCard, exact
from agent.engine.device import cuda_missing, this_cpu
from agent.engine.eager import import_torch, load_network
from agent.engine.manifest import Artefacts
from models.contract import Prediction
from models.profile import LoadedProfile
from models.registry import MODALITIES

CENSUS = "census.json"
"""Layers by precision, beside the package: the compiled code does not tell any more."""
_COMPILER = "g++"
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_OPTIONS = {
    "freezing": True,  # weights are constants: BatchNorm is folded, layouts are chosen once
    "compile_threads": 1,  # more are processes, which outlive the build
    "aot_inductor.precompile_headers": False,  # slower for one build, and kept outside our folder
    "cpp.dynamic_threads": True,  # else the number of threads is that of the build
    "cpp.vec_isa_ok": True,  # else three small programs are compiled and run first, 7 s, to try the instructions
}
_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


class InductorEngine:
    """One compiled library on the CPU."""

    name = "inductor"

    def __init__(self, profile: LoadedProfile, artefacts: Artefacts, threads: int) -> None:
        manifest = artefacts.manifest
        self.precision, self.batch_size = manifest.precision, manifest.batch_size
        self.census = _census(artefacts)
        self._spec = profile.spec
        self._prepare = MODALITIES[profile.spec.modality].to_network_input
        self._shape = (manifest.batch_size, *profile.golden_inputs.shape[1:])
        self._torch = torch = import_torch()
        torch.set_num_threads(thread_count(threads))
        with unpacked(artefacts.files[PACKAGE]) as folder:
            self._library = Library(library_of(folder))
        (emits,) = set(manifest.outputs) - {"embedding"}
        self._names = (emits, "embedding")
        self._outputs_agree(manifest.outputs)

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        check_rows(self, x_BCHW)
        if x_BCHW.shape != self._shape:  # the compiled code does not look
            raise ValueError(f"expected {list(self._shape)}, got {list(x_BCHW.shape)}")
        self._torch.get_num_threads()  # the first such call of a thread gives it the process's number
        outputs = self._library.run(self._torch.from_numpy(self._prepare(self._spec, x_BCHW)))
        return {name: output.numpy() for name, output in zip(self._names, outputs, strict=True)}

    def close(self) -> None:
        """Free the weights."""
        self._library.close()

    def _outputs_agree(self, outputs: dict[str, int]) -> None:
        if (self._library.inputs, self._library.outputs) != (1, len(self._names)):
            raise RuntimeError(f"{PACKAGE} gives {self._library.outputs} outputs, its manifest says {outputs}")
        found = {name: rows.shape[1] for name, rows in self.predict(np.zeros(self._shape, np.uint16)).items()}
        if found != outputs:
            raise RuntimeError(f"{PACKAGE} gives {found}, its manifest says {outputs}")


class InductorBackend:
    """torch's own compiler: nothing else to install to run it."""

    name = "inductor"
    needs_build = True
    requires: tuple[str, ...] = ("torch",)
    devices: tuple[str, ...] = ("cpu", "cuda")

    def default_batch(self, device: str) -> int:
        """One on the CPU, which is as fast as any; a card needs more to be busy."""
        return 1 if kind_of(device) == "cpu" else 32

    def unavailable(self, device: str = "cpu") -> str | None:
        """None where torch is installed and, for a card, sees one. Only a build needs a compiler."""
        if kind_of(device) == "cuda":
            return cuda_missing()
        return None if importlib.util.find_spec("torch") else "torch is not installed: pip install torch"

    def precisions(self, device: str = "cpu") -> tuple[str, ...]:
        """bf16 where the processor or the card computes in it, fp16 on cards, fp32 always."""
        if kind_of(device) == "cpu":
            return ("bf16", "fp32") if _BF16.intersection(this_cpu().instructions) else ("fp32",)
        major, _ = import_torch().cuda.get_device_capability()
        return ("bf16", "fp16", "fp32") if major >= 8 else ("fp16", "fp32")

    def build(self, request: BuildRequest) -> Built:
        """Export the network with its embedding at its one batch shape, and compile it into one package."""
        if shutil.which(os.environ.get("CXX", _COMPILER)) is None:
            raise RuntimeError("a C++ compiler is needed to build (not to run): apt-get install g++")
        torch = import_torch()
        torch.set_num_threads(1)  # on a busy machine torch's threads wait for each other
        with _private_caches(request.directory):
            from torch._inductor import aoti_compile_and_package

            from models import lowering

            request.announce("export")
            program = lowering.exported(*_module(torch, request))
            request.announce("compile")
            package = request.directory / PACKAGE
            with torch.no_grad(), lowering.torch_deprecations_ignored():
                aoti_compile_and_package(program, package_path=str(package), inductor_configs=dict(_OPTIONS))
        make_loadable(package)
        (request.directory / CENSUS).write_text(json.dumps(lowering.arithmetic_census(program)))
        emits = load_network(request.profile).emits
        return Built(dict(zip((emits, "embedding"), lowering.columns(program), strict=True)))

    def load(self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int, device: str = "cpu") -> Engine:
        """Load the library for the device that it was built for, from the verified bytes."""
        if artefacts is None:
            raise ValueError("inductor needs a built engine")
        if artefacts.manifest.device.kind == "cpu":
            return InductorEngine(profile, artefacts, threads)
        row_shape = profile.golden_inputs.shape[1:]

        @contextmanager
        def network(card: Card) -> Iterator[Forward]:
            with unpacked(artefacts.files[PACKAGE]) as folder:  # kernels are read from there when they first run
                loader = torch_loader(folder, 0)
                yield lambda x_BCHW: loader.boxed_run([x_BCHW])

        return CudaEngine(artefacts.manifest, row_shape, TorchCard, network, _census(artefacts))


def _census(artefacts: Artefacts) -> dict[str, int]:
    census: dict[str, int] = json.loads(artefacts.files[CENSUS])
    return census


def _module(torch: Any, request: BuildRequest) -> tuple[Any, Any]:
    """The module to compile and an example of its input, both on the device."""
    from models.lowering import Autocast, folded, settled

    profile, kind = request.profile, kind_of(request.device)
    modality = MODALITIES[profile.spec.modality]
    rows = np.resize(profile.golden_inputs, (request.batch_size, *profile.golden_inputs.shape[1:]))
    example = torch.from_numpy(modality.to_network_input(profile.spec, rows))
    network = folded(load_network(profile).with_embedding(), example)
    golden = torch.from_numpy(modality.to_network_input(profile.spec, profile.golden_inputs))
    network = settled(network, golden, request.precision)
    if kind == "cpu":
        module: Any = Autocast(network, request.precision, kind)
    else:
        exact(torch)
        example = torch.from_numpy(rows.view(np.int16))
        module = Autocast(network, request.precision, kind, modality.build_scaling(profile.spec))
    return module.to(kind).to(memory_format=torch.channels_last), example.to(kind)


@contextmanager
def _private_caches(directory: Path) -> Iterator[None]:
    """The compiler's caches in a folder inside `directory` that is gone afterwards, whatever the environment says."""
    with tempfile.TemporaryDirectory(prefix=".", dir=directory) as folder:
        before = {name: os.environ.get(name) for name in _CACHES}
        os.environ.update({name: str(Path(folder, sub)) for name, sub in _CACHES.items()})
        try:
            from torch._inductor.utils import clear_caches

            clear_caches()
            yield
            clear_caches()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
