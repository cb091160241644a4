"""agent.engine.gates: each gate passes a faithful engine and stops a wrong one, with its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.engine import predict_padded
from agent.engine.eager import EagerEngine
from agent.engine.gates import GateFailedError, compare, independence_gate, parity_gate, parity_inputs, rate
from models.contract import Prediction
from models.domain import distances
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import textured, write_profile
from tests.fakes import fake_reference


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LoadedProfile:
    """A profile shared by this module."""
    return write_profile(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def eager(profile: LoadedProfile) -> EagerEngine:
    """Its reference."""
    return EagerEngine(profile, 1, 2)


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


def test_a_faithful_engine_passes(profile: LoadedProfile, eager: EagerEngine) -> None:
    """The reference agrees with itself in every figure."""
    parity = parity_gate(eager, eager, profile, 64)
    assert (parity.max_dp, parity.argmax_agreement, parity.ties) == (0, 1, 0)
    assert (parity.embedding_difference, parity.far_agreement) == (0, None)
    independence_gate(eager, profile)


@pytest.mark.parametrize(
    ("precision", "shift", "passes"), [("fp32", 1e-2, False), ("bf16", 1e-2, True), ("bf16", 1, False)]
)
def test_parity_limits(
    profile: LoadedProfile, eager: EagerEngine, precision: str, shift: float, passes: bool
) -> None:
    """A shift that bf16 may have is too much for fp32, and a large one is too much for both."""
    engine = WrongEngine(eager, precision, shift)
    if passes:
        assert 0 < parity_gate(engine, eager, profile, 32).max_dp <= 0.02
        return
    with pytest.raises(GateFailedError, match=r"gate 'parity' failed: max \|dp\|") as caught:
        parity_gate(engine, eager, profile, 32)
    assert caught.value.gate == "parity"


@pytest.mark.parametrize(("precision", "scale", "passes"), [("fp32", 1.01, False), ("bf16", 1.01, True)])
def test_embeddings_must_agree(
    profile: LoadedProfile, eager: EagerEngine, precision: str, scale: float, passes: bool
) -> None:
    """An embedding that is longer than eager's by a hundredth is too much for fp32, not for bf16."""
    engine = WrongEngine(eager, precision, 0, scale=scale)
    if passes:
        assert parity_gate(engine, eager, profile, 8).embedding_difference == pytest.approx(0.01, rel=1e-3)
        return
    with pytest.raises(GateFailedError, match=r"gate 'parity' failed: an embedding differs by 0\.01 of its length"):
        parity_gate(engine, eager, profile, 8)


def test_far_marks_must_agree(profile: LoadedProfile, eager: EagerEngine) -> None:
    """A reference whose limit lies among the patches: where too many of them change sides, the gate fails."""
    inputs = parity_inputs(profile.golden_inputs, profile.golden_outputs.argmax(axis=1), 32)
    embeddings = predict_padded(eager, inputs)["embedding"]
    around = replace(fake_reference(), mean=np.zeros(64), components=np.eye(64)[:3])
    judged = replace(profile, reference=replace(around, limit=np.array(distances(around, embeddings).max())))
    faithful = parity_gate(eager, eager, judged, 32)
    assert faithful.far_agreement == 1
    assert parity_gate(WrongEngine(eager, "bf16", 0, scale=0.99), eager, judged, 32).far_agreement == 1
    most = np.median(distances(around, embeddings))
    divided = replace(profile, reference=replace(around, limit=np.array(most)))
    with pytest.raises(GateFailedError, match=r"only [0-9.]+% of 32 patches stay near or far from the reference"):
        parity_gate(WrongEngine(eager, "bf16", 0, scale=1.045), eager, divided, 32)


def test_neighbours_that_leak_are_found(profile: LoadedProfile, eager: EagerEngine) -> None:
    """An engine whose answers depend on the rest of the batch fails."""
    with pytest.raises(GateFailedError, match="gate 'independence' failed"):
        independence_gate(WrongEngine(eager, "fp32", 0, leaks=True), profile)


def test_compare_by_hand() -> None:
    """Differences, agreement and ties of a small table, worked out by hand."""
    reference = np.array([[0.9, 0.1], [0.505, 0.495], [0.6, 0.4], [0.2, 0.8]])
    found = np.array([[0.8, 0.2], [0.495, 0.505], [0.4, 0.6], [0.2, 0.8]])
    parity = compare(reference, found, 0.02)
    assert parity.max_dp == pytest.approx(0.2)
    assert parity.mean_dp == pytest.approx((0.1 + 0.01 + 0.2 + 0) / 4)
    assert parity.argmax_agreement == 0.5
    assert parity.ties == 1


def test_not_a_number_fails(profile: LoadedProfile, eager: EagerEngine) -> None:
    """NaN in one logit never passes for agreement."""
    with np.errstate(invalid="ignore"), pytest.raises(GateFailedError, match="nan"):
        parity_gate(WrongEngine(eager, "bf16", float("nan")), eager, profile, 8)


def test_parity_inputs_are_reproducible_and_blended() -> None:
    """Inputs are the same each time; every second one lies between two golden inputs of different classes."""
    golden = np.stack([np.full((2, 4, 4), level, np.uint16) for level in (100, 200, 60000)])
    labels = np.array([0, 0, 1])
    inputs = parity_inputs(golden, labels, 40)
    assert inputs.dtype == np.uint16
    np.testing.assert_array_equal(inputs, parity_inputs(golden, labels, 40))
    assert ((inputs[1::2] > 15000) & (inputs[1::2] < 45000)).all()
    plain = inputs[::2].reshape(20, -1)
    assert (plain == plain[:, :1]).all()
    assert all(any(0.69 * level <= value <= level for level in (100, 200, 60000)) for value in plain[:, 0])


def test_parity_inputs_of_one_class() -> None:
    """A golden pair of a single class, or a single input, still gives inputs."""
    assert parity_inputs(textured(3), np.zeros(3, np.int64), 6).shape == (6, *textured(1).shape[1:])
    assert parity_inputs(textured(1), np.zeros(1, np.int64), 6).shape == (6, *textured(1).shape[1:])


def test_rate_is_the_median(profile: LoadedProfile, eager: EagerEngine) -> None:
    """The rate is rows per median time: one slow batch does not change it."""
    ticks = iter([0.0, 1.0, 2.0, 12.0, 20.0, 21.0])
    assert rate(eager, profile, 0, clock=lambda: next(ticks)) == pytest.approx(eager.batch_size / 1.0)
