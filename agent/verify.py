"""`python -m agent verify`: is the audit log whole, and what does a result rest on? Reads the log's files only."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from agent.audit_chain import Entry
from agent.audit_check import Verdict, check
from agent.audit_log import log_files
from agent.errors import AgentError, SettingsError
from agent.identity import Pseudonyms, load_or_create_key
from agent.settings import Settings, load_settings
from agent.trace import Trace, Wanted, traces
from agent.verify_report import GONE, UNREADABLE, Findings, document_of, show
from agent.walk import walk

HELP = """Checks the audit log in state_dir (audit-*.jsonl): every line holds the SHA-256 of the one before it, so
that an entry that was edited, removed, added or moved is found, with its file and line. A running agent is not
disturbed.

What the log cannot show by itself: that its end was cut off, or that somebody who may write it wrote all of it anew.
Both show against a head that was published before: keep `audit.head` of any `health` message and give it as --head.

With --event, --slide or --patient (pseudonyms, as on MQTT) it shows what each result rests on: files with their
SHA-256, profile, engine, settings, versions, times, and the results that it replaced or that replaced it. --folder
reads these files again, if they are still there, and says whether they are the same; no file name is printed.

exit code 0: whole, and everything asked for was found; 1: broken, or not found; 2: bad arguments.

examples:
  python -m agent verify --config /etc/spinextract-agent/agent.yaml
  python -m agent verify --config FILE --head 5f3a...c1                     the head that `health` said last month
  python -m agent verify --config FILE --event 0b6e...                      one result, by its event_id
  python -m agent verify --config FILE --slide k3qd... --folder             and compare with the files in the folder
  python -m agent verify --config FILE --partial                            when older files lie in an archive
  python -m agent verify --log archive/audit-*.jsonl --json | jq .whole     a copy, on any machine
"""
SHOWN_FROM_BYTES = 16 << 20
"""A log of this size takes long enough for a progress bar."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent verify`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--config", type=Path, metavar="FILE", help="the agent's settings (YAML)")
    where.add_argument("--log", type=Path, nargs="+", metavar="FILE", help="the files of a log, all of them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--event", metavar="ID", help="trace the result with this event_id")
    which.add_argument("--slide", metavar="ID", help="trace every result of this slide")
    which.add_argument("--patient", metavar="ID", help="trace every result of this patient")
    parser.add_argument("--head", metavar="HASH", help="a head that was published: the log must contain it")
    parser.add_argument("--partial", action="store_true", help="the log's earlier files lie in an archive")
    parser.add_argument("--folder", action="store_true", help="compare the files in the watched folder (--config)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def main(args: argparse.Namespace) -> int:
    """Run `agent verify`; returns the exit code. Raises AgentError and SettingsError."""
    wanted = _wanted(args)
    settings = load_settings(args.config) if args.config else None
    paths = log_files(settings.state_dir) if settings else sorted(args.log, key=lambda path: path.name)
    if settings and not paths:
        raise AgentError(f"no audit log in {settings.state_dir}: has the agent run?")
    try:
        checked = _Log(paths, partial=args.partial, quiet=args.json)
        findings = examine(checked, wanted, args.head, settings if args.folder else None)
    except OSError as error:
        raise AgentError(f"{error.filename or 'the audit log'}: {error.strerror or error}") from error
    if args.json:
        print(json.dumps(document_of(findings)))
    else:
        show(findings, Console(highlight=False))
    return int(not findings.is_well)


def _wanted(args: argparse.Namespace) -> Wanted | None:
    """What is to be traced. Raises SettingsError for arguments that do not go together."""
    wanted = Wanted(args.event, args.slide, args.patient)
    is_tracing = wanted != Wanted()
    if args.folder and not (args.config and is_tracing):
        raise SettingsError("--folder needs --config, and --event, --slide or --patient")
    if args.head is not None and not re.fullmatch("[0-9a-f]{64}", args.head):
        raise SettingsError("--head takes the 64 hexadecimal digits of `audit.head` in a health message")
    return wanted if is_tracing else None


@dataclass(frozen=True)
class _Log:
    """The files to read, and how."""

    paths: Sequence[Path]
    partial: bool
    quiet: bool

    def check(self, heed: Callable[[Entry], None]) -> Verdict:
        """Read them once, with a bar where that takes a while."""
        size = sum(path.stat().st_size for path in self.paths)
        columns = (TextColumn("reading the audit log"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        is_short = self.quiet or size < SHOWN_FROM_BYTES
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=is_short) as bar:
            task = bar.add_task("", total=size)
            return check(self.paths, heed, lambda count: bar.advance(task, count), partial=self.partial)


def examine(log: _Log, wanted: Wanted | None, head: str | None, settings: Settings | None) -> Findings:
    """Check the log, look for the head, trace what is wanted, compare the folder of `settings`. Raises OSError."""
    at_head: list[Entry] = []
    patients: set[str] = set()

    def heed(entry: Entry) -> None:
        if entry.hash == head:
            at_head.append(entry)
        if wanted is not None and entry.kind == "final" and wanted.fits(entry):
            patients.add(entry.facts["patient"])

    verdict = log.check(heed)
    found = traces(_about(log, patients, verdict), wanted) if wanted is not None else []
    return Findings(
        files=tuple(log.paths),
        verdict=verdict,
        head=head,
        head_at=at_head[0] if at_head else None,
        wanted=wanted,
        traces=tuple(found),
        folder=_compare(settings, found) if settings is not None else None,
    )


def _about(log: _Log, patients: set[str], verdict: Verdict) -> list[Entry]:
    """The proven entries that may bear on these patients' results."""
    found: list[Entry] = []

    def heed(entry: Entry) -> None:
        of_agent = entry.kind in ("start", "settings", "engine")
        if entry.seq <= verdict.end.seq and (of_agent or entry.facts.get("patient") in patients):
            found.append(entry)

    if patients:
        log.check(heed)
    return found


def _compare(settings: Settings, found: Sequence[Trace]) -> dict[str, str]:
    """Every file of the traces → the SHA-256 of what stands in the watched folder now, or why there is none.

    Raises SettingsError without the pseudonyms' key.
    """
    key = settings.identity.key_file or settings.state_dir / "identity.key"
    if not key.exists():
        raise SettingsError(f"{key} is not there: without it nobody can tell which file is which")
    naming = Pseudonyms(load_or_create_key(key))
    standing = {entry.facts["file"]: GONE for trace in found for entry in trace.files}
    for name in walk(settings.folder, settings.watch.follow_symlinks).files:
        file_id = naming.of("file", name)
        if file_id in standing:
            standing[file_id] = _digest(settings.folder / name)
    return standing


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return GONE
    except OSError:
        return UNREADABLE
