"""From a profile's torch network to the graph that the OpenVINO engine reads; for int8 with its proof of answers.

Decides what the calibration may use and what a trial is judged on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import BuildRequest, Built
from agent.engine.int8 import Found, search
from agent.engine.openvino import IR_XML, compile_graph, import_openvino, run_graph
from models.profile import LoadedProfile
from models.registry import MODALITIES

CALIBRATION_PATCHES = 64
"""Most patches that ranges and moments are measured on."""
TRIAL_PATCHES = 192
"""Inputs that a trial of int8 is judged on; half of them blends of two."""


def build(request: BuildRequest) -> Built:
    """Export the torch module with its embedding at its one batch shape; save it as IR, weights in fp32 or int8.

    Raises RuntimeError, ValueError, OSError.
    """
    model = convert(request.profile, request.batch_size, request.precision)
    notes: dict[str, str] = {}
    if request.precision == "int8":
        found = search_int8(model if request.batch_size == 1 else convert(request.profile, 1, "int8"), request)
        model, notes = found.quantise(model), found.notes
    return save(model, request.directory, notes)


def save(model: Any, directory: Path, notes: dict[str, str]) -> Built:
    """Write a graph as IR, as the engine reads it."""
    import_openvino().save_model(model, str(directory / IR_XML), compress_to_fp16=False)
    return Built({output.get_any_name(): output.shape[1] for output in model.outputs}, notes)


def convert(profile: LoadedProfile, batch_size: int, precision: str) -> Any:
    """The network's graph with its weights in fp32, ready for `precision`; its outputs are named by what the head
    emits, and `embedding`.
    """
    from agent.engine.eager import import_torch, load_network

    torch, ov = import_torch(), import_openvino()
    from models.lowering import exported, folded, settled, torch_deprecations_ignored

    prepare = MODALITIES[profile.spec.modality].to_network_input
    rows = np.resize(profile.golden_inputs, (batch_size, *profile.golden_inputs.shape[1:]))
    example = torch.from_numpy(prepare(profile.spec, rows))
    network = load_network(profile)
    torch.set_num_threads(1)  # on a busy machine torch's threads wait for each other
    module = network.with_embedding()
    if precision == "bf16":
        golden = torch.from_numpy(prepare(profile.spec, profile.golden_inputs))
        module = settled(folded(module, example), golden, precision)
    with torch_deprecations_ignored():
        model = ov.convert_model(exported(module, example), input=list(example.shape))
    names = (network.emits, "embedding")
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return model


def search_int8(model: Any, request: BuildRequest) -> Found:
    """How to quantise a network: its graph of batch size 1 is measured on some patches of the profile's domain, and
    trials are judged on others. Raises RuntimeError when the answers would change.
    """
    from agent.engine import class_probabilities
    from agent.engine.expected import made_inputs
    from agent.engine.gates import compare

    profile, limits = request.profile, request.limits.of("int8")
    known = profile.golden_inputs if request.calibration is None else request.calibration
    calibration, unseen = known[::2][:CALIBRATION_PATCHES], known[1::2]

    def compiled(graph: Any, precision: str) -> Any:
        return compile_graph(graph, precision, request.threads)

    def probabilities(graph: Any, precision: str, inputs: NDArray[np.uint16]) -> NDArray[np.float64]:
        runner = compiled(graph, precision).create_infer_request()
        rows = [run_graph(runner, _prepared(profile, patch))[0] for patch in inputs]
        return class_probabilities({model.output(0).get_any_name(): np.concatenate(rows)})

    unseen = unseen[: TRIAL_PATCHES // 4]
    labels_N = probabilities(model, "fp32", unseen).argmax(axis=1)
    inputs = np.concatenate([unseen, made_inputs(profile, unseen, labels_N, TRIAL_PATCHES - len(unseen))])
    expected_NK = probabilities(model, "fp32", inputs)

    def used(graph: Any, every: int) -> float:
        parity = compare(expected_NK[::every], probabilities(graph, "int8", inputs[::every]), limits.max_dp)
        changed = 1 - parity.argmax_agreement - parity.ties / len(inputs[::every])
        shares = parity.max_dp / limits.max_dp, parity.mean_dp / limits.mean_dp
        return max(*shares, changed / (1 - limits.argmax_agreement))

    return search(model, [_prepared(profile, patch) for patch in calibration], compiled, used, request.announce)


def _prepared(profile: LoadedProfile, patch: NDArray[np.uint16]) -> NDArray[np.float32]:
    return MODALITIES[profile.spec.modality].to_network_input(profile.spec, patch[None])
