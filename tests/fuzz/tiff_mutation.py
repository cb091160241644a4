"""Damage that knows TIFF: tags, directories that loop, segments that overlap, streams that expand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple

import imagecodecs

from tests.fuzz.mutation import EXTREMES_32, Mutator, extreme

_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 339, 32997, 34665)
_SHAPE_TAGS = (256, 257, 277, 278, 322, 323)
_CODE_TAGS = {258: (1, 8, 16, 32), 259: (1, 5, 7, 8, 32773, 32946, 34712, 50000), 262: (0, 1, 2), 284: (0, 1, 2, 3)}
_CODE_TAGS |= {254: (0, 1, 2), 266: (1, 2), 277: (0, 1, 2, 3), 317: (1, 2, 3), 339: (1, 2, 3), 32997: (1, 2)}
_COLUMNS = (273, 279, 324, 325)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 13: 4, 16: 8, 18: 8}


class Entry(NamedTuple):
    """One tag in a directory and where it stands."""

    at: int
    tag: int
    type: int
    values: int


class Frame(NamedTuple):
    """How a TIFF is laid out: byte order, sizes, and where its pointers and entries stand."""

    order: str
    big: bool
    links: list[int]
    directories: list[int]
    entries: list[Entry]

    @property
    def word(self) -> int:
        """Bytes of an offset."""
        return 8 if self.big else 4

    def write(self, data: bytearray, at: int, value: int, size: int) -> None:
        """A number in the file's byte order, where it fits into the file."""
        if 0 <= at <= len(data) - size:
            data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little" if self.order == "<" else "big")

    def read(self, data: bytearray, at: int, size: int) -> int:
        """A number in the file's byte order; 0 beyond its end."""
        return int.from_bytes(data[at : at + size], "little" if self.order == "<" else "big")


def frame(data: bytearray) -> Frame | None:
    """The layout as far as it can still be followed."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 16:
        return None
    big = 43 in (data[2], data[3])
    found = Frame(order, big, [8 if big else 4], [], [])
    head, size = (8, 20) if big else (2, 12)
    while len(found.directories) < 5:
        at = found.read(data, found.links[-1], found.word)
        if not 0 < at < len(data) - head or at in found.directories:
            break
        found.directories.append(at)
        count = min(found.read(data, at, head), (len(data) - at - head) // size, 200)
        for index in range(count):
            place = at + head + index * size
            tag, kind = found.read(data, place, 2), found.read(data, place + 2, 2)
            found.entries.append(Entry(place, tag, kind, found.read(data, place + 4, found.word)))
        found.links.append(at + head + count * size)
    return found


def _places(rng: Random, layout: Frame, data: bytearray) -> int:
    """An offset that points where it should not."""
    ends = (0, 1, 4, 8, 16, len(data) - 1, len(data), len(data) + 1, *EXTREMES_32[-6:])
    return rng.choice((*ends, *layout.directories, *layout.links, rng.randrange(len(data))))


def entry(rng: Random, data: bytearray) -> None:
    """Some field of some tag."""
    layout = frame(data)
    if layout is None or not layout.entries:
        return
    chosen = rng.choice(layout.entries)
    field = rng.randrange(4)
    if field == 0:
        layout.write(data, chosen.at, rng.choice(_TAGS), 2)
    elif field == 1:
        layout.write(data, chosen.at + 2, rng.choice((0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16, 18, 255, 65535)), 2)
    elif field == 2:
        layout.write(data, chosen.at + 4, extreme(rng, layout.word), layout.word)
    else:
        value = rng.choice((extreme(rng, layout.word), _places(rng, layout, data)))
        layout.write(data, chosen.at + 4 + layout.word, value, layout.word)


def _set(layout: Frame, data: bytearray, chosen: Entry, value: int) -> None:
    layout.write(data, chosen.at + 4 + layout.word, value, _SIZES.get(chosen.type, 4))


def shape(rng: Random, data: bytearray) -> None:
    """Height, width, rows of a strip, sides of a tile: absurd ones, in every directory alike or in one."""
    layout = frame(data)
    for chosen in layout.entries if layout else ():
        if chosen.tag in _SHAPE_TAGS and rng.random() < 0.5:
            assert layout is not None
            _set(layout, data, chosen, rng.choice((0, 1, 2, 15, 16, 17, 18, 19, 20, 256, 1000, 1024, 1025, 65535)))


def code(rng: Random, data: bytearray) -> None:
    """Another compression, predictor, sample format and the like."""
    layout = frame(data)
    if layout is None:
        return
    codes = [chosen for chosen in layout.entries if chosen.tag in _CODE_TAGS]
    if codes:
        chosen = rng.choice(codes)
        _set(layout, data, chosen, rng.choice(_CODE_TAGS[chosen.tag]))


def link(rng: Random, data: bytearray) -> None:
    """A pointer to a directory: loops, the header, the middle of nowhere."""
    layout = frame(data)
    if layout is not None:
        layout.write(data, rng.choice(layout.links), _places(rng, layout, data), layout.word)


def _column_places(layout: Frame, data: bytearray) -> Iterator[tuple[Entry, int, int]]:
    """(entry, place, size) of single offsets and byte counts."""
    for chosen in layout.entries:
        if chosen.tag in _COLUMNS:
            size = _SIZES.get(chosen.type, 4)
            field = chosen.at + 4 + layout.word
            start = field if chosen.values * size <= layout.word else layout.read(data, field, layout.word)
            for index in range(min(chosen.values, 64)):
                yield chosen, start + index * size, size


def segment(rng: Random, data: bytearray) -> None:
    """Segments that overlap one another, the directories or the file's end."""
    layout = frame(data)
    places = list(_column_places(layout, data)) if layout else []
    if layout is None or not places:
        return
    for _ in range(rng.randint(1, 3)):
        _, at, size = rng.choice(places)
        other = rng.choice(places)[1]
        value = rng.choice((layout.read(data, other, size), _places(rng, layout, data), extreme(rng, size)))
        layout.write(data, at, value, size)


