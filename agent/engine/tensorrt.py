"""TensorRT by torch-tensorrt: one serialised engine for the whole network, run by TensorRT's own runtime.

Decides the keywords of the conversion, each of which must exist (unknown ones are swallowed silently there), and
checks what came out: one input, two outputs, layers in the precision asked for. Both packages come from NVIDIA's
package index and are imported when needed.
"""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine.backend import BuildRequest, Built, Engine
from agent.engine.cuda import Card, CudaEngine, Forward, TorchCard, exact
from agent.engine.device import cuda_missing
from agent.engine.eager import import_torch, load_network
from agent.engine.layers import check_census, layer_census
from agent.engine.manifest import Artefacts
from models.profile import LoadedProfile
from models.registry import MODALITIES

PLAN = "model.plan"
FIXED: dict[str, Any] = {
    "disable_tf32": True,  # fp32 is fp32
    "truncate_double": False,
    "require_full_compilation": True,
    "min_block_size": 1,
    "optimization_level": 5,
    "version_compatible": False,
    "hardware_compatible": False,
    "immutable_weights": True,
    "lazy_engine_init": False,
    "cache_built_engines": False,  # its key knows neither weights nor the card nor versions
    "reuse_cached_engines": False,
}
KEYWORDS = ("arg_inputs", "device", "timing_cache_path", *FIXED)
"""Everything that the conversion is called with."""
DEBUGGER_KEYWORDS = ("log_level", "engine_builder_monitor", "logging_dir")
_QUANTISED = {"int8": "INT8_DEFAULT_CFG", "fp8": "FP8_DEFAULT_CFG"}
_INSTALL = "pip install 'spinextract-agent[trt]' (needs NVIDIA's package index)"


