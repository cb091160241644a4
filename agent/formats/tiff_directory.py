"""What one TIFF directory (IFD) holds: the container's byte order and offset size, and the directory's tags.

Knows nothing of what the tags mean. `None` always means "not on disk yet": places beyond the end of the file and
zeros where structure belongs may still be written, contradictions may not.
Source: TIFF 6.0, section 2; BigTIFF as designed for libtiff 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from agent.errors import FormatError
from agent.formats import Limits, Window

NEW_SUBFILE_TYPE = 254

INTEGER_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""TIFF field type → struct letter, for the types that may hold a size, an offset or a code."""


@dataclass(frozen=True)
class Container:
    """Byte order and offset size of a TIFF file, from its first 16 bytes."""

    order: Literal["<", ">"]
    """`<` or `>`, as struct and numpy write it."""
    big: bool
    """BigTIFF: 8-byte offsets and counts."""

    @property
    def first_link(self) -> int:
        """Where the pointer to the first directory stands."""
        return 8 if self.big else 4

    @property
    def inline_bytes(self) -> int:
        """Size of an offset, and of the values that an entry holds itself."""
        return 8 if self.big else 4

    def pointer(self, window: Window, at: int) -> int | None:
        """The offset written at byte `at`; None when that is not on disk yet."""
        if at + self.inline_bytes > window.size:
            return None
        return self.unsigned(window.read(at, self.inline_bytes))

    def unsigned(self, field: bytes) -> int:
        """The unsigned integer that these bytes spell."""
        return int.from_bytes(field, "little" if self.order == "<" else "big")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag as it stands in a directory: its value, or the place of its value, is in `field`."""

    type: int
    count: int
    field: bytes


@dataclass(frozen=True)
class Directory:
    """One IFD whose every entry is on disk; the values that its entries point to may not be."""

    container: Container
    offset: int
    next_link: int
    """Where the pointer to the following directory stands."""
    entries: dict[int, Entry]

    def integers(self, tag: int, default: int | None = None) -> tuple[int, ...]:
        """The values of a tag short enough to stand in its entry. Raises FormatError (malformed)."""
        entry = self.entries.get(tag)
        if entry is None:
            if default is None:
                raise FormatError("malformed", f"the directory lacks tag {tag}", self.offset)
            return (default,)
        letter = INTEGER_TYPES.get(entry.type)
        if letter is None or not 0 < entry.count * struct.calcsize(letter) <= self.container.inline_bytes:
            raise FormatError("malformed", f"tag {tag} has type {entry.type}, count {entry.count}", self.offset)
        return struct.unpack_from(f"{self.container.order}{entry.count}{letter}", entry.field)

    def integer(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag. Raises FormatError (malformed)."""
        return self.integers(tag, default)[0]

    @property
    def is_reduced(self) -> bool:
        """A thumbnail or another reduced-resolution version of an image in the same file."""
        return bool(self.integer(NEW_SUBFILE_TYPE, 0) & 1)


def read_directory(window: Window, container: Container, offset: int, limits: Limits) -> Directory | None:
    """Read the IFD at `offset`; None while it is not all there. Raises FormatError (malformed, limits)."""
    if offset < 2 * container.first_link:
        raise FormatError("malformed", "a directory inside the file header", offset)
    head, entry = ("Q", "HHQ8s") if container.big else ("H", "HHI4s")
    first = offset + struct.calcsize(head)
    if first > window.size:
        return None
    (count,) = struct.unpack(container.order + head, window.read(offset, first - offset))
    if count > limits.max_tags:
        raise FormatError("limits", f"a directory with {count} tags, the limit is {limits.max_tags}", offset)
    table = struct.Struct(container.order + entry)
    next_link = first + count * table.size
    if count == 0 or next_link + container.inline_bytes > window.size:
        return None
    entries: dict[int, Entry] = {}
    for tag, type_, values, field in table.iter_unpack(window.read(first, count * table.size)):
        if tag == type_ == values == 0:
            return None  # the rest of a directory in a preallocated file
        entries.setdefault(tag, Entry(type_, values, field))
    return Directory(container, offset, next_link, entries)
