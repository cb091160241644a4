"""int8: rounding that keeps the outputs, graphs that run in it, and the search for what must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.engine import class_probabilities, open_built, predict_padded
from agent.engine.gates import independence_gate
from agent.engine.int8 import MARGIN, MOST_KEPT, search
from agent.engine.manifest import engine_folder
from agent.engine.openvino import OpenVinoBackend, compile_graph, import_openvino, precision_census, run_graph
from agent.engine.quantise import Rounding, convolutions, prepare, quantise, round_filters, shift_of
from agent.engine.spans import HEADROOM, LEVELS, best_span
from models.profile import LoadedProfile
from models.srh.channels import to_network_input
from tests.agent.engine.small_profile import need_openvino, textured, write_profile
from tests.agent.engine.unproven import build_unproven

CONVOLUTIONS = 20
"""Of ResNet-18."""


def prepared(pixels_NCHW: NDArray[np.uint16]) -> list[NDArray[np.float32]]:
    """Network inputs of one patch each."""
    return [to_network_input(patch[None], scale=65536.0, third_channel_base=5000.0) for patch in pixels_NCHW]


def compiled(graph: Any, precision: str) -> Any:
    """Compile on one thread."""
    return compile_graph(graph, precision, 1)


def as_fp32(graph: Any) -> Any:
    """Compile without any loss but the graph's own."""
    return compiled(graph, "fp32")


