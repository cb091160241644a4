"""Promises of the audit log's lines: whatever is done to a line, somebody who reads the log finds the place."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.audit_chain import GENESIS, START, Link, follow, read_line, seal
from agent.audit_check import check
from tests.brokers import need

FACTS = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name not in ("seq", "time", "previous", "kind", "hash")),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
)
LENGTH = 6


def log_of(facts: list[dict[str, Any]], end: Link = START) -> list[bytes]:
    """The lines of a log, newlines included."""
    lines = []
    for number, fact in enumerate(facts):
        line, end = seal(end, 1e9 + number, "test", fact)
        lines.append(line.encode() + b"\n")
    return lines


LINES = log_of([{"number": number} for number in range(LENGTH)])
HEAD = read_line(LINES[-1][:-1]).hash


def fault_in(lines: list[bytes], folder: Path) -> int | None:
    """The line in which reading finds the first fault; None when the log is whole."""
    path = folder / "audit-000000000001.jsonl"
    path.write_bytes(b"".join(lines))
    fault = check([path], patience_s=0).fault
    return None if fault is None else fault.line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples."""
    return tmp_path_factory.mktemp("log")


@settings(deadline=None)
@given(facts=st.lists(FACTS, min_size=1, max_size=5))
def test_what_is_sealed_is_read_again(facts: list[dict[str, Any]]) -> None:
    """Any facts, in any alphabet: one line each, numbered from 1, each with the hash of the one before."""
    end = START
    for number, (line, fact) in enumerate(zip(log_of(facts), facts, strict=True), 1):
        assert line.count(b"\n") == 1 and line.isascii()
        entry = follow(end, line[:-1])
        assert (entry.seq, entry.kind, entry.facts, entry.previous) == (number, "test", fact, end.hash)
        end = entry.link


def test_the_first_entry_hangs_on_zeros() -> None:
    """Entry 1 names 64 zeros as the hash before it, and its time is UTC."""
    entry = read_line(LINES[0][:-1])
    assert (entry.seq, entry.previous, entry.time) == (1, GENESIS, "2001-09-09T01:46:40.000Z")


def test_other_programs_can_check_a_line(tmp_path: Path) -> None:
    """The hash is that of the bytes before `,"hash":`, as the shell computes it in docs/audit.md."""
    path = tmp_path / "log"
    path.write_bytes(LINES[2])
    script = f"""head -n 1 {path} | tr -d '\\n' | sed 's/,"hash":"[0-9a-f]*"}}$//' | sha256sum"""
    done = subprocess.run([need("sh", "dash"), "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == json.loads(LINES[2])["hash"]


def test_a_whole_log_is_whole(folder: Path) -> None:
    """No fault, and the end is the last entry."""
    assert fault_in(LINES, folder) is None
    assert check([folder / "audit-000000000001.jsonl"]).end == Link(LENGTH, HEAD)


@settings(deadline=None)
@given(number=st.integers(0, LENGTH - 1), data=st.data())
def test_any_changed_byte_is_found_in_its_line(folder: Path, number: int, data: st.DataObject) -> None:
    """One byte replaced by any other, in any line, the last one too: the first fault is in that line."""
    line = bytearray(LINES[number])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[place]))
    assert fault_in([*LINES[:number], bytes(line), *LINES[number + 1 :]], folder) == number + 1


@settings(deadline=None)
@given(number=st.integers(0, LENGTH - 1), data=st.data())
def test_any_removed_or_added_byte_is_found(folder: Path, number: int, data: st.DataObject) -> None:
    """A line that became shorter or longer is found, wherever it was cut or filled."""
    line, place = LINES[number], data.draw(st.integers(0, len(LINES[number]) - 1))
    changed = line[:place] + data.draw(st.sampled_from((b"", b"x" + line[place:], b" " + line[place:])))
    if changed == b"":
        return  # a removed line is another test's
    assert fault_in([*LINES[:number], changed, *LINES[number + 1 :]], folder) == number + 1


@settings(deadline=None)
@given(number=st.integers(0, LENGTH - 2), count=st.integers(1, LENGTH))
def test_removed_lines_are_found(folder: Path, number: int, count: int) -> None:
    """Without its beginning or without lines in the middle: found at the first line after the gap."""
    kept = LINES[number + min(count, LENGTH - 1 - number) :]
    assert fault_in([*LINES[:number], *kept], folder) == number + 1


