"""`python -m agent quarantine`: which files were refused, where they lie, and what to do about each.

Refused files are never moved: the quarantine is a list in the ledger, by pseudonym. Names of files may be identities,
so they are found by walking the folder here, and go to the terminal only.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from agent import host
from agent.errors import AgentError, SettingsError
from agent.identity import Pseudonyms, load_or_create_key
from agent.ledger import FileStanding, Ledger
from agent.ledger_copy import lock_holder, opened_copy
from agent.ledger_files import refused_in
from agent.settings import Settings, load_settings
from agent.walk import walk

HELP = """Lists the files that the agent refused: images that contradict themselves, or that it cannot read.
They stay where they are, nothing is substituted for them, and they are not read again until they change.

The list holds real file names, which may tell who a patient is: keep it on this screen. Works while the agent runs.

--release FILE_ID makes the agent look at a file again although it has not changed, e.g. after a limit was raised or
the agent was updated. The agent must be stopped for that, since it takes effect at its next start.

exit code 0: listed or released; 1: it could not be; 2: bad arguments or settings.

--json prints a list of objects: file (pseudonym, as in alerts), path (relative to the folder, null when no file of
that pseudonym is there), now (unchanged, changed or gone), reason, detail, since, size, patient, slide, mend.

examples:
  python -m agent quarantine --config /etc/spinextract-agent/agent.yaml
  python -m agent quarantine --config FILE --json | jq -r '.[] | select(.now == "unchanged") | .path'
  systemctl stop spinextract-agent
  python -m agent quarantine --config FILE --release k3qdmx7ao2vtyjw4
  systemctl start spinextract-agent
"""
MEND = {
    "not_an_image": "it claims to be an image and is none: export it again, or take it out of the folder",
    "malformed": "it contradicts itself: export it again from the imager, and look at the share when that recurs",
    "wrong_type": "its pixels are no 16-bit integers: export raw strips, not pictures for people",
    "wrong_shape": "its size belongs to no known geometry: is it from this imager, and is the profile the right one?",
    "unsupported": "its compression or transfer syntax is not read: export it uncompressed",
    "limits": "it asks for more than `limits` allows: if the file is right, raise the limit, then --release it",
}
"""FormatError.REASONS → what a person may do."""
OTHERWISE = "look at the file; once it changes it is read again"
GONE = "nothing: it is not there any more"
CHANGED = "nothing: it has changed since, and is read again once it has settled"


@dataclass(frozen=True)
class Refused:
    """One refused file."""

    file: str
    """Pseudonym, as in alerts."""
    path: str | None
    """Relative to the folder; None when it is not there."""
    now: str
    """`unchanged`, `changed` or `gone`."""
    reason: str
    detail: str
    since: str
    """ISO 8601, in local time."""
    size: int
    patient: str
    slide: str
    mend: str
    """What to do about it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent quarantine`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (YAML)")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.add_argument("--release", metavar="FILE_ID", help="look at this file again at the next start")


def main(args: argparse.Namespace) -> int:
    """Run `agent quarantine`; returns the exit code. Raises AgentError."""
    host.configure_logging("critical", "console")
    settings = load_settings(args.config)
    path = settings.state_dir / "ledger.sqlite"
    if args.release is not None:
        release(path, args.release)
        print(f"{args.release} will be looked at when the agent starts: systemctl start spinextract-agent")
        return 0
    files = listing(settings, standings(path))
    if args.json:
        print(json.dumps([asdict(file) for file in files], indent=2))
    else:
        _print(Console(highlight=False), files)
    return 0


def standings(ledger: Path) -> list[FileStanding]:
    """What the ledger says of refused files, longest ago first; of a running agent's too. Raises AgentError."""
    try:
        if not ledger.exists():
            return []
        with opened_copy(ledger) as database:
            return refused_in(database)
    except OSError as error:
        raise AgentError(f"ledger {ledger}: {error.strerror or error}: run this as the service's user") from error
    except sqlite3.Error as error:
        raise AgentError(f"ledger {ledger} cannot be read ({error}): see `python -m agent doctor`") from error


def listing(settings: Settings, refused: Sequence[FileStanding]) -> list[Refused]:
    """Each with the path that has its pseudonym. Raises AgentError when the folder or the key cannot be read."""
    key = settings.identity.key_file or settings.state_dir / "identity.key"
    if not refused:
        return []
    if not key.exists():
        raise SettingsError(f"the pseudonyms' key {key} is not there: nobody can tell which files they are")
    naming = Pseudonyms(load_or_create_key(key))
    try:
        there = walk(settings.folder, settings.watch.follow_symlinks).files
    except OSError as error:
        raise AgentError(f"{settings.folder} cannot be listed: {error.strerror or error}") from error
    paths = {naming.of("file", path): path for path in there}
    return [_one(each, paths.get(each.file_id), there) for each in refused]


def release(ledger: Path, file_id: str) -> None:
    """Forget that a file was refused. Raises LedgerError, when the agent runs among others."""
    if not ledger.exists():
        raise AgentError(f"there is no ledger in {ledger.parent}: nothing was ever refused")
    if lock_holder(ledger) is not None:
        raise AgentError(
            "the agent is running, and it would not notice: `systemctl stop spinextract-agent`, release the file,"
            " `systemctl start spinextract-agent`"
        )
    opened = Ledger.open(ledger)
    try:
        if not opened.release(file_id):
            raise AgentError(f"no file {file_id} was refused: `python -m agent quarantine` lists those that were")
    finally:
        opened.close()


def _one(standing: FileStanding, path: str | None, there: dict[str, tuple[int, int, int, int]]) -> Refused:
    now, mend = "gone", GONE
    if path is not None:
        _, size, mtime_ns, _ = there[path]
        unchanged = standing.stamp == (size, mtime_ns)
        now = "unchanged" if unchanged else "changed"
        mend = MEND.get(standing.reason, OTHERWISE) if unchanged else CHANGED
    return Refused(
        file=standing.file_id,
        path=path,
        now=now,
        reason=standing.reason,
        detail=standing.detail,
        since=datetime.fromtimestamp(standing.at).astimezone().isoformat(timespec="seconds"),
        size=standing.size,
        patient=standing.patient,
        slide=standing.slide,
        mend=mend,
    )


def _print(console: Console, files: Sequence[Refused]) -> None:
    """Four lines a file: what, where, why, what to do."""
    for file in files:
        console.print(
            f"[bold]{file.file}[/]  [red]{file.reason}[/]  since {file.since}, {file.size} bytes, {file.now}"
        )
        shown = "-" if file.path is None else ascii(file.path)[1:-1]
        for sign, text in (("file: ", shown), ("why:  ", file.detail or "-"), ("→     ", file.mend)):
            console.print(f"  {sign}{text}", markup=False, soft_wrap=True)
    unchanged = sum(file.now == "unchanged" for file in files)
    console.print(f"{len(files)} refused, {unchanged} of them still there as they were")
