"""Counted patches → heat map arrays, one payload a slide, and how long patches wait for one. Knows no topic."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agent.ledger_records import RETRACTED, CountedPatch
from agent.results import SlidePatches
from models.contract import SlideKey, by_slide
from models.profile import Profile
from models.registry import MODALITIES

LEAST_PATCHES = 30
"""What a payload says beside its arrays weighs as much as 25 patches. With this many in each, 60 patches (one strip
of 6000 rows) take less than 2 kB."""
QUIET_S = 5.0
"""Patches of a slide that no other patch has followed for so long wait no longer."""


class Gathering:
    """Patches that wait until enough of their slide are there to be told together."""

    def __init__(self) -> None:
        self._rows: dict[SlideKey, list[CountedPatch]] = {}
        self._newest_at: dict[SlideKey, float] = {}
        self._closed: set[SlideKey] = set()

    def add(self, rows: Iterable[CountedPatch], now: float) -> None:
        """Take in newly counted patches at monotonic second `now`."""
        for row in rows:
            self._rows.setdefault(row.key.of_slide, []).append(row)
            self._newest_at[row.key.of_slide] = now

    def close(self, slide: SlideKey) -> None:
        """Nothing follows for now: what waits of this slide is due, and what is added before the next `take`."""
        self._closed.add(slide)

    def take(self, now: float, *, everything: bool = False) -> list[CountedPatch]:
        """What is to be told now."""
        due = [slide for slide in self._rows if everything or self._is_due(slide, now)]
        rows = [row for slide in due for row in self._rows[slide]]
        for slide in due:
            del self._rows[slide], self._newest_at[slide]
        self._closed.clear()
        return rows

    def _is_due(self, slide: SlideKey, now: float) -> bool:
        waited = now - self._newest_at[slide] >= QUIET_S
        return waited or slide in self._closed or len(self._rows[slide]) >= LEAST_PATCHES


class HeatMap:
    """Remembers how many patches of each slide were told, so that a receiver can tell a hole from a slow imager."""

    def __init__(self, profile: Profile, told: Mapping[SlideKey, int] | None = None) -> None:
        self._classes = profile.classes
        self._layout = MODALITIES[profile.modality].patch_layout(profile)
        self._told: Counter[SlideKey] = Counter(told or {})

    def tell(
        self,
        rows: Iterable[CountedPatch],
        stamp: Callable[[], dict[str, Any]],
        seen: Callable[[SlideKey], int] | None = None,
    ) -> list[SlidePatches]:
        """The payloads for newly counted or corrected patches; `stamp` gives the fields that every payload has.

        `seen`: all that are counted of a slide, so that a correction does not look like another patch.
        """
        outcome = {row.key: row for row in rows}
        payloads = []
        for slide, keys in by_slide(outcome).items():
            patches = [outcome[key] for key in keys]
            here = sum(row.rejected != RETRACTED for row in patches)
            after = self._told[slide] + here
            after = after if seen is None else min(after, seen(slide))
            reasons = tuple(sorted({row.rejected for row in patches if row.rejected is not None}))
            payloads.append(
                SlidePatches(
                    # Short: at QoS 0 nothing is sent twice, and the id would be a tenth of the payload's head.
                    **{**stamp(), "event_id": uuid.uuid4().hex[:16]},
                    patient=slide.patient,
                    slide=slide.slide,
                    classes=self._classes,
                    reasons=reasons,
                    size_px=self._layout.size_px,
                    stride_px=self._layout.stride_px,
                    before=max(0, after - here),
                    strip=tuple(key.strip for key in keys),
                    x=tuple(key.x for key in keys),
                    y=tuple(key.y for key in keys),
                    predicted=tuple(_code(row, reasons) for row in patches),
                    confidence=tuple(_confidence(row) for row in patches),
                )
            )
            self._told[slide] = after
        return payloads


def _code(row: CountedPatch, reasons: tuple[str, ...]) -> int:
    if row.values is None:
        assert row.rejected is not None
        return -1 - reasons.index(row.rejected)
    return row.values.index(max(row.values))


def _confidence(row: CountedPatch) -> int:
    return 0 if row.values is None else round(255 * max(row.values) / sum(row.values))
