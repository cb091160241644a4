"""Promises of the engine in service: one that breaks is replaced, and every patch counts once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import chain as chain_of
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.batching import Batch, Timed
from agent.engine import Choice, Engine, open_built, predict_padded
from agent.engine.eager import EagerEngine
from agent.engine.isolation import FAILED
from agent.engine.manifest import engine_folder
from agent.engine.openvino import OpenVinoBackend
from agent.engine.service import Service, serve
from agent.errors import EngineError, SettingsError
from agent.reducer import Reducer
from agent.settings import EngineSettings
from models.calibration import calibrate
from models.contract import ModelInput, PatchKey, Prediction, SlideKey
from models.posterior import Posterior, Tally, combine, to_fixed
from models.profile import AggregationSpec, LoadedProfile
from tests.agent.engine.breaking import HOW, Breaking
from tests.agent.engine.small_profile import need_openvino, read_profile, textured, write_profile
from tests.agent.engine.unproven import build_unproven

SLIDE = SlideKey("P", "S")
PIXELS = textured(8, seed=5)
LIMIT_S = 2.0
"""Long for a batch of the small network; what hangs here hangs for ever."""
END_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile folder with two OpenVINO engines, of batches of one and of two."""
    need_openvino()
    folder = tmp_path_factory.mktemp("service") / "profile"
    profile = write_profile(folder)
    for batch in (1, 2):
        build_unproven(OpenVinoBackend(), profile, engine_folder(folder, "openvino", "fp32", batch), "fp32", batch)
    return folder


@pytest.fixture(scope="module")
def profile(folder: Path) -> LoadedProfile:
    """The small profile."""
    return read_profile(folder)


class Chain:
    """Three real engines, each of which may be made to break; counts which were loaded."""

    def __init__(self, folder: Path, profile: LoadedProfile, *breaks: tuple[str, int]) -> None:
        """`breaks`: how, and after how many batches, the engines break; those behind never do."""
        self._folder, self._profile = folder, profile
        self._breaks = [*breaks, *[("raises", 10**9)] * 3]
        self.engines: list[Breaking] = []

    def choices(self) -> Iterator[Choice]:
        """OpenVINO of two rows, OpenVINO of one, eager."""
        for number, label in enumerate(("openvino-fp32-b2", "openvino-fp32-b1", "eager")):
            self.engines.append(Breaking(self._load(label), *self._breaks[number]))
            yield Choice(self.engines[-1], {}, None, label)

    def _load(self, label: str) -> Engine:
        if label == "eager":
            return EagerEngine(self._profile, 1, 1)
        return open_built(self._profile, self._folder / "engines" / label, 1)

    def answers(self, label: str) -> list[tuple[int, ...]]:
        """What an engine says of each patch when it is asked alone."""
        logits_NK = predict_padded(self._load(label), PIXELS)["logits"]
        return [to_fixed(p_K) for p_K in calibrate(logits_NK, self._profile.spec.calibration, "logits")]


def item(number: int) -> Timed:
    """A patch of the slide."""
    return Timed(ModelInput(PatchKey("P", "S", 0, number, 0), PIXELS[number]), 0.0)


def posterior_of(values: Sequence[tuple[int, ...]], rule: AggregationSpec) -> Posterior:
    """The posterior of these answers, counted one by one."""
    tally = Tally(len(values[0]))
    for number, value in enumerate(values):
        tally.use(item(number).item.key, value, None, None)
    return combine([tally], len(values[0]), independence=rule.independence, mass=rule.interval)


def reducer_on(service: Service, profile: LoadedProfile) -> Reducer:
    """As the daemon and `score` join them."""
    test, turn = service.self_test, service.next_engine
    return Reducer(service, profile.spec, self_test=test, next_engine=turn)


def count(reducer: Reducer, sizes: Sequence[int]) -> list[tuple[int, ...] | None]:
    """Run the patches in batches of these sizes; what was counted, in the order of the patches."""
    rows = []
    start = 0
    for size in sizes:
        rows += reducer.run(Batch(tuple(item(number) for number in range(start, start + size))))
        start += size
    assert [row.key.x for row in rows] == list(range(start)), "each once, none lost"
    return [row.values for row in rows]


@pytest.mark.parametrize("how", HOW)
def test_a_broken_engine_is_replaced_and_the_batch_runs_again(how: str, folder: Path, profile: LoadedProfile) -> None:
    """It breaks in the middle of a batch: what was counted stays, the whole batch is the next one's, to the bit."""
    chain = Chain(folder, profile, (how, 3))
    service = Service(chain.choices(), profile, limit_s=LIMIT_S)
    reducer = reducer_on(service, profile)
    assert len(chain.engines) == 1, "the others are loaded when they are needed"
    found = count(reducer, [4, 3, 1])  # the first engine takes two rows: its fourth batch is in the second of these
    expected = [*chain.answers("openvino-fp32-b2")[:4], *chain.answers("openvino-fp32-b1")[4:]]
    assert found == expected
    assert reducer.of_slide(SLIDE) == posterior_of(expected, profile.spec.aggregation)
    assert (reducer.total.seen, reducer.total.used, reducer.corrected) == (8, 8, 0)
    (change,) = service.replacements
    assert (change.before, change.after) == ("openvino-fp32-b2", "openvino-fp32-b1")
    told = {
        "raises": "RuntimeError, and golden pair cannot be run",
        "nan": "not finite, and golden pair differs by nan",
    }
    assert told.get(how, "has not come back within 2 s") in change.reason
    assert service.choice.passed_over == {"openvino-fp32-b2": change.reason}
    assert (service.name, service.batch_size, len(chain.engines)) == ("openvino", 1, 2)
    broken = chain.engines[0]
    if how == "hangs":
        assert not broken.closed.is_set(), "it is not closed under its own call"
        broken.comes_back.set()
    assert broken.closed.wait(END_S)
    service.close()
    assert broken.threads == {"engine-owner"}
    assert chain.engines[1].closed.is_set()


