"""agent.engine.gates: each gate passes a faithful engine and stops a wrong one, with its figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.engine.eager import EagerEngine
from agent.engine.expected import Expected
from agent.engine.figures import GateFigure
from agent.engine.gates import (
    GateFailedError,
    census_gate,
    compare,
    golden_gate,
    independence_gate,
    parity_gate,
    posterior_of,
    rates,
    require,
    slides_gate,
    speed_gate,
)
from agent.engine_limits import STRICT, EngineLimits, Fp32Limits
from models.calibration import calibrate
from models.contract import Prediction
from models.domain import Reference, distances
from models.profile import CalibrationSpec, LoadedProfile
from tests.agent.engine.small_profile import write_profile
from tests.agent.engine.steps import Steps
from tests.fakes import fake_reference


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LoadedProfile:
    """A profile shared by this module."""
    return write_profile(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def eager(profile: LoadedProfile) -> EagerEngine:
    """Its reference."""
    return EagerEngine(profile, 1, 2)


@pytest.fixture(scope="module")
def expected(profile: LoadedProfile) -> Expected:
    """What eager gives for 32 inputs and two slides."""
    return Expected(profile, patches=32, slides=2, threads=1)


class WrongEngine:
    """The reference with a fault: logits shifted, or shifted by what lies in the next slot of the batch, or an
    embedding that is scaled."""

    def __init__(
        self, reference: EagerEngine, precision: str, shift: float, *, leaks: bool = False, scale: float = 1.0
    ) -> None:
        self.name, self.precision, self.batch_size = "wrong", precision, reference.batch_size
        self._reference, self._shift, self._leaks, self._scale = reference, shift, leaks, np.float32(scale)

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """The reference's logits, spoiled."""
        prediction = self._reference.predict(x_BCHW)
        logits_BK = prediction["logits"].copy()
        logits_BK[:, ::2] += self._shift
        if self._leaks:
            logits_BK[:, 1] += np.roll(x_BCHW, 1, axis=0).mean(axis=(1, 2, 3)).astype(np.float32)
        return {"logits": logits_BK, "embedding": prediction["embedding"] * self._scale}

    def close(self) -> None:
        """Nothing to free."""


class CountedEngine(WrongEngine):
    """A faithful engine whose backend tells its layers."""

    def __init__(self, reference: EagerEngine, precision: str, census: dict[str, int]) -> None:
        super().__init__(reference, precision, 0)
        self.census = census


def parity(
    engine: WrongEngine | EagerEngine, expected: Expected, limits: EngineLimits = STRICT
) -> dict[str, GateFigure]:
    """The parity gate's figures by the name of their limit."""
    figures, _ = parity_gate(engine, expected, limits.of(engine.precision), Steps())
    return {figure.setting or "": figure for figure in figures}


def failed(figures: list[GateFigure]) -> str:
    """What `require` says of them."""
    with pytest.raises(GateFailedError) as caught:
        require(figures)
    assert caught.value.gate == figures[0].gate
    return str(caught.value)


def test_a_faithful_engine_passes(profile: LoadedProfile, eager: EagerEngine, expected: Expected) -> None:
    """The reference agrees with itself in every figure."""
    found = parity(eager, expected)
    assert {name: figure.figure for name, figure in found.items() if name != "max_dp"} == {
        "mean_dp": pytest.approx(0, abs=1e-6),
        "argmax_agreement": 1,
        "embedding_difference": pytest.approx(0, abs=1e-4),
    }
    slides, patches = slides_gate(eager, expected, STRICT.of("fp32"), Steps())
    assert [figure.figure for figure in slides] == [pytest.approx(0, abs=1e-6), 2] and patches > 40
    gates = golden_gate(eager, profile, STRICT) + independence_gate(eager, profile) + slides + list(found.values())
    assert require(gates) == gates


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("bf16", True)])
def test_parity_limits(eager: EagerEngine, expected: Expected, precision: str, passes: bool) -> None:
    """A shift that bf16 may have is too much for fp32; the message has figure and limit."""
    found = parity(WrongEngine(eager, precision, 1e-2), expected)
    assert 1e-4 < (found["max_dp"].figure or 0) <= 0.02
    assert found["max_dp"].passed is passes
    if not passes:
        assert "gate 'parity' failed: max |Δp| of 32 patches: 0.00" in failed(list(found.values()))