@cache
def _streams() -> tuple[bytes, ...]:
    zeros, ones = bytes(1 << 17), b"\xff" * (1 << 17)
    streams = [zlib.compress(zeros, 9), zlib.compress(ones, 9)]
    streams += [bytes(imagecodecs.lzw_encode(zeros)), bytes(imagecodecs.zstd_encode(zeros, 19))]
    return (*streams, zlib.compress(bytes(700)), b"\x80\x0b", b"", b"\x28\xb5\x2f\xfd" + b"\xff" * 14)


def bomb(rng: Random, data: bytearray) -> None:
    """A segment that is another stream, mostly one that expands a thousandfold; perhaps all segments are."""
    layout = frame(data)
    places = list(_column_places(layout, data)) if layout else []
    if layout is None:
        return
    stream, at, every = rng.choice(_streams()), len(data), rng.random() < 0.3
    data += stream
    chosen = rng.randrange(1 + len(places))
    for index, (column, place, size) in enumerate(places):
        if every or index == chosen or rng.random() < 0.1:
            layout.write(data, place, at if column.tag in (273, 324) else len(stream), size)


def directory(rng: Random, data: bytearray) -> None:
    """A copy of a directory at the end, to which a pointer points: one page more, or one in another's place."""
    layout = frame(data)
    if layout is None or not layout.directories:
        return
    chosen = rng.randrange(len(layout.directories))
    start, stop = layout.directories[chosen], layout.links[chosen + 1] + layout.word
    at = len(data)
    data += data[start:stop]
    if rng.random() < 0.3:
        data[at : at + 2] = struct.pack(f"{layout.order}H", rng.choice((0, 1, 127, 128, 129, 4096, 65535)))
    layout.write(data, rng.choice(layout.links), at, layout.word)


KNOWING: tuple[Mutator, ...] = (entry, entry, shape, code, link, segment, segment, bomb, directory)
