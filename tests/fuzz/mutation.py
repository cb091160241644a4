"""Damage that knows no format: bits, cuts, splices, repeated and moved pieces, and numbers at their extremes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

EXTREMES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 255, 256, 1023, 1024, 4096, 32767, 32768, 65534, 65535, 65536)
EXTREMES_32 = (*EXTREMES, 1 << 20, 1 << 24, (1 << 28) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)
EXTREMES_64 = (*EXTREMES_32, 1 << 40, (1 << 61) - 1, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
MOST_BYTES = 1 << 16
"""A case never grows beyond this."""

Mutator = Callable[[Random, bytearray], None]
"""Changes the bytes in place."""


def extreme(rng: Random, size: int) -> int:
    """A number of `size` bytes that a careless reader trips over."""
    values = {1: EXTREMES, 2: EXTREMES, 4: EXTREMES_32}.get(size, EXTREMES_64)
    return rng.choice(values) % (1 << 8 * size)


def flip(rng: Random, data: bytearray) -> None:
    """One to four bits."""
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: Random, data: bytearray) -> None:
    """One to eight random bytes in a row."""
    at = rng.randrange(len(data))
    piece = rng.randbytes(rng.randint(1, 8))[: len(data) - at]
    data[at : at + len(piece)] = piece


def number(rng: Random, data: bytearray) -> None:
    """An extreme number of any width and byte order."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        data[at : at + size] = extreme(rng, size).to_bytes(size, rng.choice(("little", "big")))


def cut(rng: Random, data: bytearray) -> None:
    """The end goes."""
    del data[rng.randrange(len(data)) :]


def drop(rng: Random, data: bytearray) -> None:
    """A piece goes, and what follows moves up."""
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


def insert(rng: Random, data: bytearray) -> None:
    """Foreign bytes come between."""
    at = rng.randrange(len(data) + 1)
    piece = rng.randbytes(rng.randint(1, 32)) if rng.random() < 0.5 else bytes([rng.choice((0, 255))]) * 32
    data[at:at] = piece


def repeat(rng: Random, data: bytearray) -> None:
    """A piece comes again somewhere."""
    start, at = rng.randrange(len(data)), rng.randrange(len(data) + 1)
    data[at:at] = data[start : start + rng.randint(1, 256)] * rng.randint(1, 4)


def copy_over(rng: Random, data: bytearray) -> None:
    """A piece replaces another one."""
    length = rng.randint(1, min(64, len(data)))
    start, at = rng.randrange(len(data) - length + 1), rng.randrange(len(data) - length + 1)
    data[at : at + length] = data[start : start + length]


def blank(rng: Random, data: bytearray) -> None:
    """A run of zeros, as in a file that was preallocated and never filled."""
    at = rng.randrange(len(data))
    length = min(rng.choice((1, 4, 16, 256, 4096)), len(data) - at)
    data[at : at + length] = bytes(length)


BLIND: tuple[Mutator, ...] = (flip, overwrite, number, cut, drop, insert, repeat, copy_over, blank)


def splice(rng: Random, one: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of another."""
    return one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]


def mutated(rng: Random, seeds: Sequence[bytes], knowing: Sequence[Mutator]) -> bytes:
    """A seed after one to six mutations, mostly those that know its format; now and then spliced or untouched."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.04:
        data = bytearray(splice(rng, bytes(data), rng.choice(seeds)))
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4, 6))):
        pool = knowing if knowing and rng.random() < 0.7 else BLIND
        if not data:
            break
        rng.choice(pool)(rng, data)
    return bytes(data[:MOST_BYTES])