@settings(deadline=None)
@given(number=st.integers(0, LENGTH - 1), at=st.integers(0, LENGTH))
def test_repeated_lines_are_found(folder: Path, number: int, at: int) -> None:
    """A copy of any line at any place, its own too: found where the first of the two is too many."""
    fault = fault_in([*LINES[:at], LINES[number], *LINES[at:]], folder)
    assert fault == at + (2 if at == number else 1)


@settings(deadline=None)
@given(places=st.permutations(range(LENGTH)).filter(lambda order: order != sorted(order)))
def test_any_other_order_is_found(folder: Path, places: list[int]) -> None:
    """Lines in any other order: found at the first that is out of place."""
    first = next(place for place, number in enumerate(places) if place != number)
    assert fault_in([LINES[number] for number in places], folder) == first + 1


@settings(deadline=None)
@given(number=st.integers(0, LENGTH - 2), facts=FACTS)
def test_a_forged_entry_is_found_at_the_next(folder: Path, number: int, facts: dict[str, Any]) -> None:
    """An entry replaced by one with a right hash of its own does not fit the entry after it."""
    end = read_line(LINES[number - 1][:-1]).link if number else START
    forged = log_of([{**facts, "forged": True}], end)
    assert fault_in([*LINES[:number], *forged, *LINES[number + 1 :]], folder) == number + 2


@settings(deadline=None)
@given(number=st.integers(0, LENGTH), facts=FACTS)
def test_an_inserted_entry_is_found(folder: Path, number: int, facts: dict[str, Any]) -> None:
    """An entry put in that continues the one before it: its number comes again. At the end only a head tells."""
    end = read_line(LINES[number - 1][:-1]).link if number else START
    lines = [*LINES[:number], *log_of([facts], end), *LINES[number:]]
    assert fault_in(lines, folder) == (number + 2 if number < LENGTH else None)


@settings(deadline=None)
@given(count=st.integers(1, LENGTH), forged=st.booleans())
def test_a_shortened_end_is_found_by_its_head(folder: Path, count: int, forged: bool) -> None:
    """Lines cut from the end, or written anew, leave a whole log: but it lacks the head that was published."""
    kept = LINES[: LENGTH - count]
    end = read_line(kept[-1][:-1]).link if kept else START
    lines = [*kept, *log_of([{"forged": True}] * count, end)] if forged else kept
    assert fault_in(lines, folder) is None
    hashes = [read_line(line[:-1]).hash for line in lines]
    assert HEAD not in hashes


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        b'"text"',
        b'{"seq":1}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_entry_is_refused(line: bytes) -> None:
    """Anything else raises ValueError with a sentence, and nothing else."""
    with pytest.raises(ValueError, match="no entry of an audit log"):
        read_line(line)


@pytest.mark.parametrize(
    "fields",
    [
        '{"seq":"1","time":"t","previous":"p","kind":"k"',
        '{"seq":true,"time":"t","previous":"p","kind":"k"',
        '{"seq":1,"time":"t","previous":"p"',
        '{"seq":1,"time":2,"previous":"p","kind":"k"',
        "[1",
        '{"a":' * 50_000,
    ],
)
def test_a_hash_alone_makes_no_entry(fields: str) -> None:
    """A line with a right hash whose fields are missing or of another type is refused."""
    own = hashlib.sha256(fields.encode()).hexdigest()
    with pytest.raises(ValueError, match="no entry of an audit log"):
        read_line(f'{fields},"hash":"{own}"}}'.encode())


def test_faults_say_what_is_wrong() -> None:
    """The sentence tells a gap from a repetition and from a replaced entry."""
    second, fifth = (read_line(LINES[number][:-1]).link for number in (1, 4))
    assert "entries 3 to 5 are missing" in refusal(second, LINES[5])
    assert "entry 3 is missing" in refusal(second, LINES[3])
    assert "entry 6 where 3 was expected" not in refusal(second, LINES[5])
    assert "it is entry 2 where 6 was expected" in refusal(fifth, LINES[1])
    assert "does not continue entry 2" in refusal(Link(2, "0" * 64), LINES[2])
    assert "changed after it was written" in refusal(second, LINES[2].replace(b"test", b"text"))


def refusal(end: Link, line: bytes) -> str:
    """What is said of a line that does not follow."""
    with pytest.raises(ValueError, match=re.compile("it ")) as refused:
        follow(end, line[:-1])
    return str(refused.value)