def test_limits_are_settings(eager: EagerEngine, expected: Expected) -> None:
    """What fails under the default passes under a limit that was set for it, and the figure remembers that limit."""
    engine = WrongEngine(eager, "fp32", 1e-2)
    wider = EngineLimits(fp32=Fp32Limits(max_dp=0.02, mean_dp=0.02))
    assert not parity(engine, expected)["max_dp"].passed
    figure = parity(engine, expected, wider)["max_dp"]
    assert figure.passed and figure.limit == 0.02
    assert not figure.under(STRICT.of("fp32")).passed


def test_flipped_classes_fail(eager: EagerEngine, expected: Expected) -> None:
    """An engine that favours some classes fails by every figure of its answers, all of them named."""
    text = failed(list(parity(WrongEngine(eager, "bf16", -9), expected).values()))
    assert all(word in text for word in ("max |Δp|", "mean |Δp|", "share with the same class"))


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("bf16", True)])
def test_embeddings_must_agree(eager: EagerEngine, expected: Expected, precision: str, passes: bool) -> None:
    """An embedding that is longer than eager's by a hundredth is too much for fp32, not for bf16."""
    found = parity(WrongEngine(eager, precision, 0, scale=1.01), expected)["embedding_difference"]
    assert found.figure == pytest.approx(0.01, rel=1e-2)
    assert found.passed is passes


def test_far_marks_must_agree(profile: LoadedProfile, eager: EagerEngine, expected: Expected) -> None:
    """A reference whose limit lies among the patches: where too many of them change sides, the gate fails."""
    around = replace(fake_reference(), mean=np.zeros(64), components=np.eye(64)[:3])
    embeddings = expected.parity(Steps()).prediction["embedding"]

    def agreement(limit: float, scale: float) -> GateFigure:
        reference: Reference = replace(around, limit=np.array(limit))
        judged = Expected(replace(profile, reference=reference), patches=32, slides=1, threads=1)
        return parity(WrongEngine(eager, "bf16", 0, scale=scale), judged)["far_agreement"]

    found = distances(around, embeddings)
    assert agreement(float(found.max() * 1.2), 1.045).figure == 1
    divided = agreement(float(np.median(found)), 1.045)
    assert divided.figure is not None and divided.figure < 0.97 and not divided.passed
    assert "as far from the reference or as near" in failed([divided])


def test_whole_slides_are_compared(eager: EagerEngine, expected: Expected) -> None:
    """The figure is the largest change of a calibrated posterior; a shift of patches shows in it, and an engine that
    answers otherwise changes a slide's class.
    """
    (change, kept), _ = slides_gate(WrongEngine(eager, "fp32", 1e-2), expected, STRICT.of("fp32"), Steps())
    assert change.figure is not None and 1e-4 < change.figure < 0.01 and kept.passed
    assert "gate 'slides' failed: max change of a posterior, of 2 slides" in failed([change, kept])
    (_, kept), _ = slides_gate(WrongEngine(eager, "bf16", 9), expected, STRICT.of("bf16"), Steps())
    before = [posterior_of(slide, expected.profile.spec).predicted for slide in expected.slides(Steps())]
    assert kept.figure == sum(label in (0, 2) for label in before)


def test_posteriors_are_calibrated(profile: LoadedProfile, expected: Expected) -> None:
    """The posterior of a slide is the mean of its calibrated patches, by hand."""
    spec = profile.spec.model_copy(update={"calibration": CalibrationSpec(kind="temperature", temperature=3)})
    slide = expected.slides(Steps())[0]
    by_hand = calibrate(slide.prediction["logits"], spec.calibration, "logits").mean(axis=0)
    np.testing.assert_allclose(posterior_of(slide, spec).probabilities, by_hand, atol=1e-9)


