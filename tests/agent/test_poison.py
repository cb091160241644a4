"""Promises about patches that the engine cannot run: they are rejected, all others count, and a broken engine is told
from a bad patch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from agent.acquisition import State
from agent.batching import Batch, Timed
from agent.engine import Engine, self_test
from agent.engine.eager import EagerEngine
from agent.engine.isolation import FAILED
from agent.errors import EngineError
from agent.handover import Cancelled, CancelToken, Handover
from agent.intake import Problem, SlideClosed
from agent.ledger import CountedPatch, Record
from agent.reducer import Reducer
from agent.worker import Work, Worker
from models.contract import ModelInput, PatchKey, Prediction, SlideKey
from models.posterior import Posterior
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import need_openvino
from tests.agent.engine.unproven import build_unproven
from tests.agent.test_worker import SLIDE, EngineRoom, batch, patch, progress
from tests.fakes import FakeEngine
from tests.tiny_profile import SIDE, poison, texture, write_tiny_profile

OTHER = SlideKey("P", "S2")


class PickyEngine(FakeEngine):
    """An engine that fails on some patches, wherever in a batch they are."""

    def __init__(self, bad: Sequence[int], how: str = "raises", batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size)
        self._bad = [patch(number).pixels for number in bad]
        self._how = how
        self.broken = False
        """It fails on everything from now on."""

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """As the healthy engine; a bad patch raises, or gives values that are not finite."""
        prediction = {name: values.copy() for name, values in super().predict(x_BCHW).items()}
        for row, x_CHW in enumerate(x_BCHW):
            if self.broken or any(np.array_equal(x_CHW, bad) for bad in self._bad):
                if self._how == "raises":
                    raise RuntimeError("device-side assert in /some/where")
                prediction["logits"][row] = np.nan
        return prediction


def healthy() -> None:
    """A self-test that passes."""


def broken() -> None:
    """A self-test that fails."""
    raise EngineError("golden pair differs by 1, fp32 allows 0.0001")


def answer_without(bad: Sequence[int], numbers: Sequence[int]) -> Posterior:
    """What a healthy engine says of the same patches when the bad ones never came."""
    room = EngineRoom()
    room.work(batch([number for number in numbers if number not in bad]))
    return room.reducer.of_slide(SLIDE)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_bad_patch_is_rejected_and_its_neighbours_count(how: str) -> None:
    """Exceptions and NaN alike: the one patch is `engine_failed` with its digest, the others give the same bits."""
    room = EngineRoom(engine=PickyEngine([5], how), self_test=healthy)
    room.work(batch(range(4)), batch(range(4, 8)), progress(State.COMPLETE, 2), SlideClosed(SLIDE))
    found, expected = room.reducer.of_slide(SLIDE), answer_without([5], range(8))
    assert (found.probabilities, found.interval) == (expected.probabilities, expected.interval)
    assert (found.counts.used, found.counts.rejected) == (7, {FAILED: 1})
    assert [row.key.x // 300 for row in room.rows() if row.rejected == FAILED] == [5]
    assert room.said("slide.final")[0]["counts"] == {"seen": 8, "used": 7, "rejected": {FAILED: 1}}
    assert room.reducer.total.rejected == {FAILED: 1}, "what health and metrics show"


def test_a_rejected_patch_keeps_its_digest_and_can_be_corrected() -> None:
    """The same pixels again change nothing; other pixels at the same place take the rejection back."""
    engine = PickyEngine([1])
    room = EngineRoom(engine=engine, self_test=healthy)
    bad = ModelInput(patch(1).key, patch(1).pixels, digest=7)
    mended = ModelInput(patch(1).key, patch(9).pixels, digest=8)
    room.work(Batch((Timed(bad, 99.0),)), Batch((Timed(bad, 99.0),)))
    assert room.rows() == [CountedPatch(bad.key, None, FAILED, None, 7)]
    room.work(Batch((Timed(mended, 99.0),)))
    assert room.reducer.of_slide(SLIDE).counts.rejected == {}
    assert (room.rows()[-1].rejected, room.rows()[-1].pixels, room.reducer.corrected) == (None, 8, 1)


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 5), st.sets(st.integers(0, 8), max_size=4))
def test_order_and_batching_change_nothing(numbers: list[int], size: int, bad: set[int]) -> None:
    """Bad patches anywhere, in batches of any size and order: the posterior of the others to the last bit."""
    room = EngineRoom(engine=PickyEngine(sorted(bad), batch_size=size), self_test=healthy)
    room.work(*(batch(numbers[start : start + size]) for start in range(0, len(numbers), size)))
    found, expected = room.reducer.of_slide(SLIDE), answer_without(sorted(bad), range(9))
    assert found.probabilities == expected.probabilities
    assert found.counts.rejected == ({FAILED: len(bad)} if bad else {})


def test_each_slide_is_told_once() -> None:
    """Bad patches in several batches of two slides: one alert a slide, an error, and none after a restart."""
    engine = PickyEngine(range(6), "nan")
    room = EngineRoom(engine=engine, self_test=healthy)
    room.work(batch(range(3)), batch(range(3, 5)), batch([0, 7], slide=OTHER), batch([1], slide=OTHER))
    alerts = room.said("alert")
    assert [(alert["reason"], alert["slide"], alert["severity"]) for alert in alerts] == [
        (FAILED, SLIDE.slide, "error"),
        (FAILED, OTHER.slide, "error"),
    ]
    assert room.measures.alerts == {FAILED: 2}
    after = EngineRoom(engine=engine, restored=room.rows(), self_test=healthy)
    after.work(batch([5]))
    assert not after.said("alert")
    assert after.reducer.of_slide(SLIDE).counts.rejected == {FAILED: 6}


def test_a_slide_of_bad_patches_only_is_no_broken_engine() -> None:
    """Nothing but bad patches, batch after batch, while the golden pair passes: all rejected, the room goes on."""
    tests: list[int] = []
    room = EngineRoom(engine=PickyEngine(range(40)), self_test=lambda: tests.append(1))
    room.work(*(batch(range(start, start + 4)) for start in range(0, 40, 4)), SlideClosed(SLIDE))
    (final,) = room.said("slide.final")
    assert final["counts"] == {"seen": 40, "used": 0, "rejected": {FAILED: 40}}
    assert (final["decision"], final["probabilities"]) == ("insufficient", None)
    assert len(tests) == 10, "each time the engine had to prove itself"


def test_a_failure_that_does_not_come_again_costs_nothing() -> None:
    """A batch that fails once and then runs patch by patch: nobody is rejected, no self-test, only a log event."""
    engine = PickyEngine([])
    engine.broken = True
    tests: list[int] = []
    room = EngineRoom(engine=engine, self_test=lambda: tests.append(1))

    def first_fails(x_BCHW: NDArray[np.uint16]) -> Prediction:
        try:
            return PickyEngine.predict(engine, x_BCHW)
        finally:
            engine.broken = False

    engine.predict = first_fails  # type: ignore[method-assign]
    with capture_logs() as lines:
        room.work(batch(range(4)))
    assert room.reducer.of_slide(SLIDE) == answer_without([], range(4))
    assert not tests and not room.said("alert")
    (line,) = [line for line in lines if line["event"] == "batch_failed"]
    assert (line["log_level"], line["patches"], line["error"]) == ("warning", 4, "RuntimeError")


def test_the_same_failure_is_logged_once() -> None:
    """A slide full of bad patches writes one `batch_failed`; another kind of failure is told anew."""
    engine = PickyEngine(range(12))
    room = EngineRoom(engine=engine, self_test=healthy)
    with capture_logs() as lines:
        room.work(*(batch([number]) for number in range(6)))
        engine._how = "nan"
        room.work(*(batch([number]) for number in range(6, 12)))
    told = [line["error"] for line in lines if line["event"] == "batch_failed"]
    assert told == ["RuntimeError", "engine fake: the network returned values that are not finite"]


def test_the_watchdog_is_fed_meanwhile() -> None:
    """Each single run beats: a slow engine with a large batch must not be taken for a dead one."""
    room = EngineRoom(engine=PickyEngine([3], batch_size=8), self_test=healthy)
    room.work(batch(range(8)))
    assert room.beats >= 8 + 1


def test_a_broken_engine_ends_the_room_and_nothing_of_the_batch_counts() -> None:
    """When the golden pair fails, too, EngineError says both, and no patch is blamed."""
    room = EngineRoom(engine=PickyEngine([2], "nan"), self_test=broken)
    with pytest.raises(EngineError, match=r"engine is broken: .*not finite.*golden pair differs"):
        room.work(batch(range(4), [(9, "empty")]))
    assert not room.records
    assert room.reducer.total.seen == 0


def test_without_a_self_test_an_engine_that_runs_nothing_is_broken() -> None:
    """One patch of the batch that can be run is proof enough; none is not."""
    room = EngineRoom(engine=PickyEngine([1]))
    room.work(batch([0, 1]))
    assert room.reducer.total.rejected == {FAILED: 1}
    with pytest.raises(EngineError, match="runs no patch of a batch: RuntimeError"):
        EngineRoom(engine=PickyEngine([1])).work(batch([1]))


def test_what_was_found_before_a_broken_engine_is_handed_on() -> None:
    """Rows and alerts of the batches before reach the next room before this one ends with the error."""
    token = CancelToken()
    room = EngineRoom(engine=PickyEngine([7]), self_test=broken)
    inbox: Handover[Work] = Handover("work", 10, token)
    outbox: Handover[Record] = Handover("records", 10, token)
    for work in (batch(range(2)), batch(range(2, 4)), Problem("truncated", "", SLIDE), batch([7]), batch([8])):
        inbox.put(work)
    inbox.close()
    taken: list[Record] = []

    def sender() -> None:
        with suppress(Cancelled):
            while not outbox.ended:
                if (record := outbox.get(0.1)) is not None:
                    taken.append(record)

    thread = threading.Thread(target=sender, name="sender")
    thread.start()
    try:
        with pytest.raises(EngineError):
            Worker(inbox, outbox, room.reducer, room.reporter, "ab" * 32, interval_s=1e9).run()
    finally:
        token.fail("engine", EngineError("broken"))  # as the overseer does: nothing can be taken after that
        thread.join()
    assert [row.key.x // 300 for record in taken for row in record.patches] == [0, 1, 2, 3]
    assert "alert" in {message.kind for message in taken[-1].messages}


def test_waiting_for_a_room_that_takes_nothing_ends() -> None:
    """A next room that does not come round, or that was told to leave, keeps nobody."""
    token = CancelToken()
    handover: Handover[int] = Handover("work", 10, token)
    assert handover.wait_until_taken(5.0)
    handover.put(1)
    assert not handover.wait_until_taken(0.01)
    token.cancel()
    assert not handover.wait_until_taken(60.0)


# Real engines


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedProfile]:
    """A profile whose real network leaves the range of fp32 on one patch."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, write_tiny_profile(folder)


