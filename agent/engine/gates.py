"""What a freshly built engine must prove before it may replace another. Each gate has a name and a figure.

Must not know how an engine was built, nor any modality: inputs are made from the profile's golden inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.engine import MAX_DP, class_probabilities, predict_padded
from agent.engine.backend import Engine
from agent.errors import EngineError
from models.contract import Prediction
from models.domain import Reference, distances
from models.profile import LoadedProfile

MIN_ARGMAX_AGREEMENT = {"fp32": 0.999, "bf16": 0.999, "fp16": 0.999, "int8": 0.995, "fp8": 0.995}
"""Least share of inputs with the same class (ties aside), by precision."""
MAX_MEAN_DP = {"int8": 0.003, "fp8": 0.003}
"""Largest mean difference of a probability, where the precision has such a limit."""

MAX_EMBEDDING_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05, "int8": 0.1, "fp8": 0.1}
"""Largest distance of an embedding from eager's, as a share of its length, by precision."""
MIN_FAR_AGREEMENT = {"fp32": 0.99, "bf16": 0.97, "fp16": 0.97, "int8": 0.95, "fp8": 0.95}
"""Least share of inputs that both engines call far from the profile's reference, or both near, by precision."""

_REPEATS = 20
"""Runs per arrangement of the independence gate, over all slots."""


class GateFailedError(EngineError):
    """A new engine failed a gate; the old one stays."""

    def __init__(self, gate: str, detail: str) -> None:
        super().__init__(f"gate {gate!r} failed: {detail}; an engine already in place is unchanged")
        self.gate = gate


@dataclass(frozen=True)
class Parity:
    """Agreement of two engines on the same inputs."""

    max_dp: float
    mean_dp: float
    argmax_agreement: float
    ties: int
    embedding_difference: float = 0.0
    far_agreement: float | None = None
    """None when the profile has no reference."""


def parity_inputs(golden_NCHW: NDArray[np.uint16], labels_N: NDArray[np.int64], count: int) -> NDArray[np.uint16]:
    """`count` raw inputs, the same for the same golden inputs: half of them mirrored and dimmed golden inputs, half
    blends of two golden inputs, of different predicted classes (`labels_N`) where there are any.
    """
    rng = np.random.default_rng(2845)
    inputs = np.empty((count, *golden_NCHW.shape[1:]), np.uint16)
    for i in range(count):
        first = int(rng.integers(len(golden_NCHW)))
        others = np.flatnonzero(labels_N != labels_N[first])
        second = int(rng.choice(others)) if len(others) else int(rng.integers(len(golden_NCHW)))
        weight, gain = rng.uniform(0.3, 0.7), rng.uniform(0.7, 1.0)
        pixels = golden_NCHW[first].astype(np.float64)
        if i % 2:
            pixels = weight * pixels + (1 - weight) * golden_NCHW[second]
        else:
            pixels = gain * np.flip(pixels, axis=-1 if rng.random() < 0.5 else -2)
        inputs[i] = np.rint(pixels)
    return inputs


def compare(reference_NK: NDArray[np.float64], found_NK: NDArray[np.float64], limit: float) -> Parity:
    """Differences of probabilities. A tie is a class that differs although both hold the two within `limit`."""
    difference = np.abs(found_NK - reference_NK)
    rows = np.arange(len(reference_NK))
    first_N, second_N = reference_NK.argmax(axis=1), found_NK.argmax(axis=1)
    margins = [
        p[rows, a] - p[rows, b] for p, a, b in ((reference_NK, first_N, second_N), (found_NK, second_N, first_N))
    ]
    differs = first_N != second_N
    tied = differs & (margins[0] <= limit) & (margins[1] <= limit)
    return Parity(float(difference.max()), float(difference.mean()), float(1 - differs.mean()), int(tied.sum()))


def parity_gate(engine: Engine, eager: Engine, profile: LoadedProfile, count: int) -> Parity:
    """Agreement with eager on `count` inputs; raises GateFailedError."""
    labels_N = profile.golden_outputs.argmax(axis=1)
    inputs = parity_inputs(profile.golden_inputs, labels_N, count)
    limit = MAX_DP[engine.precision]
    expected, found = predict_padded(eager, inputs), predict_padded(engine, inputs)
    parity = compare(class_probabilities(expected), class_probabilities(found), limit)
    if not parity.max_dp <= limit:
        raise GateFailedError("parity", f"max |dp| {parity.max_dp:.2g} on {count} patches, allowed {limit:g}")
    if parity.mean_dp > MAX_MEAN_DP.get(engine.precision, limit):
        raise GateFailedError("parity", f"mean |dp| {parity.mean_dp:.2g}, allowed {MAX_MEAN_DP[engine.precision]:g}")
    decided = parity.argmax_agreement + parity.ties / count
    if decided < MIN_ARGMAX_AGREEMENT[engine.precision]:
        raise GateFailedError("parity", f"only {decided:.2%} of {count} patches keep their class")
    difference, agreement = compare_embeddings(expected, found, profile.reference)
    if not difference <= MAX_EMBEDDING_DIFFERENCE[engine.precision]:
        allowed = MAX_EMBEDDING_DIFFERENCE[engine.precision]
        raise GateFailedError(
            "parity", f"an embedding differs by {difference:.2g} of its length, allowed {allowed:g}"
        )
    if agreement is not None and agreement < MIN_FAR_AGREEMENT[engine.precision]:
        raise GateFailedError(
            "parity", f"only {agreement:.2%} of {count} patches stay near or far from the reference"
        )
    return replace(parity, embedding_difference=difference, far_agreement=agreement)


def compare_embeddings(
    expected: Prediction, found: Prediction, reference: Reference | None
) -> tuple[float, float | None]:
    """Largest difference of an embedding as a share of its length, and the share of inputs that stay near or far."""
    expected_NE, found_NE = expected["embedding"].astype(np.float64), found["embedding"].astype(np.float64)
    lengths_N = np.maximum(np.linalg.norm(expected_NE, axis=1), np.finfo(np.float32).tiny)
    difference = float((np.linalg.norm(found_NE - expected_NE, axis=1) / lengths_N).max())
    if reference is None:
        return difference, None
    far = [distances(reference, values_NE) > reference.limit for values_NE in (expected_NE, found_NE)]
    return difference, float((far[0] == far[1]).mean())


def independence_gate(engine: Engine, profile: LoadedProfile) -> None:
    """One input in every slot, among different neighbours and padding, gives the same bits; else GateFailedError.

    Every arrangement runs several times after a different batch, so that a race between threads shows too.
    """
    golden = profile.golden_inputs
    size = engine.batch_size
    expected: bytes | None = None
    for slot in range(size):
        for neighbours in (np.zeros_like(golden[:1]), np.full_like(golden[:1], 65535), golden):
            other = np.resize(neighbours, (size, *golden.shape[1:]))
            batch = other.copy()
            batch[slot] = golden[0]
            for _ in range(-(-_REPEATS // size)):
                engine.predict(other)
                found = b"".join(values[slot].tobytes() for values in engine.predict(batch).values())
                expected = expected or found
                if found != expected:
                    detail = f"a patch's bits depend on its batch or on the run (slot {slot} of {size})"
                    raise GateFailedError("independence", detail)


def rate(
    engine: Engine, profile: LoadedProfile, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Patches per second of full batches, from raw pixels: median over at least 3 batches and `seconds`."""
    batch = np.resize(profile.golden_inputs, (engine.batch_size, *profile.golden_inputs.shape[1:]))
    engine.predict(batch)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = clock()
        engine.predict(batch)
        times.append(clock() - start)
    return engine.batch_size / float(np.median(times))
