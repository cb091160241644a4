"""The audit log: is it whole, and can the agent go on writing it?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent.audit_check import Verdict, check
from agent.audit_log import log_files
from agent.doctor.finding import Finding
from agent.settings import Settings

LARGEST_BYTES = 256 << 20
"""Reading this takes some seconds; a larger log is for `agent verify`, which shows how far it is."""


def look_at_audit(settings: Settings) -> Iterator[Finding]:
    """Every entry of the log that is here (older files may lie in an archive), and who may write the newest file."""
    files = log_files(settings.state_dir)
    if not files:
        yield Finding("audit", "ok", "the audit log will be begun at the next start")
        return
    size = sum(path.stat().st_size for path in files)
    found = f"{len(files)} file{'s' if len(files) > 1 else ''}, {size / 2**20:.1f} MiB"
    if size > LARGEST_BYTES:
        yield Finding("audit", "ok", f"{found}: too large to be read here; `python -m agent verify` does")
    else:
        yield _judge(check(files, partial=True), found)
    yield from _writable(files[-1])


def _judge(verdict: Verdict, found: str) -> Finding:
    fault, end = verdict.fault, verdict.end
    if fault is None:
        return Finding("audit", "ok", f"whole, entries {verdict.begin.seq + 1} to {end.seq} in {found}")
    if fault.is_unfinished:
        why = "the last entry was being written when the agent was ended; nothing is lost, the ledger has it"
        return Finding("audit", "warn", str(fault), why, "start the agent: it finishes the line")
    why = f"it proves nothing of what was done after entry {end.seq} ({verdict.last_time or 'none'})"
    mend = "find out who changed it; restore the file from a backup, then: python -m agent verify --config FILE"
    return Finding("audit", "fail", str(fault), why, mend)


def _writable(newest: Path) -> Iterator[Finding]:
    if newest.is_symlink() or not newest.is_file():
        why = "the agent writes into no link: entries wait in the ledger"
        yield Finding("audit", "fail", f"{newest} is no ordinary file", why, "find out who put it there; remove it")
    elif not os.access(newest, os.W_OK):
        why = "entries wait in the ledger, which grows"
        mend = f"run doctor as the service's user; if it is: chown spinextract: {newest}"
        yield Finding("audit", "fail", f"{newest} cannot be written", why, mend)
