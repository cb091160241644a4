"""Counted patches in the ledger: one row each, keyed by slide and place, replaced only when its pixels changed.

Part of the ledger; knows no message.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.ledger_file import explained
from agent.ledger_records import RETRACTED, CountedPatch, PartRead
from models.contract import PatchKey, SlideKey
from models.domain import MARKS, Marks

_RESTORE = """
    SELECT patient, slide, strip, x, y, outcome, pixels FROM slides JOIN patches USING (slide_id)
    WHERE profile_sha256 = ? AND (? OR (patient = ? AND slide = ?)) ORDER BY patient, slide, strip, x, y"""
_COUNT = """
    SELECT count(*) FROM slides JOIN patches USING (slide_id)
    WHERE profile_sha256 = ? AND patient = ? AND slide = ?"""
_PUT = """
    INSERT INTO patches VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET outcome = excluded.outcome,
    pixels = excluded.pixels WHERE pixels <> excluded.pixels"""
_PRUNED = """
    UPDATE slides SET pruned = 1
    WHERE patient = ? AND EXISTS (SELECT 1 FROM patches WHERE patches.slide_id = slides.slide_id)"""
_PLACES = """
    SELECT slide_id, patches.strip, x, y FROM slides JOIN patches USING (slide_id)
    WHERE profile_sha256 = ? AND patient = ? AND slide = ? AND patches.strip = ?"""
_RETRACT = "DELETE FROM patches WHERE slide_id = ? AND strip = ? AND x = ? AND y = ?"


class LedgerPatches:
    """See the module's docstring. Writing runs inside the transactions of agent.ledger."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path = path
        self._db = database

    def restore(self, profile_sha256: str, slide: SlideKey | None = None) -> Iterator[CountedPatch]:
        """Every patch counted under this profile, or those of one slide, ordered by key."""
        values = (profile_sha256, slide is None, *(slide or ("", "")))
        with explained(self._path):
            for *key, outcome, pixels in self._db.execute(_RESTORE, values):
                yield _decode(PatchKey(*key), outcome, pixels)

    def count(self, profile_sha256: str, slide: SlideKey) -> int:
        """How many patches of a slide are counted."""
        with explained(self._path):
            return int(self._db.execute(_COUNT, (profile_sha256, *slide)).fetchone()[0])

    def put(self, profile_sha256: str, patches: tuple[CountedPatch, ...]) -> None:
        """Write patches; one that is there already stays as it is, unless its pixels are others now.

        Those of a slide that was pruned are left out: half of a slide would be taken for all of it after a restart.
        """
        of = {patch.key.of_slide for patch in patches}
        slides = {slide: self._slide_id(profile_sha256, slide) for slide in of}
        self._db.executemany(
            _PUT,
            [
                (slides[patch.key.of_slide], patch.key.strip, patch.key.x, patch.key.y, _encode(patch), patch.pixels)
                for patch in patches
                if slides[patch.key.of_slide] is not None and patch.rejected != RETRACTED
            ],
        )

    def settle(self, profile_sha256: str, read: PartRead) -> None:
        """Remove what was counted of a part and does not belong to it any more."""
        keys = {key[2:] for key in read.keys}
        places = self._db.execute(_PLACES, (profile_sha256, *read.part.slide, read.part.strip)).fetchall()
        self._db.executemany(_RETRACT, [place for place in places if place[1:] not in keys])

    def drop(self, patients: Iterable[str]) -> int:
        """Remove the patches of these patients under every profile, for good, and return how many went."""
        dropped = 0
        for patient in patients:
            self._db.execute(_PRUNED, (patient,))
            query = "DELETE FROM patches WHERE slide_id IN (SELECT slide_id FROM slides WHERE patient = ?)"
            dropped += self._db.execute(query, (patient,)).rowcount
        return dropped

    def _slide_id(self, profile_sha256: str, slide: SlideKey) -> int | None:
        """None for a slide that was pruned."""
        of = (profile_sha256, *slide)
        self._db.execute("INSERT OR IGNORE INTO slides (profile_sha256, patient, slide) VALUES (?, ?, ?)", of)
        query = "SELECT slide_id, pruned FROM slides WHERE profile_sha256 = ? AND patient = ? AND slide = ?"
        slide_id, pruned = self._db.execute(query, of).fetchone()
        return None if pruned else int(slide_id)


def _encode(patch: CountedPatch) -> bytes:
    """`r` and the reason, `v` and the values, or `j`, a bit for each of MARKS, and the values."""
    if (patch.values is None) == (patch.rejected is None):
        raise ValueError("a counted patch has either values or a reason why it was rejected")
    if patch.values is None:
        return b"r" + str(patch.rejected).encode()
    values = struct.pack(f"<{len(patch.values)}q", *patch.values)
    if patch.marks is None:
        return b"v" + values
    return b"j" + bytes([sum(1 << MARKS.index(mark) for mark in patch.marks)]) + values


def _decode(key: PatchKey, outcome: bytes, pixels: int | None) -> CountedPatch:
    kind, rest = outcome[:1], outcome[1:]
    if kind == b"r":
        return CountedPatch(key, None, rest.decode(), None, pixels)
    marks: Marks | None = None
    if kind == b"j":
        marks, rest = tuple(mark for place, mark in enumerate(MARKS) if rest[0] >> place & 1), rest[1:]
    return CountedPatch(key, struct.unpack(f"<{len(rest) // 8}q", rest), None, marks, pixels)
