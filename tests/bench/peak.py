"""How fast the machine multiplies at best, by precision and number of threads: a rate means little without it.

`python -m tests.bench.peak PROFILE --threads 1 2` prints one JSON line. The best plain product of any library counts,
so that no share is flattered by a slow one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine import find_backend
from agent.engine.eager import import_torch
from agent.engine.openvino import compile_graph, import_openvino, precision_census
from agent.profile_folder import load_profile_folder
from tests.bench.figures import Spread
from tests.bench.machine import gflop_per_patch

SIDES = (512, 1024, 2048)
"""Square matrices to try: the best size differs between processors."""
CONVOLUTIONS = ((256, 56), (512, 40), (1024, 28))
"""Channels and side of chains of 1 × 1 convolutions, which are matrix products too."""
CHAIN = 4
"""Convolutions in a row, so that the first one's conversion to 8 bits weighs little."""
SIZE_S = 0.3
"""Seconds spent on each size."""
TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Precisions whose product torch has, by the name of its type."""
FULL_SIZE_GFLOP = 10.0
"""A network of more arithmetic than this counts as full-size: only then are promises about speed judged."""


@dataclass(frozen=True)
class Peak:
    """The machine's arithmetic at one number of threads, and what a patch asks of it."""

    gflop_per_patch: float
    gflops: dict[str, Spread]
    """By precision."""

    @classmethod
    def of(cls, runs: Sequence[dict[str, Any]], threads: int) -> Peak:
        """From what several processes printed."""
        each = [run["peaks"][str(threads)] for run in runs]
        return cls(runs[0]["gflop_per_patch"], {name: Spread.of([one[name] for one in each]) for name in each[0]})

    @property
    def is_full_size(self) -> bool:
        """Whether promises about speed are judged on this network."""
        return self.gflop_per_patch > FULL_SIZE_GFLOP

    def ideal_rate(self, precision: str) -> float | None:
        """Patches/s if nothing but arithmetic took time; None where the peak was not measured."""
        spread = self.gflops.get(precision)
        return None if spread is None else spread.median / self.gflop_per_patch

    def share(self, precision: str, rate: float) -> float | None:
        """Which share of the peak a rate (patches/s) reaches; None where the peak was not measured."""
        ideal = self.ideal_rate(precision)
        return None if ideal is None else rate / ideal

    def document(self) -> dict[str, Any]:
        """For JSON: the peaks by precision, 10⁹ operations/s."""
        return {name: asdict(spread) for name, spread in self.gflops.items()}


def peak_gflops(precision: str, threads: int) -> float:
    """The best rate of a plain product on so many threads, 10⁹ operations a second.

    Each size counts by the median of its products: what can be kept up, not a lucky moment.
    """
    products = [*_torch_products(precision, threads), *_openvino_products(precision, threads)]
    return max(operations / _median_s(product) / 1e9 for operations, product in products)


def precisions() -> tuple[str, ...]:
    """Those whose peak can be measured here."""
    openvino = find_backend("openvino")
    has_int8 = openvino.unavailable() is None and "int8" in openvino.precisions()
    return (*TORCH_TYPES, "int8") if has_int8 else tuple(TORCH_TYPES)


Product = tuple[float, Callable[[], object]]
"""Operations, and what does them."""


def _torch_products(precision: str, threads: int) -> Iterator[Product]:
    torch = import_torch()
    torch.set_num_threads(threads)
    for side in SIDES:
        if precision == "int8":
            a, b = (torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2))
            product = partial(torch._int_mm, a, b)
        else:
            a, b = (torch.randn(side, side).to(getattr(torch, TORCH_TYPES[precision])) for _ in range(2))
            product = partial(torch.mm, a, b, out=torch.empty_like(a))
        yield 2 * side**3, product


def _openvino_products(precision: str, threads: int) -> Iterator[Product]:
    """Matrix products in a row, and 1 × 1 convolutions in a row."""
    if precision not in find_backend("openvino").precisions():
        return
    for side in SIDES:
        yield 2 * side**3 * CHAIN, _compiled(_matrix_chain(side, precision), precision, [side, side], threads)
    for channels, side in CONVOLUTIONS:
        graph = _convolution_chain(channels, side, precision)
        shape = [1, channels, side, side]
        yield 2 * channels**2 * side**2 * CHAIN, _compiled(graph, precision, shape, threads)


def _matrix_chain(side: int, precision: str) -> Any:
    def product(value: Any, weights: Any, op: Any) -> Any:
        return op.matmul(value, weights, transpose_a=False, transpose_b=True)

    return _chain([side, side], [side, side], precision, product)


def _convolution_chain(channels: int, side: int, precision: str) -> Any:
    def product(value: Any, weights: Any, op: Any) -> Any:
        return op.convolution(value, weights, [1, 1], [0, 0], [0, 0], [1, 1])

    return _chain([1, channels, side, side], [channels, channels, 1, 1], precision, product)


def _chain(
    shape: list[int], weights_shape: list[int], precision: str, product: Callable[[Any, Any, Any], Any]
) -> Any:
    """Products in a row; in int8 their inputs have 256 levels and their weights are whole steps, as in an engine."""
    ov = import_openvino()
    from openvino import opset13 as op

    random = np.random.Generator(np.random.PCG64(0))
    value = start = op.parameter(shape, np.float32)
    for _ in range(CHAIN):
        if precision == "int8":
            value = op.fake_quantize(value, *[np.float32(0), np.float32(255)] * 2, 256)
            steps = op.constant(random.integers(-127, 128, weights_shape, np.int8))
            scales = op.constant(np.full([weights_shape[0], *[1] * (len(weights_shape) - 1)], 0.01, np.float32))
            weights = op.multiply(op.convert(steps, "f32"), scales)
        else:
            weights = op.constant(
                random.standard_normal(weights_shape, np.float32) / np.float32(weights_shape[1] ** 0.5)
            )
        value = product(value, weights, op)
    return ov.Model([value], [start])


def _compiled(graph: Any, precision: str, shape: list[int], threads: int) -> Callable[[], object]:
    compiled = compile_graph(graph, precision, threads)
    census = precision_census(compiled)
    if set(census) != {precision}:
        raise RuntimeError(f"the product that measures the {precision} peak runs in {census}")
    request = compiled.create_infer_request()
    x = np.random.Generator(np.random.PCG64(1)).uniform(0, 255, shape).astype(np.float32)
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)


def _median_s(product: Callable[[], object]) -> float:
    product()
    times: list[float] = []
    while not times or sum(times) < SIZE_S:
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main() -> int:
    """Measure every precision at the numbers of threads that the command line names; one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peak", description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", required=True)
    args = parser.parse_args()
    peaks = {threads: {name: peak_gflops(name, threads) for name in precisions()} for threads in args.threads}
    profile = load_profile_folder(args.profile)
    print(json.dumps({"gflop_per_patch": gflop_per_patch(profile), "peaks": peaks}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
