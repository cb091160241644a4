"""Counted patches → heat map arrays, one payload a slide. Knows no topic and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agent.ledger_records import CountedPatch
from agent.results import SlidePatches
from models.contract import SlideKey, by_slide
from models.profile import Profile
from models.registry import MODALITIES


class HeatMap:
    """Remembers how many patches of each slide were told, so that a receiver can tell a hole from a slow imager."""

    def __init__(self, profile: Profile, told: Mapping[SlideKey, int] | None = None) -> None:
        self._classes = profile.classes
        self._layout = MODALITIES[profile.modality].patch_layout(profile)
        self._told: Counter[SlideKey] = Counter(told or {})

    def tell(self, rows: Iterable[CountedPatch], stamp: Callable[[], dict[str, Any]]) -> list[SlidePatches]:
        """The payloads for newly counted patches; `stamp` gives the fields that every payload has."""
        outcome = {row.key: row for row in rows}
        payloads = []
        for slide, keys in by_slide(outcome).items():
            patches = [outcome[key] for key in keys]
            reasons = tuple(sorted({row.rejected for row in patches if row.rejected is not None}))
            payloads.append(
                SlidePatches(
                    **stamp(),
                    patient=slide.patient,
                    slide=slide.slide,
                    classes=self._classes,
                    reasons=reasons,
                    size_px=self._layout.size_px,
                    stride_px=self._layout.stride_px,
                    before=self._told[slide],
                    strip=tuple(key.strip for key in keys),
                    x=tuple(key.x for key in keys),
                    y=tuple(key.y for key in keys),
                    predicted=tuple(_code(row, reasons) for row in patches),
                    confidence=tuple(_confidence(row) for row in patches),
                )
            )
            self._told[slide] += len(keys)
        return payloads


def _code(row: CountedPatch, reasons: tuple[str, ...]) -> int:
    if row.values is None:
        assert row.rejected is not None
        return -1 - reasons.index(row.rejected)
    return row.values.index(max(row.values))


def _confidence(row: CountedPatch) -> int:
    return 0 if row.values is None else round(255 * max(row.values) / sum(row.values))
