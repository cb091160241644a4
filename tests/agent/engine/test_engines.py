"""One contract for every backend: shapes, agreement with eager fp32, and bits that no neighbour can change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.engine import Engine, class_probabilities, load_built, predict_padded
from agent.engine.backend import BuildRequest
from agent.engine.eager import EagerBackend, EagerEngine
from agent.engine.manifest import engine_folder
from agent.engine.openvino import OpenVinoBackend
from agent.engine_limits import STRICT
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_openvino, textured, write_profile
from tests.agent.engine.unproven import build_unproven


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder shared by this module."""
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def profile(folder: Path) -> LoadedProfile:
    """The profile in it."""
    return write_profile(folder)


@pytest.fixture(
    scope="module",
    params=["eager-fp32-b1", "eager-fp32-b4", *(f"openvino-{p}-b{b}" for p in ("fp32", "bf16") for b in (1, 4))],
)
def engine(request: pytest.FixtureRequest, folder: Path, profile: LoadedProfile) -> Iterator[Engine]:
    """Every backend, precision and batch shape that this machine can run."""
    backend, precision, batch = request.param.split("-")
    if backend == "eager":
        made: Engine = EagerEngine(profile, 1, int(batch[1:]))
    else:
        need_openvino()
        if precision not in OpenVinoBackend().precisions():
            pytest.skip(f"this processor has no {precision}")
        target = engine_folder(folder, backend, precision, int(batch[1:]))
        build_unproven(OpenVinoBackend(), profile, target, precision, int(batch[1:]))
        made = load_built(profile, target, 1)
    yield made
    made.close()


class TestEveryEngine:
    """What the Protocol promises."""

    def test_shape_and_dtype(self, engine: Engine) -> None:
        """A full batch gives one float32 row per input under the name of what the head emits, and an embedding."""
        prediction = engine.predict(textured(engine.batch_size))
        assert set(prediction) == {"logits", "embedding"}
        assert prediction["logits"].shape == (engine.batch_size, 4)
        assert prediction["embedding"].shape == (engine.batch_size, 64)
        assert all(values.dtype == np.float32 for values in prediction.values())

    def test_the_embedding_is_that_of_eager(self, engine: Engine, profile: LoadedProfile) -> None:
        """Rows of the embedding are close to eager's own, and so belong to their inputs."""
        inputs = textured(6, seed=11)
        expected = predict_padded(EagerEngine(profile, 1, 1), inputs)["embedding"]
        found = predict_padded(engine, inputs)["embedding"]
        lengths = np.linalg.norm(expected, axis=1)
        limit = STRICT.of(engine.precision).embedding_difference
        assert (np.linalg.norm(found - expected, axis=1) / lengths).max() <= limit

    @pytest.mark.parametrize("extra", [-1, 1])
    def test_other_batch_sizes_are_refused(self, engine: Engine, extra: int) -> None:
        """The one batch shape is enforced: another number of rows raises ValueError."""
        with pytest.raises(ValueError, match=f"takes {engine.batch_size} rows"):
            engine.predict(textured(engine.batch_size + extra))

    def test_same_bits_whatever_the_neighbours(self, engine: Engine) -> None:
        """A patch gives the same bits in every slot and beside every neighbour, zeros and saturation included."""
        patch = textured(1, seed=5)[0]
        seen = set()
        for slot in range(engine.batch_size):
            for neighbours in (
                textured(4, seed=6),
                textured(4, seed=7),
                np.zeros_like(textured(1)),
                ~np.zeros_like(textured(1)),
            ):
                batch = np.resize(neighbours, (engine.batch_size, *patch.shape))
                engine.predict(batch)
                batch[slot] = patch
                found = engine.predict(batch)
                seen.add((found["logits"][slot].tobytes(), found["embedding"][slot].tobytes()))
        assert len(seen) == 1

    @pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
    def test_padding_never_shows(self, engine: Engine, count: int) -> None:
        """Any number of inputs gives exactly as many rows, with the bits that each has alone."""
        inputs = textured(count, seed=8)
        for name, together in predict_padded(engine, inputs).items():
            alone = [predict_padded(engine, inputs[i : i + 1])[name][0] for i in range(count)]
            assert together.tobytes() == np.stack(alone).tobytes()

    def test_no_inputs(self, engine: Engine) -> None:
        """No input at all is an error, not an empty answer of unknown shape."""
        with pytest.raises(ValueError, match="no inputs"):
            predict_padded(engine, textured(1)[:0])

    def test_agrees_with_the_golden_pair(self, engine: Engine, profile: LoadedProfile) -> None:
        """Probabilities of the golden inputs are within the limit of the precision."""
        found = class_probabilities(predict_padded(engine, profile.golden_inputs))
        expected = class_probabilities({"logits": profile.golden_outputs})
        assert np.abs(found - expected).max() <= STRICT.of(engine.precision).max_dp

    def test_inputs_stay_as_they_were(self, engine: Engine) -> None:
        """The caller's pixels are not changed, and results do not change when the engine runs again."""
        inputs = textured(engine.batch_size, seed=9)
        before = inputs.copy()
        first = engine.predict(inputs)
        kept = {name: values.copy() for name, values in first.items()}
        engine.predict(textured(engine.batch_size, seed=10))
        np.testing.assert_array_equal(inputs, before)
        for name, values in first.items():
            np.testing.assert_array_equal(values, kept[name])


def test_probabilities_are_named_so(tmp_path: Path) -> None:
    """A network with softmax inside its head gives `probabilities`, from every backend."""
    profile = write_profile(tmp_path, quirks=True)
    engines: list[Engine] = [EagerBackend().load(profile, None, 1)]
    need_openvino()
    target = engine_folder(tmp_path, "openvino", "fp32", 1)
    build_unproven(OpenVinoBackend(), profile, target, "fp32", 1)
    engines.append(load_built(profile, target, 1))
    for engine in engines:
        found = predict_padded(engine, profile.golden_inputs)
        np.testing.assert_allclose(found["probabilities"], profile.golden_outputs, atol=1e-5)


def test_eager_needs_no_build(tmp_path: Path) -> None:
    """Asking eager for a build is an error that says why."""
    profile = write_profile(tmp_path / "profile")
    with pytest.raises(ValueError, match="needs no build"):
        EagerBackend().build(BuildRequest(profile, tmp_path, "fp32", 1, 1))
