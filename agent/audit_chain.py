"""The audit log as lines: each holds the hash of the one before it and ends with its own, so that none can be
changed, removed, added or moved without a trace. Pure; what entries speak of is agent.audit's matter.

A line is one JSON object. Its last field, `hash`, is the SHA-256 of the line's bytes before `,"hash":`, so that any
program can check it without knowing how we write JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

GENESIS = "0" * 64
"""What the first entry names as the hash before it."""
_TAIL = b',"hash":"'
_HASH_BYTES = 64
_TAIL_BYTES = len(_TAIL) + _HASH_BYTES + len(b'"}')


class Link(NamedTuple):
    """An entry's number and hash: all that the next entry must know of it."""

    seq: int
    hash: str


START = Link(0, GENESIS)
"""Before the first entry."""


class Entry(NamedTuple):
    """One line as it was read."""

    seq: int
    """From 1, without gaps, over all files of the log."""
    time: str
    """UTC, ISO 8601, by the clock of the machine."""
    previous: str
    """Hash of the entry before it."""
    kind: str
    facts: dict[str, Any]
    """The other fields."""
    hash: str

    @property
    def link(self) -> Link:
        """What the next entry hangs on."""
        return Link(self.seq, self.hash)

    @property
    def before(self) -> Link:
        """What it hangs on itself."""
        return Link(self.seq - 1, self.previous)


def seal(end: Link, time_s: float, kind: str, facts: Mapping[str, Any]) -> tuple[str, Link]:
    """The line (without its newline) that follows `end`, and the new end; `time_s` counts from the epoch."""
    time = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"seq": end.seq + 1, "time": time, "previous": end.hash, "kind": kind, **facts}
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False)[:-1]
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body},"hash":"{own}"}}', Link(end.seq + 1, own)


def read_line(line: bytes) -> Entry:
    """Read a line without its newline; raises ValueError when it is not as it was written."""
    body, tail = line[:-_TAIL_BYTES], line[-_TAIL_BYTES:]
    if not (tail.startswith(_TAIL) and tail.endswith(b'"}')):
        raise ValueError("it is no entry of an audit log")
    if hashlib.sha256(body).hexdigest().encode() != tail[len(_TAIL) : -2]:
        raise ValueError("it was changed after it was written")
    try:
        fields = json.loads(line)
        known = (fields.pop("seq"), fields.pop("time"), fields.pop("previous"), fields.pop("kind"))
        own = fields.pop("hash")
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("it is no entry of an audit log") from error
    if [type(value) for value in (*known, own)] != [int, str, str, str, str]:
        raise ValueError("it is no entry of an audit log")
    return Entry(*known, fields, own)


def follow(end: Link, line: bytes) -> Entry:
    """The entry that comes after `end`; raises ValueError, saying what is wrong, when this line is another one."""
    entry = read_line(line)
    wanted = end.seq + 1
    if entry.seq > wanted:
        lost = f"entry {wanted} is" if entry.seq == wanted + 1 else f"entries {wanted} to {entry.seq - 1} are"
        raise ValueError(f"it is entry {entry.seq}: {lost} missing before it")
    if entry.seq < wanted:
        raise ValueError(f"it is entry {entry.seq} where {wanted} was expected: it comes again or was moved")
    if entry.previous != end.hash:
        before = f"entry {end.seq}" if end.seq else "the beginning"
        raise ValueError(f"it does not continue {before} as that stands here: one of the two was replaced")
    return entry
