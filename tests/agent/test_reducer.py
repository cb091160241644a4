"""The reducer after a restart: where slides stand, from what the ledger remembers."""

from __future__ import annotations

import json

from agent.ledger import CountedPatch, FinalRow
from agent.reducer import Reducer
from models.contract import PatchKey
from tests.fakes import FakeEngine, fake_profile


def test_a_patch_that_came_after_a_final_is_not_missing_any_more() -> None:
    """A final said that three patches never came; two of them were counted before the restart: no posterior may
    count them and miss them as well."""
    patches = [CountedPatch(PatchKey("p", "s", 0, 0, 300 * n), (1 << 40, 0, 0, 0), None) for n in range(6)]
    said = {"sums": [4 << 40, 0, 0, 0], "used": 4, "rejected": {}, "judged": 0, "marks": {}}
    final = FinalRow(
        "slide",
        "p",
        "s",
        1,
        "event",
        "fingerprint",
        state="stalled",
        done=1,
        expected=2,
        unformed=json.dumps({"truncated": 3}),
        tally=json.dumps(said),
    )
    reducer = Reducer(FakeEngine(), fake_profile(), patches)
    reducer.resume([final])
    (record,) = reducer.slides.values()
    assert reducer.combine([record]).counts.seen <= 7
