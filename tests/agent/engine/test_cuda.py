"""agent.engine.cuda without a card: a slow one of the tests' own shows that no copy is overtaken.

What is not covered here is TorchCard: its calls need a card.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agent.engine import predict_padded
from agent.engine.cuda import Card, CudaEngine, Forward
from agent.engine.device import Device
from agent.engine.manifest import Manifest, ProfileRef
from agent.engine_limits import STRICT

ROW = (2, 4, 6)


def manifest(batch_size: int, **columns: int) -> Manifest:
    """Of an engine that gives the mean of each channel, and three columns of embedding."""
    return Manifest(
        backend="inductor",
        precision="fp32",
        batch_size=batch_size,
        outputs={"logits": 2, "embedding": 3} | columns,
        profile=ProfileRef(name="p", version=1, sha256="0", weights="0"),
        device=Device(kind="cuda", model="a card", instructions=("sm_90",), driver="1.0"),
        requires={},
        built_with={},
        files={},
        figures=None,
        limits=STRICT.of("fp32"),
        built_at="",
    )


@dataclass
class SlowCard:
    """Starts nothing before it must: copies and runs wait in a queue until somebody waits for one of them."""

    threads: set[int] = field(default_factory=set)
    queue: list[Callable[[], object]] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    ended: int = 0
    started: int = 0
    error: str = ""

    def _start(self, work: Callable[[], object]) -> int:
        self.threads.add(threading.get_ident())
        self.queue.append(work)
        self.started += 1
        return self.started

    def pinned(self, shape: Sequence[int], dtype: str) -> Any:
        """Plain memory with rubbish in it."""
        return torch.full(tuple(shape), 77, dtype=getattr(torch, dtype))

    def resident(self, shape: Sequence[int], dtype: str) -> Any:
        """The same."""
        return self.pinned(shape, dtype)

    def copy(self, source: Any, target: Any) -> Any:
        """Reads the source when its turn comes, not now."""
        if self.error:
            raise RuntimeError(self.error)
        return self._start(lambda: target.copy_(source))

    def wait(self, mark: Any) -> None:
        """Work off the queue, as far as the mark and no further."""
        self.waited.append(self.started)
        while self.ended < mark:
            self.queue.pop(0)()
            self.ended += 1

    def captured(self, run: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], Callable[[], None]]:
        """Runs once; a replay runs again into the same tensors."""
        outputs = run()

        def again() -> object:
            return [kept.copy_(new) for kept, new in zip(outputs, run(), strict=True)]

        def replay() -> None:
            self._start(again)

        return outputs, replay


def means(raw: Any) -> list[Any]:
    """A network without weights: channel means, and three numbers more."""
    counts = torch.bitwise_and(raw.to(torch.int32), 0xFFFF).to(torch.float32)
    mean = counts.mean(dim=(2, 3))
    return [mean, torch.cat([mean, counts.amax(dim=(1, 2, 3))[:, None]], dim=1)]


def network(events: list[str], forward: Forward = means) -> Callable[[Card], Any]:
    """Notes when it is opened and when its files are gone."""

    @contextmanager
    def opened(card: Card) -> Iterator[Forward]:
        events.append(f"open on {threading.get_ident()}")
        yield forward
        events.append("files gone")

    return opened


def engine_on(card: SlowCard, batch_size: int, events: list[str] | None = None) -> CudaEngine:
    """An engine on this card."""
    return CudaEngine(manifest(batch_size), ROW, lambda: card, network([] if events is None else events), {"fp32": 2})


def counts(rows: int, seed: int) -> NDArray[np.uint16]:
    """Raw inputs over the whole range."""
    return np.random.default_rng(seed).integers(0, 65536, (rows, *ROW), dtype=np.uint16)


def expected(x: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Channel means in a slow loop."""
    return np.array([[np.float32(np.mean(c, dtype=np.float64)) for c in row] for row in x])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8, 32])
def test_no_copy_is_overtaken(batch_size: int) -> None:
    """However late the card fetches its pixels, it gets those of this batch: a buffer is filled again only after its
    copy has ended, in each of many batches.
    """
    engine = engine_on(SlowCard(), batch_size)
    for seed in range(5):
        x = counts(batch_size, seed)
        before = x.copy()
        found = engine.predict(x)
        np.testing.assert_allclose(found["logits"], expected(x), rtol=1e-6)
        np.testing.assert_array_equal(found["embedding"][:, 2], x.max(axis=(1, 2, 3)))
        np.testing.assert_array_equal(x, before)
    engine.close()


def test_answers_stay_as_they_are() -> None:
    """The next batch does not change what the last one gave, although the card writes to the same place."""
    engine = engine_on(SlowCard(), 4)
    first = engine.predict(counts(4, 0))
    kept = {name: rows.copy() for name, rows in first.items()}
    engine.predict(counts(4, 1))
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, kept[name])
        assert rows.dtype == np.float32
    engine.close()


def test_two_parts_are_under_way_at_once() -> None:
    """While the card has not fetched the first part, the second is filled already: there are two buffers."""
    card = SlowCard()
    engine = engine_on(card, 8)
    engine.predict(counts(8, 0))
    assert card.waited[0] == 2  # two copies had been started when the host had to wait for the first
    engine.close()


def test_one_thread_owns_the_card() -> None:
    """Whoever asks, the card is called from one thread of its own, which ends with the engine."""
    card, events = SlowCard(), list[str]()
    engine = engine_on(card, 2, events)
    asking = [threading.Thread(target=lambda: predict_padded(engine, counts(5, 3))) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    (owner,) = card.threads
    assert owner != threading.get_ident() and events[0] == f"open on {owner}"
    engine.close()
    assert owner not in {thread.ident for thread in threading.enumerate()}


def test_files_are_there_until_the_network_has_run() -> None:
    """Kernels are read when they first run: what was unpacked goes away after that and before the first batch."""
    events: list[str] = []

    def noting(raw: Any) -> list[Any]:
        events.append("run")
        return means(raw)

    engine = CudaEngine(manifest(1), ROW, SlowCard, network(events, noting), {})
    assert events[1:] == ["run", "files gone"]
    engine.close()


def test_other_shapes_and_types_are_refused() -> None:
    """The captured graph reads memory of one shape: anything else raises ValueError before it is copied."""
    engine = engine_on(SlowCard(), 2)
    with pytest.raises(ValueError, match="takes 2 rows"):
        engine.predict(counts(3, 0))
    with pytest.raises(ValueError, match=r"expected uint16 \[2, 2, 4, 6\]"):
        engine.predict(counts(2, 0)[:, :, :3])
    with pytest.raises(ValueError, match="expected uint16"):
        engine.predict(np.zeros((2, *ROW)).astype(np.dtype("int32")))
    engine.close()


@pytest.mark.parametrize("outputs", [{"logits": 3}, {"embedding": 2}])
def test_a_network_that_gives_something_else_is_refused(outputs: dict[str, int]) -> None:
    """Columns that differ from the manifest's raise RuntimeError at the load, and no thread stays behind."""
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="its manifest says"):
        CudaEngine(manifest(2, **outputs), ROW, SlowCard, network([]), {})
    assert threading.active_count() == before


def test_what_fails_on_the_card_is_told_to_the_caller() -> None:
    """An error of a batch is raised where the batch was asked for; the engine can be closed then."""
    card = SlowCard()
    engine = engine_on(card, 1)
    card.error = "CUDA error: unspecified launch failure"
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        engine.predict(counts(1, 0))
    engine.close()
    with pytest.raises(RuntimeError):
        engine.predict(counts(1, 0))
