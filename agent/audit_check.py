"""Whether an audit log is whole: every line of every file, from the first entry on. Only reads.

A running agent may be writing meanwhile; what it adds after the reading began is left for the next time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.audit_chain import START, Entry, Link, follow, read_line

PATIENCE_S = 1.0
POLL_S = 0.05


@dataclass(frozen=True)
class Fault:
    """The first line that is not as it was written."""

    file: Path
    line: int
    """From 1, in that file."""
    why: str
    is_unfinished: bool = False
    """The very end was cut off while it was written: no harm, an agent that starts finishes it."""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


@dataclass(frozen=True)
class Verdict:
    """What was found. Entries before a fault are as they were written; of those behind it nothing is said."""

    end: Link
    """The last entry that is proven."""
    fault: Fault | None = None
    last_time: str = ""
    """When that entry was made."""
    begin: Link = START
    """Before the first entry that was looked at."""


def check(
    paths: Sequence[Path],
    heed: Callable[[Entry], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
    patience_s: float = PATIENCE_S,
    *,
    partial: bool = False,
) -> Verdict:
    """Follow the chain through the files of a log, in their order, to its end or to the first fault.

    With `partial` the first entry may be any: earlier files lie elsewhere. `heed` is given every entry that is
    proven, `progress` the bytes of every line. A line that an agent may just be writing is given `patience_s` to be
    finished. Raises OSError.
    """
    begin = end = START
    last_time = ""
    for path, number, line in _lines(paths, patience_s):
        if not line.endswith(b"\n"):
            return Verdict(end, _cut(path, number, is_last=path == paths[-1]), last_time, begin)
        try:
            if partial and end == START:
                begin = end = read_line(line[:-1]).before
            entry = follow(end, line[:-1])
        except ValueError as error:
            return Verdict(end, Fault(path, number, str(error)), last_time, begin)
        end, last_time = entry.link, entry.time
        heed(entry)
        progress(len(line))
    return Verdict(end, None, last_time, begin)


def _cut(path: Path, number: int, *, is_last: bool) -> Fault:
    if not is_last:
        return Fault(path, number, "it was cut off")
    why = "it is not finished: the agent was cut off while writing it, and finishes it at its next start"
    return Fault(path, number, why, is_unfinished=True)


def _lines(paths: Sequence[Path], patience_s: float) -> Iterator[tuple[Path, int, bytes]]:
    """Every line with its file and number."""
    for path in paths:
        with path.open("rb") as file:
            number = 0
            while line := file.readline():
                number += 1
                yield path, number, _finished(file, line, patience_s)


def _finished(file: BinaryIO, line: bytes, patience_s: float) -> bytes:
    """The line, once the agent that may be writing it is done."""
    deadline = time.monotonic() + patience_s
    while not line.endswith(b"\n") and time.monotonic() < deadline:
        time.sleep(POLL_S)
        line += file.readline()
    return line
