"""Convolutions in int8 whose answers stay: an OpenVINO graph in fp32 and patches of its domain in, a rounded one out.

Filters are rounded by what their inputs are like (models.rounding); what is left of a mean goes into the offset.
Activations get 256 levels over a range that is measured, weights 127 steps on either side of zero per filter. Others
stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.spans import LEVELS, Span, best_span, sampled, whole_span
from models.rounding import compensated

POSITIONS = 200
"""Places of each calibration patch at which a convolution's inputs are looked at."""
_WEIGHT_STEPS = 127


@dataclass(frozen=True)
class Filters:
    """A convolution's filters in whole steps."""

    steps: NDArray[np.int8]
    """[O, K]."""
    scales: NDArray[np.float64]
    """[O] size of a step."""
    offset: NDArray[np.float64]
    """[O] mean of what rounding took from each output."""


@dataclass(frozen=True)
class Rounding:
    """How to quantise a network, by the number of the convolution (or shortcut) in the order of the data: the same
    network has the same numbers at every batch size.
    """

    inputs: list[Span]
    """What goes into each convolution."""
    shortcuts: list[Span]
    """The second convolution of each sum of two."""
    filters: list[Filters]
    embedding: NDArray[np.float64]
    """[E] mean embedding in fp32 over the inputs."""


def convolutions(model: Any) -> list[Any]:
    """The convolutions with weights of their own, in the order of the data."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution" and _source(node, 1).get_type_name() == "Constant"
    ]


def prepare(model: Any, compile_model: Callable[[Any], Any], inputs: Sequence[NDArray[np.float32]]) -> Rounding:
    """Run a graph of batch size 1 on `inputs`, look at what goes into each convolution and each sum of two, and round
    the filters accordingly.
    """
    model = model.clone()
    layers = convolutions(model)
    values = [layer.input_value(0) for layer in layers] + _shortcuts(model)
    own = len(model.outputs)
    distinct = {value.get_node().get_friendly_name(): value for value in values}
    model.add_outputs(list(distinct.values()))
    wanted = [own + list(distinct).index(value.get_node().get_friendly_name()) for value in values]
    request = compile_model(model).create_infer_request()
    random = np.random.Generator(np.random.PCG64(0))
    samples: list[list[NDArray[np.float32]]] = [[] for _ in values]
    seen = [_Seen() for _ in layers]
    embedding: Any = 0.0
    for x_1CHW in inputs:
        results = request.infer([x_1CHW], share_inputs=False)
        for sample, index in zip(samples, wanted, strict=True):
            sample.append(sampled(results[index], random))
        embedding = embedding + results["embedding"][0].astype(np.float64)
        for number, layer in enumerate(layers):
            seen[number].add(_columns(results[wanted[number]][0], layer, random))
    spans = [
        whole_span(sample) if value.get_node().get_type_name() == "Parameter" else best_span(np.concatenate(sample))
        for value, sample in zip(values, samples, strict=True)
    ]
    filters = [_rounded(_source(layer, 1).get_data(), one) for layer, one in zip(layers, seen, strict=True)]
    return Rounding(spans[: len(layers)], spans[len(layers) :], filters, embedding / len(inputs))


class _Seen:
    """First and second moments of the inputs of one convolution's outputs."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_K: Any = 0.0
        self.products_KK: Any = 0.0

    def add(self, columns_NK: NDArray[np.float32]) -> None:
        self.count += len(columns_NK)
        self.sum_K = self.sum_K + columns_NK.sum(axis=0)
        self.products_KK = self.products_KK + columns_NK.T @ columns_NK


def _rounded(weights_OCHW: NDArray[np.float32], seen: _Seen) -> Filters:
    weights_OK = weights_OCHW.reshape(len(weights_OCHW), -1)
    steps_OK, scales_O = round_filters(weights_OK, seen.products_KK / seen.count)
    offset_O = (weights_OK - steps_OK * scales_O[:, None]) @ (seen.sum_K / seen.count)
    return Filters(steps_OK.astype(np.int8), scales_O, offset_O)


def shift_of(
    quantised: Any, compile_model: Callable[[Any], Any], inputs: Sequence[NDArray[np.float32]], rounding: Rounding
) -> NDArray[np.float64]:
    """What quantising took from the mean embedding [E] over `inputs`."""
    request = compile_model(quantised).create_infer_request()
    found = [request.infer([x_1CHW], share_inputs=False)["embedding"][0].astype(np.float64) for x_1CHW in inputs]
    shift_E: NDArray[np.float64] = rounding.embedding - np.mean(found, axis=0)
    return shift_E


