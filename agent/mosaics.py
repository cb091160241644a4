"""Slides that arrive both as a mosaic and in parts: the parts count, so that no tissue counts twice. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from models.contract import Part, SlideKey


class Mosaics:
    """Which slides are known in what form."""

    def __init__(self, in_parts: Iterable[SlideKey]) -> None:
        """`in_parts`: slides of which patches of several parts were counted before this start."""
        self._in_parts = set(in_parts)
        self._whole: dict[SlideKey, Part] = {}

    def meet(self, part: Part) -> Part | None:
        """A file of this part is there; returns the mosaic that does not count because of it, if that is news."""
        if part.is_whole_slide:
            self._whole[part.slide] = part
        elif part.slide not in self._in_parts:
            self._in_parts.add(part.slide)
            return self._whole.get(part.slide)
        return None

    def is_repetition(self, part: Part) -> bool:
        """Whether this is a mosaic of a slide that is there in parts, too."""
        return part.is_whole_slide and part.slide in self._in_parts
