"""OpenVINO on the CPU: converted from torch at build time; at run time it reads the IR and never imports torch.

Decides precision and threads, and checks that the compiled graph really runs in the precision asked for.
Nothing phones home: see `_openvino`.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import BuildRequest, Built, check_rows, thread_count
from agent.engine.manifest import Artefacts
from models.contract import Prediction
from models.profile import LoadedProfile
from models.registry import MODALITIES

IR_XML, IR_BIN = "model.xml", "model.bin"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16", "fp32": "FP32"}
_ARITHMETIC = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution")
MIN_SHARE = 0.9
"""Least share of the arithmetic layers that must run in the precision asked for."""


def _openvino() -> Any:
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
            census[info["runtimePrecision"].value] += 1
    return dict(census)


class OpenVinoEngine:
    """One compiled model, one stream, one synchronous request."""

    name = "openvino"

    def __init__(self, profile: LoadedProfile, artefacts: Artefacts, threads: int) -> None:
        manifest = artefacts.manifest
        self.precision, self.batch_size = manifest.precision, manifest.batch_size
        self._spec = profile.spec
        self._prepare = MODALITIES[profile.spec.modality].to_network_input
        ov = _openvino()
        model = ov.Core().read_model(artefacts.files[IR_XML], artefacts.files[IR_BIN])
        hint = _HINTS[self.precision]
        compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": hint,
                "EXECUTION_MODE_HINT": "ACCURACY" if self.precision == "fp32" else "PERFORMANCE",
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": thread_count(threads),
                # Pinned threads starve when another process holds "their" core.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.census = precision_census(compiled)
        share = self.census.get(hint, 0) / max(1, sum(self.census.values()))
        if share < MIN_SHARE:
            raise RuntimeError(f"asked for {self.precision}, but the compiled layers run in {self.census}")
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        if set(self._outputs) != set(manifest.outputs):
            raise RuntimeError(f"the model gives {', '.join(self._outputs)}, its manifest says {manifest.outputs}")
        self._request = compiled.create_infer_request()

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        check_rows(self, x_BCHW)
        # Inputs are copied (share_inputs=False): the CPU plugin may run its first layers in place on a shared one.
        results = self._request.infer([self._prepare(self._spec, x_BCHW)], share_inputs=False)
        return {name: np.array(results[index], np.float32) for index, name in enumerate(self._outputs)}

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
        """bf16 and fp16 where the processor has instructions for them; fp32 always."""
        found = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(name for name, capability in _CAPABILITIES.items() if capability in found)

    def build(self, request: BuildRequest) -> Built:
        """Export the torch module with its embedding at its one batch shape; save it as IR, weights in fp32."""
        from agent.engine.eager import import_torch, load_network

        torch = import_torch()
        ov = _openvino()
        profile = request.profile
        prepare = MODALITIES[profile.spec.modality].to_network_input
        rows = np.resize(profile.golden_inputs, (request.batch_size, *profile.golden_inputs.shape[1:]))
        example = torch.from_numpy(prepare(profile.spec, rows))
        network = load_network(profile)
        torch.set_num_threads(1)  # on a busy machine torch's threads wait for each other
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own decompositions use names that torch deprecates; nothing of it concerns us.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            exported = torch.export.export(network.with_embedding(), (example,))
            model = ov.convert_model(exported, input=list(example.shape))
        names = (network.emits, "embedding")
        for output, name in zip(model.outputs, names, strict=True):
            output.get_tensor().set_names({name})
        ov.save_model(model, str(request.directory / IR_XML), compress_to_fp16=False)
        return Built({name: output.shape[1] for output, name in zip(model.outputs, names, strict=True)})

    def load(
        self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int, device: str = "cpu"
    ) -> OpenVinoEngine:
        """Compile the IR for this processor."""
        if artefacts is None:
            raise ValueError("openvino needs a built engine")
        return OpenVinoEngine(profile, artefacts, threads)
