"""One contract for every backend in agent.engine.BACKENDS: a new line there is tested here without a new test.

What only some shapes and precisions show is tested in tests/agent/engine/test_engines.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from agent.engine import BACKENDS, Backend, Engine, choose, class_probabilities, predict_padded
from agent.engine.backend import PRECISIONS
from agent.engine.manifest import engine_folder
from agent.engine_limits import STRICT, EngineLimits
from agent.errors import EngineError
from agent.profile_folder import load_profile_folder
from models.domain import Reference, distances, marks, rooted
from models.profile import LoadedProfile
from models.srh.intensity import intensity_statistics
from tests.agent.engine.small_profile import need_compiler, textured, write_profile
from tests.agent.engine.unproven import build_unproven

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = ("openvino", "inductor", "eager")
"""Backends that run on every machine."""
pytestmark = pytest.mark.timeout(500)  # inductor compiles for half a minute of a core


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every registered backend."""
    return BACKENDS[request.param]


@pytest.fixture(scope="module")
def folder(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder with the backend's engine of its best precision and default batch, where it needs one."""
    reason = backend.unavailable()
    if reason is not None:
        # A backend for a device that CI has not can only be skipped there; the others must be installed.
        pytest.fail(reason) if os.environ.get("CI") and backend.name in EVERYWHERE else pytest.skip(reason)
    if backend.name == "inductor":
        need_compiler()
    folder = tmp_path_factory.mktemp(backend.name)
    profile = write_profile(folder, sizes={"layers": 1})
    if backend.needs_build:
        precision, batch = backend.precisions()[0], backend.default_batch("cpu")
        build_unproven(backend, profile, engine_folder(folder, backend.name, precision, batch), precision, batch)
    return folder


@pytest.fixture(scope="module")
def profile(folder: Path) -> LoadedProfile:
    """The profile in the folder."""
    return load_profile_folder(folder)


@pytest.fixture(scope="module")
def engine(backend: Backend, folder: Path, profile: LoadedProfile) -> Iterator[Engine]:
    """The engine that the daemon would take when this backend is all that it is offered."""
    choice = choose(folder, profile, [backend.name], 1)
    assert not choice.passed_over
    yield choice.engine
    choice.engine.close()


class TestEveryBackend:
    """What the registry promises."""

    def test_it_is_registered_under_its_name(self, backend: Backend) -> None:
        """The name in BACKENDS is the backend's own."""
        assert BACKENDS[backend.name] is backend

    def test_what_it_says_of_itself_is_usable(self, backend: Backend) -> None:
        """Precisions are known ones with a limit for parity; the default batch is a batch; a reason is one line."""
        reason = backend.unavailable()
        if reason is not None:
            assert reason and "\n" not in reason
            return
        assert backend.precisions()
        assert set(backend.precisions()) <= set(PRECISIONS) <= set(EngineLimits.model_fields)
        assert backend.default_batch("cpu") >= 1
        assert all(version(name) for name in backend.requires)

    def test_an_engine_that_is_not_built_is_refused_with_the_command(
        self, backend: Backend, profile: LoadedProfile, tmp_path: Path
    ) -> None:
        """Without an engine folder a backend that needs one is passed over, and the reason says what to run."""
        if backend.needs_build:
            with pytest.raises(EngineError, match=r"agent\.build_trt"):
                choose(tmp_path, profile, [backend.name], 1)
        else:
            choose(tmp_path, profile, [backend.name], 1).engine.close()


class TestEveryEngine:
    """What a loaded engine promises."""

    def test_it_knows_what_it_is(self, backend: Backend, engine: Engine) -> None:
        """Name, precision and the one batch shape are those of its backend."""
        assert engine.name == backend.name
        assert engine.precision in backend.precisions()
        assert engine.batch_size == backend.default_batch("cpu")

    def test_the_golden_pair_agrees(self, engine: Engine, profile: LoadedProfile) -> None:
        """Probabilities of the golden inputs are those of eager fp32 within the limit of the precision."""
        found = class_probabilities(predict_padded(engine, profile.golden_inputs))
        expected = class_probabilities({"logits": profile.golden_outputs})
        assert np.abs(found - expected).max() <= STRICT.of(engine.precision).max_dp

    def test_a_batch_is_one_row_per_input_in_order(self, engine: Engine) -> None:
        """Any number of raw inputs gives float32 rows in their order, each with the bits that it has alone."""
        inputs = textured(5, seed=1)
        together = predict_padded(engine, inputs)
        assert set(together) in ({"logits", "embedding"}, {"probabilities", "embedding"})
        for name, rows in together.items():
            assert rows.dtype == np.float32 and rows.shape == (5, 64 if name == "embedding" else 4)
            alone = [predict_padded(engine, inputs[i : i + 1])[name][0] for i in range(5)]
            assert rows.tobytes() == np.stack(alone).tobytes()

    def test_a_patch_bears_the_same_marks_in_any_batch(self, engine: Engine) -> None:
        """Same embedding, same marks: around a limit that lies among the patches, none changes sides."""
        inputs = textured(6, seed=3)
        together = predict_padded(engine, inputs)["embedding"]
        reference = Reference(
            statistics_low=np.zeros(5),
            statistics_high=np.full(5, 1e9),
            mean=rooted(together).mean(axis=0),
            components=np.eye(64)[:8],
            scales=np.full(8, 0.1),
            residual_scale=np.array(0.1),
            limit=np.array(1.0),
        )
        reference = replace(reference, limit=np.median(distances(reference, together), keepdims=True)[0])
        borne = marks(reference, intensity_statistics(inputs), together)
        assert 0 < sum(map(len, borne)) < 6
        for i in (5, 0, 3, 1, 4, 2):
            alone = predict_padded(engine, inputs[i : i + 1])["embedding"]
            assert marks(reference, intensity_statistics(inputs[i : i + 1]), alone) == [borne[i]]

    def test_another_number_of_rows_is_refused(self, engine: Engine) -> None:
        """The caller pads: any other batch raises ValueError."""
        with pytest.raises(ValueError, match=f"takes {engine.batch_size} rows"):
            engine.predict(textured(engine.batch_size + 1))

    def test_extreme_pixels_give_finite_values(self, engine: Engine) -> None:
        """Black, saturated and contradicting channels overflow nothing."""
        black, white = np.zeros_like(textured(1)), np.full_like(textured(1), 65535)
        split = np.concatenate([black[:, :1], white[:, 1:]], axis=1)
        inputs = np.concatenate([black, white, split, split[:, ::-1]])
        for rows in predict_padded(engine, inputs).values():
            assert np.isfinite(rows).all()

    def test_a_fresh_process_gives_the_same_bits(self, backend: Backend, engine: Engine, folder: Path) -> None:
        """Loaded anew in another process the engine gives the identical answer: a restart changes no posterior."""
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from agent.engine import choose, predict_padded\n"
            "from agent.profile_folder import load_profile_folder\n"
            "folder = Path(sys.argv[1])\nprofile = load_profile_folder(folder)\n"
            "engine = choose(folder, profile, [sys.argv[2]], 1).engine\n"
            "for rows in predict_padded(engine, profile.golden_inputs).values():\n    print(rows.tobytes().hex())\n"
        )
        words = [sys.executable, "-c", code, str(folder), backend.name]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        here = predict_padded(engine, load_profile_folder(folder).golden_inputs)
        assert done.stdout.split() == [rows.tobytes().hex() for rows in here.values()]