@pytest.mark.parametrize(
    ("precision", "census", "share", "passes"),
    [
        ("bf16", {"bf16": 33, "f32": 3}, 33 / 36, True),
        ("bf16", {"bf16": 30, "f32": 6}, 30 / 36, False),
        ("int8", {"i8": 20, "u8": 4, "bf16": 20}, 24 / 44, True),
        ("int8", {"u8": 10, "f32": 26}, 10 / 36, False),
        ("fp32", {"f32": 36}, 1, True),
        ("fp16", {"float16": 9, "bf16": 1}, 0.9, True),
    ],
)
def test_census(eager: EagerEngine, precision: str, census: dict[str, int], share: float, passes: bool) -> None:
    """Layers that silently run in another precision fail the build; int8 may keep half of them higher."""
    (figure,), found = census_gate(CountedEngine(eager, precision, census), STRICT.of(precision))
    assert found == census
    assert figure.figure == pytest.approx(share)
    assert figure.passed is passes


def test_an_engine_that_cannot_tell_is_not_counted(eager: EagerEngine) -> None:
    """No census is no figure, and the report says so instead of a number."""
    (figure,), found = census_gate(WrongEngine(eager, "bf16", 0), STRICT.of("bf16"))
    assert (figure.figure, figure.passed, figure.shown(), found) == (None, True, "not counted", {})


def test_neighbours_that_leak_are_found(profile: LoadedProfile, eager: EagerEngine) -> None:
    """An engine whose answers depend on the rest of the batch fails, with how often."""
    figures = independence_gate(WrongEngine(eager, "fp32", 0, leaks=True), profile)
    assert (figures[0].figure or 0) > 10
    assert "gate 'independence' failed: other bits in 60 runs" in failed(figures)


def test_compare_by_hand() -> None:
    """Differences, agreement and ties of a small table, worked out by hand."""
    reference = np.array([[0.9, 0.1], [0.505, 0.495], [0.6, 0.4], [0.2, 0.8]])
    found = np.array([[0.8, 0.2], [0.495, 0.505], [0.4, 0.6], [0.2, 0.8]])
    compared = compare(reference, found, 0.02)
    assert compared.max_dp == pytest.approx(0.2)
    assert compared.mean_dp == pytest.approx((0.1 + 0.01 + 0.2 + 0) / 4)
    assert compared.argmax_agreement == 0.5
    assert compared.ties == 1


def test_not_a_number_fails(eager: EagerEngine, expected: Expected) -> None:
    """NaN in one logit never passes for agreement."""
    broken = WrongEngine(eager, "bf16", float("nan"))
    with np.errstate(invalid="ignore"):
        assert "nan" in failed(list(parity(broken, expected).values()))
    with pytest.raises(GateFailedError, match="gate 'slides' failed: the network returned values"):
        slides_gate(broken, expected, STRICT.of("bf16"), Steps())


def ticking(*moments: float) -> Callable[[], float]:
    """A clock that tells these moments."""
    left = iter(moments)
    return lambda: next(left)


def test_rates_are_measured_in_turns(profile: LoadedProfile, eager: EagerEngine) -> None:
    """Each engine's rate is rows per median time of its own turns: a busy moment hits both and changes neither."""
    slow = EagerEngine(profile, 1, 1)
    moments, now = [], 0.0
    for turn in range(5):
        for takes in (1.0, 4.0):
            moments += [now, now + takes * (10 if turn == 2 else 1)]
            now = moments[-1]
    assert rates((eager, slow), profile, 0, clock=ticking(*moments)) == [2 / 1.0, 1 / 4.0]


def test_slower_than_eager_fails() -> None:
    """A build that is slower fails by name with both rates; the limit is a setting."""
    assert require(speed_gate(20, 19, STRICT.of("fp32")))[0].figure == pytest.approx(20 / 19)
    slower = failed(speed_gate(19, 20, STRICT.of("fp32")))
    assert "gate 'speed' failed: rate over that of eager fp32 (19 and 20 patches/s): 0.95, allowed is at" in slower
    assert require(speed_gate(19, 20, EngineLimits(fp32=Fp32Limits(speed_ratio=0.9)).of("fp32")))
