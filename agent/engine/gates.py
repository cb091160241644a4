"""What a freshly built engine must prove before it may replace another. Each gate has a name, a limit and a figure.

Gates measure; `require` judges. Must not know how an engine was built, nor any modality.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.engine import class_probabilities, self_test
from agent.engine.backend import Counted, Engine
from agent.engine.expected import Announce, Answered, Expected, predict_all
from agent.engine.figures import GateFigure
from agent.engine_limits import EngineLimits, PrecisionLimits
from agent.errors import EngineError
from models.calibration import CalibrationInputError, Emits, calibrate
from models.contract import PatchKey, Prediction
from models.domain import Reference, distances
from models.posterior import Posterior, Tally, combine, to_fixed
from models.profile import LoadedProfile, Profile

_REPEATS = 20
"""Runs per arrangement of the independence gate, over all slots."""
_TURNS = 5
NAMES = {
    "fp32": {"f32", "fp32", "float32"},
    "bf16": {"bf16", "bfloat16"},
    "fp16": {"f16", "fp16", "float16", "half"},
    "int8": {"i8", "u8", "int8", "uint8"},
    "fp8": {"fp8", "f8e4m3", "f8e5m2", "float8_e4m3fn", "float8_e5m2"},
}
"""Precision → what backends call it in their census."""


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


def require(figures: Sequence[GateFigure]) -> list[GateFigure]:
    """The figures when each keeps its limit; else raises GateFailedError with all of the gate's that do not."""
    failed = [figure for figure in figures if not figure.passed]
    if failed:
        gate = failed[0].gate
        raise GateFailedError(gate, "; ".join(figure.words() for figure in failed if figure.gate == gate))
    return list(figures)


def golden_gate(engine: Engine, profile: LoadedProfile, limits: EngineLimits) -> list[GateFigure]:
    """The profile's own golden pair."""
    try:
        difference = self_test(engine, profile, limits)
    except EngineError as error:
        raise GateFailedError("golden pair", str(error)) from error
    name = f"max |Δp| of {len(profile.golden_inputs)} inputs"
    return [GateFigure.limited("golden pair", name, difference, "max_dp", limits.of(engine.precision))]


def parity_gate(
    engine: Engine, expected: Expected, limits: PrecisionLimits, announce: Announce
) -> tuple[list[GateFigure], int]:
    """Agreement with eager on single inputs; also how many ties there were."""
    answered = expected.parity(announce)
    count = len(answered.inputs)
    found = predict_all(engine, answered.inputs, announce, "parity: new engine")
    parity = compare(class_probabilities(answered.prediction), class_probabilities(found), limits.max_dp)
    reference = expected.profile.reference
    difference, agreement = compare_embeddings(answered.prediction, found, reference)
    same = parity.argmax_agreement + parity.ties / count
    ties = f", {parity.ties} ties" if parity.ties else ""
    rows = [
        (f"max |Δp| of {count} patches", parity.max_dp, "max_dp"),
        ("mean |Δp|", parity.mean_dp, "mean_dp"),
        (f"share with the same class{ties}", same, "argmax_agreement"),
        ("max difference of an embedding, of its length", difference, "embedding_difference"),
    ]
    if agreement is not None:
        rows.append(("share as far from the reference or as near", agreement, "far_agreement"))
    return [GateFigure.limited("parity", words, value, name, limits) for words, value, name in rows], parity.ties


def slides_gate(
    engine: Engine, expected: Expected, limits: PrecisionLimits, announce: Announce
) -> tuple[list[GateFigure], int]:
    """The calibrated posteriors of whole slides; also how many patches they had."""
    slides = expected.slides(announce)
    spec = expected.profile.spec
    change, kept = 0.0, 0
    patches = np.concatenate([slide.inputs for slide in slides])
    predicted = predict_all(engine, patches, announce, "phantom slides: new engine")
    start = 0
    for slide in slides:
        rows = slice(start, start + len(slide.inputs))
        start = rows.stop
        before = posterior_of(slide, spec)
        after = posterior_of(Answered(slide.inputs, {name: v[rows] for name, v in predicted.items()}), spec)
        differences = np.abs(np.subtract(after.probabilities, before.probabilities))
        change = max(change, float(differences.max()))
        kept += after.predicted == before.predicted
    name = f"max change of a posterior, of {len(slides)} slides"
    same = GateFigure(
        gate="slides",
        measure="slides that keep their class",
        figure=kept,
        bound="at least",
        limit=len(slides),
    )
    return [GateFigure.limited("slides", name, change, "slide_change", limits), same], len(patches)