def test_the_last_engine_answers_when_all_before_it_broke(folder: Path, profile: LoadedProfile) -> None:
    """One batch that breaks two engines is answered by the third, whole; every reason is kept."""
    chain = Chain(folder, profile, ("raises", 2), ("nan", 1))
    service = Service(chain.choices(), profile, limit_s=LIMIT_S)
    found = count(reducer_on(service, profile), [4, 4])
    assert found == [*chain.answers("openvino-fp32-b2")[:4], *chain.answers("eager")[4:]]
    assert [change.after for change in service.replacements] == ["openvino-fp32-b1", "eager"]
    assert list(service.choice.passed_over) == ["openvino-fp32-b2", "openvino-fp32-b1"]
    service.close()


def test_when_no_engine_is_left_nothing_of_the_batch_counts(folder: Path, profile: LoadedProfile) -> None:
    """The error says why each was given up; what was counted before stays; closing again does no harm."""
    chain = Chain(folder, profile, ("nan", 2), ("raises", 0), ("raises", 0))
    service = Service(chain.choices(), profile, limit_s=LIMIT_S)
    reducer = reducer_on(service, profile)
    count(reducer, [4])
    with pytest.raises(EngineError, match=r"engine is broken.*openvino-fp32-b2: .*openvino-fp32-b1: .*eager: "):
        reducer.run(Batch((item(4), item(5))))
    assert reducer.total.seen == 4
    assert all(engine.closed.is_set() for engine in chain.engines)
    service.close()


def test_without_a_limit_there_is_no_thread(folder: Path, profile: LoadedProfile) -> None:
    """A limit of 0 runs the engine on the caller's thread, and replaces it all the same."""
    chain = Chain(folder, profile, ("raises", 1))
    service = Service(chain.choices(), profile)
    found = count(reducer_on(service, profile), [2, 2])
    assert found == [*chain.answers("openvino-fp32-b2")[:2], *chain.answers("openvino-fp32-b1")[2:4]]
    service.close()
    assert all(engine.threads == {threading.current_thread().name} for engine in chain.engines)


class Picky(Breaking):
    """A real engine that cannot run one patch."""

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """As the real one, but for that patch."""
        if any(np.array_equal(x_CHW, PIXELS[2]) for x_CHW in x_BCHW):
            raise RuntimeError("an illegal memory access was encountered")
        return super().predict(x_BCHW)


def test_a_bad_patch_replaces_nothing(folder: Path, profile: LoadedProfile) -> None:
    """A batch that fails while the golden pair passes: the patch is rejected, as without others behind the engine."""
    first = Picky(open_built(profile, folder / "engines" / "openvino-fp32-b2", 1), healthy=10**9)
    others = Chain(folder, profile)
    service = Service(chain_of([Choice(first, label="picky")], others.choices()), profile, limit_s=LIMIT_S)
    reducer = reducer_on(service, profile)
    found = count(reducer, [4])
    assert [values is None for values in found] == [False, False, True, False]
    assert reducer.total.rejected == {FAILED: 1}
    assert (service.replacements, others.engines, service.choice.passed_over) == ((), [], {})
    service.close()


def test_serve_takes_the_settings_and_tests_what_takes_over(tmp_path: Path, folder: Path) -> None:
    """By the order of the settings; of those behind, one that is spoiled is passed over with its reason."""
    profile = write_profile(tmp_path)
    build_unproven(OpenVinoBackend(), profile, engine_folder(tmp_path, "openvino", "fp32", 1), "fp32", 1)
    spoiled = engine_folder(tmp_path, "openvino", "fp32", 2)
    build_unproven(OpenVinoBackend(), profile, spoiled, "fp32", 2)
    (spoiled / "model.bin").write_bytes(b"")
    service = serve(tmp_path, profile, EngineSettings(order=("openvino", "eager"), threads=1))
    manifest = service.choice.manifest
    assert manifest is not None and (service.choice.label, manifest.batch_size) == ("openvino-fp32-b1", 1)
    service.next_engine(EngineError("it broke"))
    assert (service.name, service.choice.label, service.choice.manifest) == ("eager", "eager", None)
    assert list(service.choice.passed_over) == ["openvino-fp32-b1", "openvino-fp32-b2"]
    assert service.choice.passed_over["openvino-fp32-b1"] == "it broke"
    assert "model.bin differs" in service.choice.passed_over["openvino-fp32-b2"]
    assert service.self_test() < 1e-5
    service.close()


def test_a_start_without_any_engine_leaves_no_thread(tmp_path: Path) -> None:
    """An unknown name and an engine that cannot be used end the start with their own errors."""
    profile = write_profile(tmp_path)
    before = threading.active_count()
    with pytest.raises(SettingsError, match="unknown engine 'abacus'"):
        serve(tmp_path, profile, EngineSettings(order=("abacus",)))
    with pytest.raises(EngineError, match="no engine can be used: openvino"):
        serve(tmp_path, profile, EngineSettings(order=("openvino",)))
    assert threading.active_count() == before
