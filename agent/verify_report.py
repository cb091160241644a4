"""What `agent verify` says: the document for programs and the lines for people. Reads no file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.audit_chain import Entry
from agent.audit_check import Verdict
from agent.trace import Trace, Wanted
from models.decision import WORDS

GONE, UNREADABLE = "gone", "unreadable"
"""Of a file in the watched folder, instead of its hash."""
COLOURS = {"changed": "red", "unreadable": "red"}
NAME_WIDTH = 18


@dataclass(frozen=True)
class Findings:
    """Everything that one run found out."""

    files: tuple[Path, ...]
    verdict: Verdict
    head: str | None = None
    """The published head that was asked about."""
    head_at: Entry | None = None
    """Its entry; None when the log does not contain it."""
    wanted: Wanted | None = None
    traces: tuple[Trace, ...] = ()
    folder: dict[str, str] | None = None
    """Pseudonym of a file → the hash of what stands in the folder now, or GONE or UNREADABLE; None: nobody asked."""

    @property
    def is_well(self) -> bool:
        """Whole, and everything that was asked for is there."""
        is_found = self.wanted is None or bool(self.traces)
        return self.verdict.fault is None and is_found and (self.head is None or self.head_at is not None)


def document_of(findings: Findings) -> dict[str, Any]:
    """What `--json` prints."""
    verdict = findings.verdict
    fault = verdict.fault
    return {
        "whole": fault is None,
        "first": verdict.begin.seq + 1,
        "before_first": verdict.begin.hash,
        "entries": verdict.end.seq,
        "head": verdict.end.hash,
        "last_time": verdict.last_time,
        "files": [str(path) for path in findings.files],
        "fault": None if fault is None else {"file": str(fault.file), "line": fault.line, "why": fault.why},
        "head_entry": None if findings.head is None else _number(findings.head_at),
        "head_found": None if findings.head is None else findings.head_at is not None,
        "results": [_result(trace, findings.folder) for trace in findings.traces],
    }


def _result(trace: Trace, folder: dict[str, str] | None) -> dict[str, Any]:
    return {
        **_whole(trace.final),
        "start": None if trace.start is None else _whole(trace.start),
        "engine_entry": _number(trace.engine),
        "settings_entry": _number(trace.settings),
        "settings_sha256": trace.settings.facts["settings_sha256"] if trace.settings else None,
        "superseded": _event(trace.superseded),
        "superseded_by": _event(trace.superseded_by),
        "reopened": [_whole(entry) for entry in trace.reopened],
        "files": [
            {**_whole(entry), "certain": entry.facts["file"] not in trace.doubtful, **_now(entry, folder)}
            for entry in trace.files
        ],
    }


def _now(entry: Entry, folder: dict[str, str] | None) -> dict[str, str]:
    return {} if folder is None else {"now": _standing(entry, folder)}


def _standing(entry: Entry, folder: dict[str, str]) -> str:
    """How a file stands now; `there` is said of one whose hash the log does not hold."""
    digest, known = folder[entry.facts["file"]], entry.facts.get("sha256")
    if digest in (GONE, UNREADABLE):
        return digest
    return "there" if known is None else "same" if digest == known else "changed"


def _whole(entry: Entry) -> dict[str, Any]:
    return {"entry": entry.seq, "time": entry.time, **entry.facts}


def _event(entry: Entry | None) -> str | None:
    return None if entry is None else str(entry.facts["event_id"])


def _number(entry: Entry | None) -> int | None:
    return None if entry is None else entry.seq


def show(findings: Findings, console: Console) -> None:
    """The verdict in two or three lines, then what each result rests on."""
    _show_verdict(findings, console)
    if findings.head is not None:
        _show_head(findings, console)
    for trace in findings.traces:
        console.print()
        _show_trace(trace, findings.folder, console)
    if findings.wanted is not None and not findings.traces:
        asked = next(f"{name} {value}" for name, value in findings.wanted._asdict().items() if value is not None)
        proven = "" if findings.verdict.fault is None else " among the entries that are proven"
        console.print(f"[red]NOT FOUND[/] no result with {asked}{proven}")


def _show_verdict(findings: Findings, console: Console) -> None:
    begin, end, fault = findings.verdict.begin, findings.verdict.end, findings.verdict.fault
    count, is_any = len(findings.files), end != begin
    proven = f"entries {begin.seq + 1} to {end.seq} are as they were written" if is_any else "no entry is proven"
    if fault is None:
        console.print(f"[green]WHOLE[/] {proven}, in {count} file{'s' if count > 1 else ''}")
    else:
        console.print("[red]BROKEN[/] ", end="")
        console.print(str(fault), markup=False, soft_wrap=True)
        console.print(f"       {proven}; nothing is proven of what follows")
    if is_any and begin.seq:
        console.print(f"       entry {begin.seq}, before these, must have the hash {begin.hash}", soft_wrap=True)
    if is_any:
        last = f"       entry {end.seq} is of {findings.verdict.last_time}, its hash is {end.hash}"
        console.print(last, soft_wrap=True)


def _show_head(findings: Findings, console: Console) -> None:
    if findings.head_at is not None:
        entry = findings.head_at
        console.print(f"[green]HEAD[/]  found: it is entry {entry.seq} of {entry.time}; nothing up to it was changed")
        return
    console.print("[red]HEAD[/]  not found: entries were removed or written anew since it was published,")
    console.print("      or it is of another agent's log, or files of this log were not given")


def _show_trace(trace: Trace, folder: dict[str, str] | None, console: Console) -> None:
    final = trace.final.facts
    console.print(f"[bold]{final['scope']} result {final['event_id']}[/]", soft_wrap=True)
    for name, text in _lines(trace):
        # No frame and no wrapping: a hash is to be copied.
        console.print(f"{name:{NAME_WIDTH}}{text}", markup=False, soft_wrap=True)
    if trace.files:
        _show_files(trace, folder, console)
    else:
        console.print("no file is on record: they were read before the audit log began, or never to their end")
    if trace.doubtful:
        said = ", ".join(sorted(trace.doubtful))
        console.print(f"changed about when this was said, so that either hash may be meant: {said}", soft_wrap=True)
    if final["state"] != "complete":
        console.print(
            f"the acquisition was {final['state']}: files that were not read to their end are not on record"
        )


def _lines(trace: Trace) -> list[tuple[str, str]]:
    final, start = trace.final.facts, trace.start.facts if trace.start else {}
    lines = [
        ("said", f"{trace.final.time}, entry {trace.final.seq}, revision {final['revision']}"),
        ("patient, slide", f"{final['patient']}, {final.get('slide', 'all slides')}"),
        ("answer", _answer(final)),
        ("payload", f"sha256 {final['payload_sha256']}"),
        ("replaces", _event(trace.superseded) or final["supersedes"] or "nothing"),
        ("replaced by", _replaced(trace.superseded_by)),
        ("read again", ", ".join(entry.time for entry in trace.reopened) or "never"),
        ("profile", f"sha256 {final['profile_sha256']}"),
    ]
    if trace.start is None or trace.settings is None or trace.engine is None:
        return [*lines, ("computed by", "a start of the agent that is not on record")]
    engine, profile, libraries = trace.engine.facts["engine"], start["profile"], trace.engine.facts["libraries"]
    built = engine["manifest_sha256"]
    own = trace.settings.facts
    lines[-1] = ("profile", f"{profile['name']}, version {profile['version']}, sha256 {profile['sha256']}")
    return [
        *lines,
        ("computed by", f"agent {start['version']}, start {start['boot_seq']} of {trace.start.time}"),
        ("engine", f"{engine['name']} {engine['precision']}, batches of {engine['batch']}, on {engine['device']}"),
        *([("", f"took over at {trace.engine.time}")] if trace.engine is not trace.start else []),
        *([("", f"manifest sha256 {built}")] if built else []),
        *((("", f"{name} sha256 {sha256}")) for name, sha256 in engine["files"].items()),
        ("versions", f"python {start['python']}, " + ", ".join(" ".join(v) for v in libraries.items())),
        ("system", start["system"]),
        ("settings", f"sha256 {own['settings_sha256']}"),
        *(("", f"{name}: {value}") for name, value in own["settings"].items()),
    ]


def _answer(final: dict[str, Any]) -> str:
    word = WORDS.get(final["decision"], str(final["decision"]))
    predicted = final["predicted"] or "no usable patch"
    confidence = "" if final["confidence"] is None else f" ({final['confidence']:.3f})"
    parts = f"{final['parts']} of {final['expected'] or 'unknown'} parts"
    return f"{predicted}{confidence}, {word}; {final['used']} of {final['seen']} patches; {final['state']}, {parts}"


def _replaced(by: Entry | None) -> str:
    return "nothing: it holds" if by is None else f"{by.facts['event_id']} at {by.time}: it holds no longer"


def _show_files(trace: Trace, folder: dict[str, str] | None, console: Console) -> None:
    """A line for each file, its hash last and whole: it is to be copied."""
    rows = [_row(entry, trace.final.facts["scope"] == "patient", folder) for entry in trace.files]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.print("files", style="bold")
    for row in rows:
        text = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        style = next((COLOURS[cell] for cell in row if cell in COLOURS), "")
        console.print(f"  {text}", markup=False, soft_wrap=True, style=style)
    if folder is not None:
        counts = Counter(_standing(entry, folder) for entry in trace.files)
        console.print("in the folder now: " + ", ".join(f"{count} {word}" for word, count in sorted(counts.items())))


def _row(entry: Entry, is_patients: bool, folder: dict[str, str] | None) -> list[str]:
    facts = entry.facts
    outcome = f"{facts['outcome']}: {facts['reason']}" if facts.get("reason") else facts["outcome"]
    slide = [facts["slide"]] if is_patients else []
    now = [] if folder is None else [_standing(entry, folder)]
    return [facts["file"], *slide, entry.time, outcome, *now, facts.get("sha256", "")]
