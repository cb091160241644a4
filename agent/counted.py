"""Which patches of which slides are counted, and from what pixels. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping

from models.contract import PatchKey, SlideKey
from models.posterior import Counting, differ


class Counted:
    """Patch keys with a digest of their pixels; None, from ledgers before there were digests, equals every other."""

    def __init__(self, before: Mapping[PatchKey, int | None]) -> None:
        """`before`: counted before this start."""
        self._slides: dict[SlideKey, dict[PatchKey, int | None]] = {}
        for key, digest in before.items():
            self._slides.setdefault(key.of_slide, {})[key] = digest

    def __contains__(self, slide: SlideKey) -> bool:
        return slide in self._slides

    def count(self, key: PatchKey, digest: int | None) -> Counting:
        """Whether a patch is new, the same as before, or has other pixels now."""
        known = self._slides.setdefault(key.of_slide, {})
        counting = Counting.NEW if key not in known else Counting(2 * differ(known[key], digest))
        if counting:
            known[key] = digest
        return counting

    def retract(self, slide: SlideKey, strip: int, planned: Container[PatchKey]) -> bool:
        """A strip has the planned patches and no others; whether that is news."""
        known = self._slides.get(slide, {})
        gone = [key for key in known if key.strip == strip and key not in planned]
        for key in gone:
            del known[key]
        return bool(gone)

    def missing(self, slide: SlideKey, planned: list[PatchKey]) -> list[PatchKey]:
        """Those of the planned ones that are not counted."""
        known = self._slides.get(slide, {})
        return [key for key in planned if key not in known]

    def forget(self, slide: SlideKey) -> None:
        """Nobody asks for this slide any more."""
        self._slides.pop(slide, None)

    @property
    def slides(self) -> set[SlideKey]:
        """Slides of which patches are known."""
        return set(self._slides)