def quantise(
    model: Any,
    rounding: Rounding,
    keep: frozenset[int] = frozenset(),
    shift_E: NDArray[np.float64] | None = None,
) -> Any:
    """The graph with every convolution in int8 but `keep` (numbers), and `shift_E` added to its embedding."""
    from openvino import opset13 as op

    model = model.clone()
    layers = convolutions(model)
    kept = {layers[number].get_friendly_name() for number in keep}
    shortcuts = _shortcuts(model)
    stepped: dict[str, Any] = {}
    for number, node in enumerate(layers):
        if number not in keep:
            _store(node, rounding.filters[number], op)
            value = node.input_value(0)
            if value.get_node().get_friendly_name() not in stepped:
                stepped[value.get_node().get_friendly_name()] = value, rounding.inputs[number]
    for value, span in stepped.values():
        # The sum behind a block takes the same rounded values as the block's first convolution.
        users = [c for c in value.get_target_inputs() if c.get_node().get_friendly_name() not in kept]
        _replace(users, _stepped(value, span, op))
    for value, span in zip(shortcuts, rounding.shortcuts, strict=True):
        if _source(value.get_node()).get_friendly_name() not in kept:
            _replace(list(value.get_target_inputs()), _stepped(value, span, op))
    if shift_E is not None:
        value = model.output("embedding").get_node().input_value(0)
        users = list(value.get_target_inputs())
        shifted = op.add(value, op.constant(shift_E[None].astype(np.float32))).output(0)
        value.get_tensor().set_names(set())
        shifted.get_tensor().set_names({"embedding"})
        _replace(users, shifted)
    model.validate_nodes_and_infer_types()
    return model


def _store(node: Any, filters: Filters, op: Any) -> None:
    """Give a convolution filters in int8, and the offset behind it what their rounding took."""
    shape = node.input_value(1).get_shape()
    stored = op.constant(filters.steps.reshape(shape))
    scales = op.constant(filters.scales.reshape(-1, 1, 1, 1).astype(np.float32))
    node.input(1).replace_source_output(op.multiply(op.convert(stored, "f32"), scales).output(0))
    (consumer,) = node.output(0).get_target_inputs()
    offset = consumer.get_node().input(1 - consumer.get_index())
    value = offset.get_source_output().get_node().get_data()
    corrected = value + filters.offset.reshape(value.shape)
    offset.replace_source_output(op.constant(corrected.astype(np.float32)).output(0))


def round_filters(
    weights_OK: NDArray[np.float32], moments_KK: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Filters to whole steps [O, K] within ±127 and the size of a step [O], so that the outputs change least."""
    scales_O = np.maximum(np.abs(weights_OK).max(axis=1), 1e-12).astype(np.float64) / _WEIGHT_STEPS

    def nearest(weights_O: NDArray[np.float64]) -> NDArray[np.float64]:
        steps_O = np.clip(np.round(weights_O / scales_O), -_WEIGHT_STEPS, _WEIGHT_STEPS)
        return np.asarray(steps_O * scales_O, np.float64)

    steps_OK: NDArray[np.float64] = np.round(compensated(weights_OK, moments_KK, nearest) / scales_O[:, None])
    return steps_OK, scales_O


def _source(node: Any, index: int = 0) -> Any:
    return node.input_value(index).get_node()


def _replace(users: list[Any], value: Any) -> None:
    for user in users:
        user.replace_source_output(value)


def _shortcuts(model: Any) -> list[Any]:
    """Of each sum of two convolutions the second: rounded too, the two can be added as they come out."""
    sums = [node for node in model.get_ordered_ops() if node.get_type_name() == "Add"]
    return [n.input_value(1) for n in sums if all(_is_offset_convolution(_source(n, i)) for i in (0, 1))]


def _is_offset_convolution(node: Any) -> bool:
    is_offset: bool = node.get_type_name() == "Add" and _source(node).get_type_name() == "Convolution"
    return is_offset


def _columns(x_CHW: NDArray[np.float32], layer: Any, random: np.random.Generator) -> NDArray[np.float32]:
    """The inputs [N, K] of some of a convolution's output values, in the order of its weights."""
    height, width = layer.input_value(1).get_shape()[2:]
    how = layer.get_attributes()
    (down, right), before, after = how["strides"], how["pads_begin"], how["pads_end"]
    padded = np.pad(x_CHW, ((0, 0), (before[0], after[0]), (before[1], after[1])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))[:, ::down, ::right]
    outputs = windows.shape[1] * windows.shape[2]
    places = random.choice(outputs, min(POSITIONS, outputs), replace=False)
    ys, xs = np.divmod(places, windows.shape[2])
    picked: NDArray[np.float32] = windows[:, ys, xs].swapaxes(0, 1).reshape(len(places), -1)
    return picked


def _stepped(value: Any, span: Span, op: Any) -> Any:
    low, high = np.float32(span[0]), np.float32(span[1])
    return op.fake_quantize(value, low, high, low, high, LEVELS).output(0)
