"""From a profile's torch network to the graph that the OpenVINO engine reads; for int8 with its proof of answers.

Decides what the calibration may use and what a trial is judged on.
"""

from __future__ import annotations

import warnings
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
    model = convert(request.profile, request.batch_size)
    notes: dict[str, str] = {}
    if request.precision == "int8":
        found = search_int8(model if request.batch_size == 1 else convert(request.profile, 1), request)
        model, notes = found.quantise(model), found.notes
    return save(model, request.directory, notes)


def save(model: Any, directory: Path, notes: dict[str, str]) -> Built:
    """Write a graph as IR, as the engine reads it."""
    import_openvino().save_model(model, str(directory / IR_XML), compress_to_fp16=False)
    return Built({output.get_any_name(): output.shape[1] for output in model.outputs}, notes)


def convert(profile: LoadedProfile, batch_size: int) -> Any:
    """The fp32 graph of the network; its outputs are named by what the head emits, and `embedding`."""
    from agent.engine.eager import import_torch, load_network

    torch, ov = import_torch(), import_openvino()
    prepare = MODALITIES[profile.spec.modality].to_network_input
    rows = np.resize(profile.golden_inputs, (batch_size, *profile.golden_inputs.shape[1:]))
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
    return model


def search_int8(model: Any, request: BuildRequest) -> Found:
    """How to quantise a network: its graph of batch size 1 is measured on some patches of the profile's domain, and
    trials are judged on others. Raises RuntimeError when the answers would change.
    """
    from agent.engine import MAX_DP, class_probabilities
    from agent.engine.gates import MAX_MEAN_DP, MIN_ARGMAX_AGREEMENT, compare, parity_inputs

    profile = request.profile
    known = profile.golden_inputs if request.calibration is None else request.calibration
    calibration, unseen = known[::2][:CALIBRATION_PATCHES], known[1::2]

    def compiled(graph: Any, precision: str) -> Any:
        return compile_graph(graph, precision, request.threads)

    def probabilities(graph: Any, precision: str, inputs: NDArray[np.uint16]) -> NDArray[np.float64]:
        runner = compiled(graph, precision).create_infer_request()
        rows = [run_graph(runner, _prepared(profile, patch))[0] for patch in inputs]
        return class_probabilities({model.output(0).get_any_name(): np.concatenate(rows)})

    labels_N = probabilities(model, "fp32", unseen).argmax(axis=1)
    inputs = parity_inputs(unseen, labels_N, TRIAL_PATCHES)
    expected_NK = probabilities(model, "fp32", inputs)

    def used(graph: Any) -> float:
        parity = compare(expected_NK, probabilities(graph, "int8", inputs), MAX_DP["int8"])
        changed = 1 - parity.argmax_agreement - parity.ties / len(inputs)
        shares = parity.max_dp / MAX_DP["int8"], parity.mean_dp / MAX_MEAN_DP["int8"]
        return max(*shares, changed / (1 - MIN_ARGMAX_AGREEMENT["int8"]))

    return search(model, [_prepared(profile, patch) for patch in calibration], compiled, used, request.announce)


def _prepared(profile: LoadedProfile, patch: NDArray[np.uint16]) -> NDArray[np.float32]:
    return MODALITIES[profile.spec.modality].to_network_input(profile.spec, patch[None])
