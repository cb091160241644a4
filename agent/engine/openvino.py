"""OpenVINO on the CPU: at run time it reads the graph (IR) that the build wrote, and never imports torch.

Decides precision and threads, and checks that the compiled graph really runs in the precision asked for.
Nothing phones home: see `import_openvino`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import BuildRequest, Built, check_rows, thread_count
from agent.engine.device import this_cpu
from agent.engine.manifest import Artefacts
from agent.engine_limits import STRICT
from models.contract import Prediction
from models.profile import LoadedProfile
from models.registry import MODALITIES

IR_XML, IR_BIN = "model.xml", "model.bin"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16", "fp32": "FP32"}
_INT8_INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"}
"""Without one of them 8-bit products overflow their 16 bits, and answers change."""
_ARITHMETIC = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution")
_NAMES = {"f32": "fp32", "f16": "fp16", "u8": "int8", "i8": "int8"}


def import_openvino() -> Any:
    """The openvino module, with its telemetry cut off.

    `import openvino` (2025 and 2026) imports openvino_telemetry, which on first use makes a client id under
    ~/intel, and forks a process that sends an event to Google Analytics, without asking. There is no switch
    other than a file in the user's home. openvino carries its own stub for the case that the package is missing,
    so we let its import fail.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def precision_census(compiled: Any) -> dict[str, int]:
    """How many arithmetic layers of a compiled model run in which precision, e.g. {"bf16": 33}."""
    census: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].value in _ARITHMETIC:
            found = info["runtimePrecision"].value
            census[_NAMES.get(found, found)] += 1
    return dict(census)


def compile_graph(model: Any, precision: str, threads: int) -> Any:
    """Compile for the least latency. With int8, what is not quantised runs in bf16 where the processor has it."""
    core = import_openvino().Core()
    rest = "bf16" if "bf16" in _offered(core) else "fp32"
    return core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[rest if precision == "int8" else precision],
            "EXECUTION_MODE_HINT": "ACCURACY" if precision == "fp32" else "PERFORMANCE",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": thread_count(threads),
            # Pinned threads starve when another process holds "their" core.
            "ENABLE_CPU_PINNING": False,
        },
    )


def run_graph(request: Any, x_BCHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Every output, copied. So are inputs: the CPU plugin may run its first layers in place on a shared one."""
    results = request.infer([x_BCHW], share_inputs=False)
    return [np.array(results[index], np.float32) for index in range(len(results))]


def _offered(core: Any) -> tuple[str, ...]:
    """Precisions that the processor has instructions for, best first; int8, which must be asked for, last."""
    found = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    plain = tuple(name for name, capability in _CAPABILITIES.items() if capability in found)
    return (*plain, "int8") if _INT8_INSTRUCTIONS.intersection(this_cpu().instructions) else plain


class OpenVinoEngine:
    """One compiled model, one stream, one synchronous request."""

    name = "openvino"

    def __init__(self, profile: LoadedProfile, artefacts: Artefacts, threads: int) -> None:
        manifest = artefacts.manifest
        self.precision, self.batch_size = manifest.precision, manifest.batch_size
        self._spec = profile.spec
        self._prepare = MODALITIES[profile.spec.modality].to_network_input
        model = import_openvino().Core().read_model(artefacts.files[IR_XML], artefacts.files[IR_BIN])
        compiled = compile_graph(model, self.precision, threads)
        self.census = precision_census(compiled)
        share = self.census.get(self.precision, 0) / max(1, sum(self.census.values()))
        if share < STRICT.of(self.precision).layer_share:
            raise RuntimeError(f"asked for {self.precision}, but the compiled layers run in {self.census}")
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        if set(self._outputs) != set(manifest.outputs):
            raise RuntimeError(f"the model gives {', '.join(self._outputs)}, its manifest says {manifest.outputs}")
        self._request = compiled.create_infer_request()

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        check_rows(self, x_BCHW)
        values = run_graph(self._request, self._prepare(self._spec, x_BCHW))
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Drop the compiled model."""
        self._request = None


class OpenVinoBackend:
    """The default without a GPU: bf16 where the processor has it."""

    name = "openvino"
    needs_build = True
    requires: tuple[str, ...] = ("openvino",)
    devices: tuple[str, ...] = ("cpu",)

    def default_batch(self, device: str) -> int:
        """One: as fast as any, and the least latency."""
        return 1

    def unavailable(self, device: str = "cpu") -> str | None:
        """None where openvino is installed."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: pip install 'spinextract-agent[cpu]'"
        return None

    def precisions(self, device: str = "cpu") -> tuple[str, ...]:
        """bf16, fp16 and int8 where the processor has instructions for them; fp32 always."""
        return _offered(import_openvino().Core())

    def build(self, request: BuildRequest) -> Built:
        """Convert from torch, and for int8 quantise; save the graph."""
        from agent.engine.openvino_build import build

        return build(request)

    def load(
        self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int, device: str = "cpu"
    ) -> OpenVinoEngine:
        """Compile the IR for this processor."""
        if artefacts is None:
            raise ValueError("openvino needs a built engine")
        return OpenVinoEngine(profile, artefacts, threads)
