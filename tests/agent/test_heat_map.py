"""Promises of heat map arrays: enough patches in each, none forgotten, and traffic that stays small."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agent.heat_map import LEAST_PATCHES, QUIET_S, Gathering, HeatMap
from agent.ledger import CountedPatch
from agent.ledger_records import RETRACTED
from models.contract import PatchKey, SlideKey
from tests.fakes import fake_profile

SLIDE = SlideKey("p" * 16, "s" * 16)
ROWS_OF_6000 = 20


def strip(number: int, slide: SlideKey = SLIDE) -> list[CountedPatch]:
    """The patches of a strip of 6000 rows in the imager's order; every tenth was rejected."""
    keys = [PatchKey(*slide, number, x, y) for y in [*range(0, 300 * ROWS_OF_6000, 300)] for x in (50, 350, 650)]
    return [
        CountedPatch(key, None, "textureless") if index % 10 == 9 else CountedPatch(key, (2, 97, 1, 0), None)
        for index, key in enumerate(keys)
    ]


def stamp() -> dict[str, Any]:
    """What every payload says of itself, as long as it gets."""
    time = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return {"event_id": "e" * 32, "session_id": "s" * 16, "time": time}


def test_a_strip_of_6000_rows_takes_less_than_2_kb() -> None:
    """Row after row, as an imager writes them: arrays of 60 patches are at most 2048 bytes, late strips included."""
    gathering, heat_map = Gathering(), HeatMap(fake_profile())
    told, size, now = 0, 0, 0.0
    for number in (51, 56, 61):
        patches = strip(number)
        for start in range(0, len(patches), 3):
            now += 0.8
            gathering.add(patches[start : start + 3], now)
            for payload in heat_map.tell(gathering.take(now), stamp):
                told += len(payload.x)
                size += len(payload.model_dump_json().encode())
    assert told == 180
    assert size * 60 / told <= 2048


@pytest.mark.parametrize(("count", "waits"), [(LEAST_PATCHES - 1, True), (LEAST_PATCHES, False), (60, False)])
def test_few_patches_wait_for_more(count: int, waits: bool) -> None:
    """Fewer than enough are held back, enough go at once, and nothing is told twice."""
    gathering = Gathering()
    gathering.add(strip(0)[:count], 1.0)
    assert len(gathering.take(1.0)) == (0 if waits else count)
    assert len(gathering.take(1.0, everything=True)) == (count if waits else 0)


def test_silence_and_an_end_let_them_go() -> None:
    """What nothing follows is told after a while, at once when its slide has ended; other slides still wait."""
    gathering, other = Gathering(), SlideKey("p" * 16, "t" * 16)
    gathering.add(strip(0)[:3], 1.0)
    gathering.add(strip(0)[3:6], 1.0 + QUIET_S / 2)
    assert gathering.take(1.0 + QUIET_S) == []
    assert gathering.take(1.0 + 1.5 * QUIET_S) == strip(0)[:6]
    gathering.add(strip(0)[:2], 10.0)
    gathering.add(strip(0, other)[:2], 10.0)
    gathering.close(SLIDE)
    assert gathering.take(10.0) == strip(0)[:2]
    assert gathering.take(10.0, everything=True) == strip(0, other)[:2]


def test_patches_of_the_last_moment_go_with_the_end_of_their_slide() -> None:
    """Patches that were counted before a slide ended, but are handed over after it, do not wait for silence."""
    gathering = Gathering()
    gathering.close(SLIDE)
    gathering.add(strip(0)[:2], 10.0)
    assert gathering.take(10.0) == strip(0)[:2]
    gathering.add(strip(0)[2:4], 11.0)
    assert gathering.take(11.0) == []


def test_closing_a_slide_without_patches_is_nothing() -> None:
    """A slide whose patches have all been told may end."""
    gathering = Gathering()
    gathering.close(SLIDE)
    assert gathering.take(0.0, everything=True) == []


def test_a_corrected_patch_is_no_further_patch() -> None:
    """Told again with its new answer: `before` and the patches in the message never add up to more than there are."""
    heat_map, patches = HeatMap(fake_profile()), strip(0)
    seen = {SLIDE: 0}
    told: dict[tuple[int, int, int], int] = {}
    for rows, counted in ((patches[:30], 30), (patches[10:20], 30), (patches[15:60], 60), (patches[:1], 60)):
        seen[SLIDE] = counted
        (payload,) = heat_map.tell(rows, stamp, seen.__getitem__)
        told |= dict.fromkeys(zip(payload.strip, payload.x, payload.y, strict=True), 0)
        assert payload.before + len(rows) == len(told) == counted


def test_what_is_retracted_is_no_patch() -> None:
    """It is told, and counts neither as another patch nor below none; the next message goes on from what is left."""
    heat_map, patches = HeatMap(fake_profile()), strip(51)
    heat_map.tell(patches, stamp)
    gone = [CountedPatch(row.key, None, RETRACTED) for row in patches[10:]]
    (told,) = heat_map.tell(gone, stamp, seen=lambda slide: 10)
    assert (told.before, told.reasons, set(told.predicted)) == (10, (RETRACTED,), {-1})
    (told,) = heat_map.tell(strip(56)[:5], stamp, seen=lambda slide: 15)
    assert told.before == 10
    (told,) = heat_map.tell(gone[:1] + strip(61)[:1], stamp, seen=lambda slide: 0)
    assert told.before == 0
