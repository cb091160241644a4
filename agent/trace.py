"""What one result rests on, from the entries of the audit log: files, profile, engine, settings, versions, and which
results it replaced or was replaced by. Pure: entries in, a record out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.audit_chain import Entry


class Wanted(NamedTuple):
    """Which results are asked for: those with any of these."""

    event: str | None = None
    slide: str | None = None
    patient: str | None = None

    def fits(self, final: Entry) -> bool:
        """Whether this final is asked for; a slide's means its own, a patient's all of the patient's."""
        if self.event is not None:
            return bool(final.facts["event_id"] == self.event)
        if self.slide is not None:
            return bool(final.facts.get("slide") == self.slide)
        return bool(final.facts["patient"] == self.patient)


@dataclass(frozen=True)
class Trace:
    """One result and everything that the log knows of how it came about."""

    final: Entry
    start: Entry | None
    """The start of the agent that said it; None when it lies before the log's beginning."""
    engine: Entry | None
    """The entry whose engine was in service then: that start, or a later replacement."""
    settings: Entry | None
    """The entry whose settings were in force: that start, or a later change."""
    files: tuple[Entry, ...]
    """What was made of each of its files; of a doubtful one, every standing that comes into question."""
    doubtful: frozenset[str]
    """Files that changed about when the result was said: the log cannot tell which of their standings it rests on."""
    reopened: tuple[Entry, ...]
    """When its slides were read again before it."""
    superseded: Entry | None
    """The result that it replaced."""
    superseded_by: Entry | None
    """The result that replaced it: this one no longer holds."""


KINDS = ("start", "settings", "engine", "file", "reopened", "final")
"""Entries that a trace is made of."""


def traces(entries: Sequence[Entry], wanted: Wanted) -> list[Trace]:
    """A trace for each result that is asked for, in the order in which they were said."""
    finals = [entry for entry in entries if entry.kind == "final"]
    return [_trace(final, finals, entries) for final in finals if wanted.fits(final)]


def _trace(final: Entry, finals: Sequence[Entry], entries: Sequence[Entry]) -> Trace:
    session = final.facts.get("session_id")
    before = [entry for entry in entries if entry.seq < final.seq]
    starts = [e for e in before if e.kind == "start" and session in (None, e.facts["session_id"])]
    start = starts[-1] if starts else None
    since = [e for e in before if start is not None and e.seq >= start.seq]
    in_force, engines = ([e for e in since if e.kind in ("start", kind)] for kind in ("settings", "engine"))
    of_patient = [e for e in entries if e.kind in ("file", "reopened") and _is_of(e, final)]
    by_id = {entry.facts["event_id"]: entry for entry in finals}
    replaced_by = {entry.facts["supersedes"]: entry for entry in finals}
    files = _files(final, of_patient, [e for e in finals if e.seq > final.seq and e.facts["scope"] == "slide"])
    return Trace(
        final=final,
        start=start,
        engine=engines[-1] if engines else None,
        settings=in_force[-1] if in_force else None,
        files=tuple(entry for standings in files.values() for entry in standings),
        doubtful=frozenset(file for file, standings in files.items() if len(standings) > 1),
        reopened=tuple(e for e in of_patient if e.kind == "reopened" and e.seq < final.seq),
        superseded=by_id.get(final.facts["supersedes"]),
        superseded_by=replaced_by.get(final.facts["event_id"]),
    )


def _is_of(entry: Entry, final: Entry) -> bool:
    """Whether an entry speaks of the final's slide, or of any slide of its patient."""
    same_patient = entry.facts.get("patient") == final.facts["patient"]
    return same_patient and final.facts.get("slide") in (None, entry.facts.get("slide"))


def _files(final: Entry, entries: Iterable[Entry], later: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The standings of each file on which the final may rest: one, but for files that changed about then.

    A final is said when its last pixel is counted, and a file is entered as whole a moment later, when it has
    settled. So what is entered afterwards belongs to the final, too, until the slide is read again, or is said anew.
    """
    found: dict[str, list[Entry]] = {}
    said_anew = {entry.facts["slide"]: entry.seq for entry in reversed(list(later))}
    read_again: set[str] = set()
    for entry in entries:
        slide = entry.facts.get("slide", "")
        if entry.seq < final.seq:
            if entry.kind == "file":
                found[entry.facts["file"]] = [entry]
        elif final.facts["state"] != "complete" or entry.seq > said_anew.get(slide, entry.seq):
            continue
        elif entry.kind == "reopened":
            read_again.add(slide)
        elif slide not in read_again:
            found.setdefault(entry.facts["file"], []).append(entry)
    for standings in found.values():
        slide = standings[-1].facts.get("slide", "")
        if slide not in said_anew or slide in read_again:
            del standings[:-1]
    return found