def outputs(runner: Any, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The first output of each input."""
    request = runner.create_infer_request()
    return np.concatenate([run_graph(request, x)[0] for x in inputs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder shared by this module."""
    need_openvino()
    if "int8" not in OpenVinoBackend().precisions():
        pytest.skip("this processor has no int8")
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def profile(folder: Path) -> LoadedProfile:
    """The profile in it, with an fp32 engine (for its graph) and int8 engines of two batch sizes beside it."""
    made = write_profile(folder)
    for precision, batch in (("fp32", 1), ("int8", 1), ("int8", 3)):
        build_unproven(OpenVinoBackend(), made, engine_folder(folder, "openvino", precision, batch), precision, batch)
    return made


@pytest.fixture(scope="module")
def graph(folder: Path, profile: LoadedProfile) -> Any:
    """The network's graph in fp32."""
    assert profile
    path = engine_folder(folder, "openvino", "fp32", 1) / "model.xml"
    return import_openvino().Core().read_model(path)


@pytest.fixture(scope="module")
def rounding(graph: Any) -> Rounding:
    """How to quantise it, from some inputs."""
    return prepare(graph, as_fp32, prepared(textured(6)))


def test_steps_are_whole_and_within_reach() -> None:
    """Every filter uses its whole range of ±127 and no more."""
    weights_OK = np.random.default_rng(2).normal(0, 1, (7, 40)).astype(np.float32)
    steps_OK, scales_O = round_filters(weights_OK, np.eye(40))
    assert np.array_equal(steps_OK, np.round(steps_OK)) and (np.abs(steps_OK).max(axis=1) == 127).all()
    assert np.abs(steps_OK * scales_O[:, None] - weights_OK).max() <= scales_O.max() / 2 * 1.0001


def test_a_filter_of_zeros_stays_one() -> None:
    """Pruned filters and inputs that are never seen give no division by zero."""
    steps_OK, scales_O = round_filters(np.zeros((2, 9), np.float32), np.zeros((9, 9)))
    assert not steps_OK.any() and np.isfinite(scales_O).all()


def test_spans_cut_off_what_is_rare_only() -> None:
    """Evenly spread values keep their whole range; one far outlier among many small ones sets the steps by half only;
    signed values get levels around zero, of which zero is one."""
    even = np.linspace(0, 5, 4096, dtype=np.float32)
    assert best_span(even) == pytest.approx((0, 5), rel=0.03)
    rare = np.concatenate([np.random.default_rng(0).exponential(1, 1_000_000), [40.0]]).astype(np.float32)
    assert best_span(rare)[0] == 0 and 24 < best_span(rare)[1] < 36
    low, high = best_span(np.linspace(-3, 1, 4096, dtype=np.float32))
    assert low / ((high - low) / (LEVELS - 1)) == pytest.approx(-128)
    assert best_span(np.zeros(8, np.float32))[1] > 0


class TestGraph:
    """The rewritten graph."""

    def test_every_convolution_runs_in_int8(self, graph: Any, rounding: Rounding) -> None:
        """The compiled graph's census shows it; the original is not touched."""
        runner = compiled(quantise(graph, rounding), "int8")
        assert precision_census(runner)["int8"] == CONVOLUTIONS == len(convolutions(graph))
        assert "int8" not in precision_census(as_fp32(graph))

    def test_kept_convolutions_do_not(self, graph: Any, rounding: Rounding) -> None:
        """The first, one in the middle and the last stay in the higher precision."""
        runner = compiled(quantise(graph, rounding, frozenset({0, 9, 19})), "int8")
        assert precision_census(runner)["int8"] == CONVOLUTIONS - 3

    def test_fewer_quantised_layers_change_less(self, graph: Any, rounding: Rounding) -> None:
        """Keeping half of the network moves the logits less than keeping nothing, and keeping all moves nothing."""
        inputs = prepared(textured(6, seed=3))
        expected_NK = outputs(as_fp32(graph), inputs)
        moved = [
            float(np.abs(outputs(as_fp32(quantise(graph, rounding, frozenset(keep))), inputs) - expected_NK).mean())
            for keep in (range(0), range(10), range(20))
        ]
        assert moved[0] > moved[1] > moved[2] == 0

    def test_ranges_hold_what_was_seen_and_filters_their_weights(self, graph: Any, rounding: Rounding) -> None:
        """The first span holds the inputs with some room; every weight is within some steps of its own."""
        inputs = np.concatenate(prepared(textured(6)))
        assert rounding.inputs[0] == pytest.approx((0.0, HEADROOM * inputs.max()))
        for layer, filters in zip(convolutions(graph), rounding.filters, strict=True):
            weights_OK = layer.input_value(1).get_node().get_data().reshape(filters.steps.shape)
            moved_OK = weights_OK / filters.scales[:, None] - filters.steps
            assert np.sqrt((moved_OK**2).mean()) < 3

    def test_the_mean_embedding_is_given_back(self, graph: Any, rounding: Rounding) -> None:
        """With the shift the mean embedding over the calibration is that of fp32, and `embedding` is still a name."""
        inputs = prepared(textured(6))
        shift_E = shift_of(quantise(graph, rounding), as_fp32, inputs, rounding)
        assert np.abs(shift_E).max() > 1e-4
        shifted = quantise(graph, rounding, shift_E=shift_E)
        assert np.abs(shift_of(shifted, as_fp32, inputs, rounding)).max() < 1e-5
        assert [output.get_any_name() for output in shifted.outputs] == ["logits", "embedding"]

    @pytest.mark.parametrize("batch", [1, 3])
    def test_engines_of_it_answer_like_fp32(self, folder: Path, profile: LoadedProfile, batch: int) -> None:
        """The built engines of both batch sizes keep the golden answers, and rows do not touch each other."""
        engine = open_built(profile, engine_folder(folder, "openvino", "int8", batch), 1)
        found = class_probabilities(predict_padded(engine, profile.golden_inputs))
        expected = class_probabilities({"logits": profile.golden_outputs})
        assert np.abs(found - expected).max() < 0.1  # random heads are steeper than trained ones
        independence_gate(engine, profile)


class TestSearch:
    """Which layers may run in int8; `used` is made up: a network that needs each path cannot be made at will."""

    def run(self, graph: Any, used: Callable[[Any, int], float]) -> tuple[frozenset[int], dict[str, str], list[str]]:
        """Search, and return what is kept, the notes, and what was announced."""
        said: list[str] = []
        found = search(graph, prepared(textured(2)), compiled, used, said.append)
        return found.keep, found.notes, said

    def test_all_where_the_answers_stay(self, graph: Any) -> None:
        """One trial is enough, and the notes say so."""
        trials: list[Any] = []

        def used(trial: Any, every: int) -> float:
            trials.append(trial)
            return 0.3

        keep, notes, said = self.run(graph, used)
        assert keep == frozenset() and len(trials) == 1
        assert notes["int8"].startswith(f"{CONVOLUTIONS} of {CONVOLUTIONS} convolutions")
        assert "0.30" in notes["share of the limits taken up"]
        assert said[-1].endswith(f"trial with all {CONVOLUTIONS} convolutions")

    def test_the_most_sensitive_layers_are_kept(self, graph: Any) -> None:
        """Layers 4 and 7 spoil the answers: both are found, kept, and named with the reason."""

        def used(trial: Any, every: int) -> float:
            return 0.5 + 0.4 * sum(is_int8(convolutions_of(trial)[number]) for number in (4, 7))

        keep, notes, _ = self.run(graph, used)
        assert keep == {4, 7}
        assert "convolutions 5, 8" in notes["kept in higher precision"]
        assert f"1.30 without, {MARGIN} allowed" in notes["share of the limits taken up"]

    def test_it_gives_up_when_too_much_would_have_to_stay(self, graph: Any) -> None:
        """A network that no choice helps is refused with what to use instead."""
        with pytest.raises(RuntimeError, match=f"with {int(MOST_KEPT * CONVOLUTIONS)} of {CONVOLUTIONS}.*use bf16"):
            self.run(graph, lambda trial, every: 3.0)


def convolutions_of(trial: Any) -> list[Any]:
    """Every convolution, quantised or not, in the order of the data."""
    return [node for node in trial.get_ordered_ops() if node.get_type_name() == "Convolution"]


def is_int8(node: Any) -> bool:
    """Whether its filters are stored in steps."""
    return bool(node.input_value(1).get_node().get_type_name() == "Multiply")