def posterior_of(slide: Answered, spec: Profile) -> Posterior:
    """The posterior of one slide as the daemon would say it; raises GateFailedError when it cannot be said."""
    emits: Emits = "logits" if "logits" in slide.prediction else "probabilities"
    tally = Tally(len(spec.classes))
    try:
        p_NK = calibrate(slide.prediction[emits], spec.calibration, emits)
    except CalibrationInputError as error:
        raise GateFailedError("slides", str(error)) from error
    for number, p_K in enumerate(p_NK):
        tally.use(PatchKey("phantom", "phantom", 0, number, 0), to_fixed(p_K))
    return combine(
        [tally],
        len(spec.classes),
        independence=spec.aggregation.independence,
        mass=spec.aggregation.interval,
    )


def census_gate(engine: Engine, limits: PrecisionLimits) -> tuple[list[GateFigure], dict[str, int]]:
    """Share of the arithmetic layers that run in the precision that was asked for; also the census itself."""
    census = dict(engine.census) if isinstance(engine, Counted) else {}
    share = None
    if census:
        names = NAMES.get(engine.precision, {engine.precision})
        share = sum(n for name, n in census.items() if name.lower() in names) / sum(census.values())
    layers = ", ".join(f"{n} {name}" for name, n in sorted(census.items())) or "the backend cannot tell"
    words = f"share of layers in {engine.precision} ({layers})"
    return [GateFigure.limited("census", words, share, "layer_share", limits)], census


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


def independence_gate(engine: Engine, profile: LoadedProfile) -> list[GateFigure]:
    """One input in every slot, among different neighbours and padding, gives the same bits.

    Every arrangement runs several times after a different batch, so that a race between threads shows too.
    """
    golden = profile.golden_inputs
    size = engine.batch_size
    expected: bytes | None = None
    runs, others = 0, 0
    for slot in range(size):
        for neighbours in (np.zeros_like(golden[:1]), np.full_like(golden[:1], 65535), golden):
            other = np.resize(neighbours, (size, *golden.shape[1:]))
            batch = other.copy()
            batch[slot] = golden[0]
            for _ in range(-(-_REPEATS // size)):
                engine.predict(other)
                found = b"".join(values[slot].tobytes() for values in engine.predict(batch).values())
                expected = expected or found
                runs += 1
                others += found != expected
    words = f"other bits in {runs} runs of one patch, in each slot of {size} among different neighbours"
    return [GateFigure(gate="independence", measure=words, figure=others, bound="at most", limit=0)]


def speed_gate(rate: float, eager_rate: float, limits: PrecisionLimits) -> list[GateFigure]:
    """Not slower than eager fp32."""
    words = f"rate over that of eager fp32 ({rate:.3g} and {eager_rate:.3g} patches/s)"
    return [GateFigure.limited("speed", words, rate / eager_rate, "speed_ratio", limits)]


def rates(
    engines: Sequence[Engine],
    profile: LoadedProfile,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Patches per second of each engine, from raw pixels: medians over full batches, run in turns.

    At least 5 turns, and until the fastest has run for `seconds`: a busy moment of the machine hits all of them.
    """
    golden = profile.golden_inputs
    batches = [np.resize(golden, (engine.batch_size, *golden.shape[1:])) for engine in engines]
    times: list[list[float]] = [[] for _ in engines]
    for engine, batch in zip(engines, batches, strict=True):
        engine.predict(batch)
    while len(times[0]) < _TURNS or min(map(sum, times)) < seconds:
        for engine, batch, taken in zip(engines, batches, times, strict=True):
            start = clock()
            engine.predict(batch)
            taken.append(clock() - start)
    return [engine.batch_size / float(np.median(taken)) for engine, taken in zip(engines, times, strict=True)]
