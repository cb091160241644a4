"""Promises of the batcher: every input in exactly one batch, in order, full or after the deadline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.batching import Batch, Batcher, Rejected
from models.contract import ModelInput, PatchKey

PIXELS = np.zeros((2, 4, 4), np.uint16)


def patch(number: int, rejected: str | None = None) -> ModelInput:
    """An input (or a rejected one) with a key of its own."""
    return ModelInput(PatchKey("P", "S", 0, number, 0), PIXELS, rejected)


def numbers(batch: Batch) -> list[int]:
    """Numbers of the inputs of a batch."""
    return [timed.item.key.x for timed in batch.inputs]


@pytest.mark.parametrize("size", [1, 3])
def test_a_full_batch_comes_at_once(size: int) -> None:
    """The input that fills a batch returns it; the ones before return nothing."""
    batcher = Batcher(size, 1.0)
    for number in range(size - 1):
        assert batcher.add(patch(number), 0.0) is None
    batch = batcher.add(patch(size - 1), 0.0)
    assert batch is not None
    assert numbers(batch) == list(range(size))
    assert batcher.wait_s(0.0) is None
    assert batcher.flush() is None


def test_the_deadline_runs_from_the_oldest_input() -> None:
    """The wait is what is left of the oldest one's deadline, never below zero; an empty batcher has none."""
    batcher = Batcher(4, 0.5)
    assert batcher.wait_s(3.0) is None
    batcher.add(patch(0), 10.0)
    batcher.add(patch(1), 10.25)
    assert batcher.wait_s(10.25) == 0.25
    assert batcher.wait_s(10.5) == 0.0
    assert batcher.wait_s(99.0) == 0.0
    batcher.flush()
    batcher.add(patch(2), 20.0)
    assert batcher.wait_s(20.0) == 0.5


def test_rejected_patches_wait_too_but_fill_nothing() -> None:
    """Rejections start the deadline and leave with the next batch, but take no place in it."""
    batcher = Batcher(2, 0.5)
    assert batcher.add(patch(0, "empty"), 1.0) is None
    assert batcher.wait_s(1.25) == 0.25
    assert batcher.add(patch(1), 1.5) is None
    assert batcher.add(patch(2, "blood"), 1.5) is None
    batch = batcher.add(patch(3), 1.5)
    assert batch is not None
    assert numbers(batch) == [1, 3]
    assert batch.rejected == (Rejected(patch(0).key, "empty"), Rejected(patch(2).key, "blood"))


def test_rejections_alone_make_a_batch_without_inputs() -> None:
    """When only rejections wait, a flush still hands them over."""
    batcher = Batcher(2, 0.5)
    batcher.add(patch(0, "empty"), 0.0)
    assert batcher.flush() == Batch((), (Rejected(patch(0).key, "empty"),))


def test_each_input_keeps_its_own_time() -> None:
    """An input remembers when its last bytes were seen."""
    batcher = Batcher(2, 9.0)
    batcher.add(patch(0), 1.0)
    batch = batcher.add(patch(1), 2.5)
    assert batch is not None
    assert [timed.seen_s for timed in batch.inputs] == [1.0, 2.5]


@given(
    size=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from(["use", "reject", "flush"]), st.floats(0, 3)), max_size=40),
)
def test_in_equals_out_against_an_obvious_loop(size: int, steps: list[tuple[str, float]]) -> None:
    """Any sequence gives what a plain list that is cut whenever it is full or flushed gives."""
    batcher = Batcher(size, 1.0)
    found: list[Batch | None] = []
    expected: list[tuple[list[int], list[int]]] = []
    inputs: list[int] = []
    rejected: list[int] = []
    now = 0.0
    for number, (step, later) in enumerate([*steps, ("flush", 0.0)]):
        now += later
        if step == "flush":
            found.append(batcher.flush())
        else:
            found.append(batcher.add(patch(number, None if step == "use" else "empty"), now))
            (inputs if step == "use" else rejected).append(number)
        if len(inputs) == size or (step == "flush" and (inputs or rejected)):
            expected.append((inputs, rejected))
            inputs, rejected = [], []
    batches = [batch for batch in found if batch is not None]
    assert [(numbers(batch), [key.x for key, *_ in batch.rejected]) for batch in batches] == expected


def test_rejections_alone_need_not_wait() -> None:
    """Rejections without an input to run say so; together with one they wait for its deadline."""
    batcher = Batcher(size=4, deadline_s=1.0)
    seen = [batcher.only_rejected]
    for item in (patch(0, "empty"), patch(1)):
        batcher.add(item, 0.0)
        seen.append(batcher.only_rejected)
    assert seen == [False, True, False]


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, "blood"), ("blood", None), ("blood", "empty")])
def test_only_the_newest_pixels_of_a_patch_wait(before: str | None, after: str | None) -> None:
    """A patch whose pixels changed while it waited leaves once, as it is now, whether either was rejected or not."""
    batcher = Batcher(8, 1.0)
    for digest, rejected in ((1, before), (2, after)):
        batcher.add(replace(patch(0, rejected), digest=digest), 0.0)
    batcher.add(replace(patch(1), digest=3), 0.0)
    batch = batcher.flush()
    assert batch is not None
    assert [timed.item.digest for timed in batch.inputs] == ([3] if after else [2, 3])
    assert list(batch.rejected) == ([Rejected(patch(0).key, after, 2)] if after else [])