class Raising:
    """A real engine whose device gives up on one patch, as drivers do: with a RuntimeError for the whole batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.precision, self.batch_size = engine.name, engine.precision, engine.batch_size

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """As the real one."""
        if any(np.array_equal(x_CHW, poison()) for x_CHW in x_BCHW):
            raise RuntimeError("an illegal memory access was encountered")
        return self._engine.predict(x_BCHW)

    def close(self) -> None:
        """Free the real one."""
        self._engine.close()


def eager(profile: LoadedProfile, folder: Path, batch_size: int) -> Engine:
    """torch itself."""
    return EagerEngine(profile, 1, batch_size)


def raising_eager(profile: LoadedProfile, folder: Path, batch_size: int) -> Engine:
    """torch, which raises on the bad patch."""
    return Raising(EagerEngine(profile, 1, batch_size))


def raising_openvino(profile: LoadedProfile, folder: Path, batch_size: int) -> Engine:
    """OpenVINO fp32, which raises on the bad patch."""
    from agent.engine import open_built
    from agent.engine.manifest import engine_folder
    from agent.engine.openvino import OpenVinoBackend

    need_openvino()
    target = engine_folder(folder, "openvino", "fp32", batch_size)
    if not target.exists():
        build_unproven(OpenVinoBackend(), profile, target, "fp32", batch_size)
    return Raising(open_built(profile, target, 1))


@pytest.mark.parametrize(("make", "batch_size"), [(eager, 1), (eager, 4), (raising_eager, 4), (raising_openvino, 4)])
def test_real_engines(
    make: Callable[[LoadedProfile, Path, int], Engine], batch_size: int, tiny: tuple[Path, LoadedProfile]
) -> None:
    """NaN out of torch's own arithmetic, and backends that raise: the golden pair still agrees, the patch is
    rejected, and the others have the bits that they have without it.
    """
    folder, profile = tiny
    engine = make(profile, folder, batch_size)
    pixels = [texture(number, SIDE, SIDE) for number in range(6)]

    def count(skipped: Sequence[int]) -> Reducer:
        reducer = Reducer(engine, profile.spec, self_test=lambda: self_test(engine, profile))
        items = [
            Timed(ModelInput(PatchKey("P", "S", 0, number, 0), poison() if number == 2 else pixels[number]), 0.0)
            for number in range(6)
            if number not in skipped
        ]
        for start in range(0, len(items), batch_size):
            reducer.run(Batch(tuple(items[start : start + batch_size])))
        return reducer

    found, expected = count([]).of_slide(SLIDE), count([2]).of_slide(SLIDE)
    engine.close()
    assert found.probabilities == expected.probabilities
    assert (found.counts.used, found.counts.rejected) == (5, {FAILED: 1})


def test_a_real_engine_that_lost_its_weights_is_broken(tiny: tuple[Path, LoadedProfile]) -> None:
    """Weights that turned into NaN in memory: the golden pair fails, too, and the engine is named."""
    import torch

    _, profile = tiny
    engine = EagerEngine(profile, 1, 1)
    reducer = Reducer(engine, profile.spec, self_test=lambda: self_test(engine, profile))
    with torch.no_grad():
        next(engine._network.parameters()).fill_(torch.nan)
    item = ModelInput(PatchKey("P", "S", 0, 0, 0), texture(1, SIDE, SIDE))
    with pytest.raises(EngineError, match=r"engine is broken: engine eager: .*not finite.*golden pair"):
        reducer.run(Batch((Timed(item, 0.0),)))
    assert reducer.total.seen == 0
