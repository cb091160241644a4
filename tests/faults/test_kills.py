"""Fifty kills: a short form of `python -m tests.faults kills --count 1000`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ground import Ground
from tests.faults.kills import Scenario

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize("seed", [501, 502, 503, 504, 505])
def test_ten_kills_lose_nothing_and_count_nothing_twice(seed: int, ground: Ground, tmp_path: Path) -> None:
    """Killed ten times at random moments of an acquisition: finals, alerts and ledger of an undisturbed run."""
    outcome = Scenario(seed, 10, ground, tmp_path / "scenario").run()
    assert outcome.verdict.found() == {}
    assert outcome.struck.total() == 10