def check_keywords(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Raises RuntimeError for a keyword that is no named parameter of the function: it would be swallowed."""
    parameters = inspect.signature(function).parameters
    named = {name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if unknown := [name for name in names if name not in named]:
        raise RuntimeError(f"this torch-tensorrt does not know {', '.join(unknown)} of {function.__name__}")


class TensorRtBackend:
    """The best on NVIDIA's cards."""

    name = "tensorrt"
    needs_build = True
    requires: tuple[str, ...] = ("torch", "torch-tensorrt", "tensorrt")
    devices: tuple[str, ...] = ("cuda",)

    def default_batch(self, device: str) -> int:
        """A card needs many to be busy."""
        return 32

    def unavailable(self, device: str = "cuda") -> str | None:
        """None where both packages are installed and torch sees a card."""
        for module, name in (("torch_tensorrt", "torch-tensorrt"), ("tensorrt", "TensorRT")):
            if importlib.util.find_spec(module) is None:
                return f"{name} is not installed: {_INSTALL}"
        return cuda_missing()

    def precisions(self, device: str = "cuda") -> tuple[str, ...]:
        """fp16, bf16 and fp32; int8 and fp8 when asked for (a build says so where nvidia-modelopt is missing)."""
        capability = import_torch().cuda.get_device_capability()
        bf16, fp8 = ("bf16",) if capability >= (8, 0) else (), ("fp8",) if capability >= (8, 9) else ()
        return ("fp16", *bf16, "fp32", "int8", *fp8)

    def build(self, request: BuildRequest) -> Built:
        """Export the converted network at its one batch shape, and serialise its engine."""
        if request.precision in _QUANTISED and importlib.util.find_spec("modelopt") is None:
            raise RuntimeError(f"{request.precision} needs nvidia-modelopt: pip install nvidia-modelopt")
        torch, torch_tensorrt = import_torch(), _torch_tensorrt()
        from models import lowering

        exact(torch)
        request.announce("export")
        network = load_network(request.profile)
        example = _scaled(torch, request, request.profile.golden_inputs)
        with _quantised(torch, network, request) as module:
            program = lowering.exported(module.cuda(), example)
        request.announce("compile")
        with tempfile.TemporaryDirectory(prefix=".", dir=request.directory) as folder:
            plan = serialised(torch_tensorrt.dynamo, program, example, Path(folder))
        (request.directory / PLAN).write_bytes(plan)
        return Built(dict(zip((network.emits, "embedding"), lowering.columns(program), strict=True)))

    def load(self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int, device: str = "cuda") -> Engine:
        """Deserialise the verified bytes on the first card."""
        if artefacts is None:
            raise ValueError("tensorrt needs a built engine")
        plan, census = artefacts.files[PLAN], Counter[str]()

        @contextmanager
        def network(card: Card) -> Iterator[Forward]:
            assert isinstance(card, TorchCard)
            engine = _deserialised(plan)
            census.update(layer_census(_information(engine)))
            check_census(census, artefacts.manifest.precision)
            yield _forward(engine, MODALITIES[profile.spec.modality].build_scaling(profile.spec), card)

        row_shape = profile.golden_inputs.shape[1:]
        return CudaEngine(artefacts.manifest, row_shape, TorchCard, network, census)


def serialised(dynamo: Any, program: Any, example: Any, folder: Path) -> bytes:
    """The engine's bytes, with the details that the census reads; `folder` takes what the tools write beside it.

    `dynamo` is torch_tensorrt.dynamo. An operation that it cannot convert raises RuntimeError: nothing runs in torch.
    """
    convert, debugger = dynamo.convert_exported_program_to_serialized_trt_engine, dynamo.Debugger
    given = {"arg_inputs": [example], "device": example.device, "timing_cache_path": str(folder / "timing"), **FIXED}
    details = {"log_level": "error", "engine_builder_monitor": False, "logging_dir": str(folder)}
    check_keywords(convert, given)
    check_keywords(debugger, details)
    try:
        with debugger(**details):  # only then does an engine keep the types of its layers
            plan: bytes = convert(program, **given)
    except AssertionError as error:
        raise RuntimeError(f"TensorRT built no engine: {error}") from error
    return plan


def _torch_tensorrt() -> Any:
    try:
        import torch_tensorrt
    except Exception as error:  # it raises nothing narrower where TensorRT's libraries are missing
        raise RuntimeError(f"torch-tensorrt cannot be imported ({error}): {_INSTALL}") from error
    return torch_tensorrt


def _scaled(torch: Any, request: BuildRequest, inputs: Any) -> Any:
    prepare = MODALITIES[request.profile.spec.modality].to_network_input
    rows = np.resize(inputs, (request.batch_size, *inputs.shape[1:]))
    return torch.from_numpy(prepare(request.profile.spec, rows)).cuda()


@contextmanager
def _quantised(torch: Any, network: Any, request: BuildRequest) -> Iterator[Any]:
    """The module to export, within the mode in which it must be exported."""
    from models.lowering import Converted, folded

    example = _scaled(torch, request, request.profile.golden_inputs).cpu()
    whole = folded(network.with_embedding(), example)
    if request.precision not in _QUANTISED:
        yield Converted(whole, request.precision)
        return
    import modelopt.torch.quantization as quantization
    from modelopt.torch.quantization.utils import export_torch_mode

    inputs = request.profile.golden_inputs if request.calibration is None else request.calibration

    def measure(module: Any) -> None:
        for start in range(0, len(inputs), request.batch_size):
            module(_scaled(torch, request, inputs[start : start + request.batch_size]))

    module = Converted(whole, "fp32").cuda().eval()
    with torch.no_grad():
        module = quantization.quantize(module, getattr(quantization, _QUANTISED[request.precision]), measure)
    with export_torch_mode():
        yield module


def _deserialised(plan: bytes) -> Any:
    import tensorrt

    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeError("TensorRT cannot read this engine")
    return engine


def _information(engine: Any) -> str:
    import tensorrt

    inspector = engine.create_engine_inspector()
    text: str = inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)
    return text


def _forward(engine: Any, scaling: Any, card: TorchCard) -> Forward:
    """Scale, then run the engine, both on the card's stream; its outputs are always the same tensors."""
    import tensorrt

    names = sorted(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))  # output0, output1, x
    inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    outputs = {n: card.resident(tuple(engine.get_tensor_shape(n)), "float32") for n in names if n not in inputs}
    if len(inputs) != 1 or len(outputs) != 2:
        raise RuntimeError(f"the engine has {len(inputs)} inputs and {len(outputs)} outputs, not one and two")
    if {engine.get_tensor_dtype(name) for name in names} != {tensorrt.DataType.FLOAT}:
        raise RuntimeError("the engine takes or gives other types than float32")
    context = engine.create_execution_context()
    scaling = scaling.to(card.device)

    def run(raw_BCHW: Any) -> list[Any]:
        x_BCHW = scaling(raw_BCHW).contiguous()
        for name, tensor in ((inputs[0], x_BCHW), *outputs.items()):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(card.stream.cuda_stream):
            raise RuntimeError("TensorRT did not start")
        return list(outputs.values())

    return run
