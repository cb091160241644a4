"""SQLite's write-ahead log as bytes: is it whole up to where it ends, and what of it can still be believed?

SQLite takes the first frame whose checksum is wrong for the end of the log, silently. That is right for what a power
failure cut off, and wrong for a damaged disk: everything behind that frame was promised to be there. Knows no table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682  # +1 when the checksums are over big-endian words
_VERSION = 3007000
_PAGE_BYTES = 4096

Checksum = tuple[int, int]


class _Log(NamedTuple):
    header: bytes
    """Valid, or put together from what the first frame says."""
    is_valid: bool
    word: str
    """Byte order of the checksums' words, as struct writes it."""
    page_bytes: int


class _Frame(NamedTuple):
    content: bytes
    """Header and page."""
    fits: bool
    """Whether its checksum follows from that of the frame before it, as both are stored."""
    commits: bool
    """Whether it ends a transaction."""


def fault_of(log: Path) -> str | None:
    """What is damaged in the log beyond what a power failure may leave; None when it is whole, or not there.

    Only the last transaction can have been cut off, since each one is synced before the next begins: a frame that
    does not fit, with a whole transaction and the beginning of another behind it, was damaged later.
    """
    parsed = _open(log)
    if parsed is None:
        return None
    if not parsed.is_valid:
        return "the head of its log is not one"
    broken_at, after_commit = None, False
    for number, frame in enumerate(_frames(log, parsed)):
        if broken_at is not None and after_commit and frame.fits:
            return f"frame {broken_at} of its log was changed"
        if not frame.fits and broken_at is None:
            broken_at = number
        after_commit = frame.fits and frame.commits
    return None


def mend(log: Path) -> None:
    """Rewrite a copy of a log, so that SQLite reads every frame of it that fits; for salvage only."""
    parsed = _open(log)
    if parsed is None:
        log.unlink(missing_ok=True)
        return
    kept = [frame.content for frame in _frames(log, parsed) if frame.fits]
    head = parsed.header[:24]
    checksum = _checksum(head, parsed.word)
    with log.open("wb") as file:
        file.write(head + struct.pack(">2I", *checksum))
        for content in kept:
            page = content[FRAME_HEADER_BYTES:]
            checksum = _checksum(page, parsed.word, _checksum(content[:8], parsed.word, checksum))
            file.write(content[:16] + struct.pack(">2I", *checksum) + page)


def _open(log: Path) -> _Log | None:
    """None for a log without a frame."""
    if not log.exists() or log.stat().st_size < HEADER_BYTES + FRAME_HEADER_BYTES:
        return None
    with log.open("rb") as file:
        header, first = file.read(HEADER_BYTES), file.read(FRAME_HEADER_BYTES)
    if not any(header + first):
        return None
    magic, version, page_bytes = struct.unpack(">3I", header[:12])
    word = ">" if magic & 1 else "<"
    if magic & ~1 == _MAGIC and version == _VERSION and _checksum(header[:24], word) == _stored(header[24:]):
        return _Log(header, True, word, page_bytes)
    # Of x86 and ARM, with pages as we make them, and with the salt that the first frame bears.
    mended = struct.pack(">4I", _MAGIC, _VERSION, _PAGE_BYTES, 0) + first[8:16] + bytes(8)
    return _Log(mended, False, "<", _PAGE_BYTES)


def _frames(log: Path, parsed: _Log) -> Iterator[_Frame]:
    before = _stored(parsed.header[24:])
    with log.open("rb") as file:
        file.seek(HEADER_BYTES)
        first = True
        while len(content := file.read(FRAME_HEADER_BYTES + parsed.page_bytes)) > FRAME_HEADER_BYTES:
            whole = len(content) == FRAME_HEADER_BYTES + parsed.page_bytes
            ours = whole and content[8:16] == parsed.header[16:24]
            page = content[FRAME_HEADER_BYTES:]
            stored = _stored(content[16:24])
            follows = ours and _checksum(page, parsed.word, _checksum(content[:8], parsed.word, before)) == stored
            # Behind a header that had to be put together, the first frame has nothing to follow from.
            yield _Frame(content, ours and (follows or (first and not parsed.is_valid)), any(content[4:8]))
            before, first = stored, False


def _stored(field: bytes) -> Checksum:
    one, two = struct.unpack(">2I", field)
    return one, two


def _checksum(data: bytes, word: str, start: Checksum = (0, 0)) -> Checksum:
    """SQLite's "Checksum Algorithm" (its file format, section 4.2)."""
    one, two = start
    words = iter(struct.unpack(f"{word}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two
