"""The command: every check in its order, printed for people or for scripts."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from agent import host
from agent.doctor.audit import look_at_audit
from agent.doctor.broker import look_at_broker
from agent.doctor.engines import look_at_profile
from agent.doctor.finding import LIMIT_S, Check, Finding, limited
from agent.doctor.folder import look_at_folder
from agent.doctor.ledger import look_at_ledger
from agent.doctor.machine import (
    look_at_clock,
    look_at_gpu,
    look_at_libraries,
    look_at_memory,
    look_at_processor,
)
from agent.doctor.outlets import look_at_dicom, look_at_ports
from agent.doctor.service import look_at_services
from agent.doctor.state import exposed_finding, look_at_secrets, look_at_state
from agent.errors import AgentError
from agent.exposure import exposed_settings
from agent.settings import Settings, load_settings

HELP = """Examines settings, folder, state, ledger, profile, engines, broker and machine. Says what was
found and, where something is wrong, why it matters and the command that mends it.

It changes nothing: the ledger is copied before it is opened, a running agent is left alone, and the broker gets one
empty message, not retained, on the health topic, from a client of its own. Nothing it prints is a patient's identity.
Run it as the user of the service: what root may read says nothing about what the service may.

exit code 0: nothing failed (there may be warnings); 1: something must be mended first (FAIL); 2: bad arguments.

--json prints a list of objects with these keys, all strings:
  check    a stable word, e.g. folder, disk, ledger, engine, broker_login (docs/operations.md lists them all)
  verdict  ok, warn or fail
  found    what is there
  why      why it matters; empty for ok
  mend     what to do, a command where there is one; empty for ok

examples:
  python -m agent doctor --config configs/agent.yaml
  python -m agent doctor --config FILE --json | jq -r '.[] | select(.verdict != "ok") | .mend'
"""
CHECKS = (
    Check("service", look_at_services, 10.0, "systemd itself seems to hang"),
    Check(
        "folder",
        look_at_folder,
        late_why="the share that the imager writes to does not answer: nothing that is imaged is seen",
        late_mend="look at the mount (`mount`, `dmesg | tail`), then `umount --force --lazy` and mount it again",
    ),
    Check("state_dir", look_at_state),
    Check("secrets", look_at_secrets),
    Check("ledger", look_at_ledger, 30.0),
    Check("audit", look_at_audit, 60.0, "the disk under the state folder is slow", "iostat -x 1"),
    Check("profile", look_at_profile, 120.0, "loading an engine takes far too long"),
    Check("broker", look_at_broker, 30.0, "the name of the broker is perhaps looked up in vain"),
    Check("ports", look_at_ports, 10.0),
    Check("dicom_out", look_at_dicom, 10.0),
    Check("clock", look_at_clock),
    Check("processor", look_at_processor),
    Check("memory", look_at_memory),
    Check("gpu", look_at_gpu, 10.0, "the driver of the card hangs", "dmesg | grep -i nvrm; a reboot may be needed"),
    Check("libraries", look_at_libraries),
)
"""In the order in which they are printed, each with its limit in seconds."""
NAME_WIDTH = 18
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def examine(config: Path) -> Iterator[Finding]:
    """Every check in turn; a settings file that cannot be used ends the examination."""
    read: list[Settings] = []
    why = "the file, or a folder that it names, lies on a share that does not answer"
    yield from limited("settings", partial(_settings, config, read), LIMIT_S, why, "look at the mounts: `mount`")
    for settings in read:
        for check in CHECKS:
            yield from check.findings(settings)


def _settings(config: Path, read: list[Settings]) -> Iterator[Finding]:
    try:
        settings = load_settings(config)
    except AgentError as error:
        why = "the agent does not start with settings that it cannot understand"
        mend = f"edit {config}; configs/agent.yaml explains every key, `python -m agent settings --check {config}`"
        yield Finding("settings", "fail", str(error), why, mend)
        return
    read.append(settings)
    exposed = [exposed_finding(found) for found in exposed_settings(config)]
    yield from exposed or [Finding("settings", "ok", str(config))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent doctor`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (YAML)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Run `agent doctor`; returns the exit code."""
    host.configure_logging("critical", "console")
    findings = []
    console = Console(highlight=False)
    for finding in examine(args.config):
        findings.append(finding)
        if not args.json:
            _print(console, finding)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        _print_sum(console, findings)
    return int(any(finding.verdict == "fail" for finding in findings))


def _print(console: Console, finding: Finding) -> None:
    """One line, and for what is not well two more."""
    console.print(f"[{COLOURS[finding.verdict]}]{finding.verdict.upper():4}[/] {finding.check:{NAME_WIDTH}} ", end="")
    console.print(finding.found, markup=False, soft_wrap=True)
    for sign, text in (("why: ", finding.why), ("→ ", finding.mend)):
        if text:
            console.print(f"{'':{NAME_WIDTH + 6}}{sign}{text}", markup=False, soft_wrap=True)


def _print_sum(console: Console, findings: Iterable[Finding]) -> None:
    counts = Counter(finding.verdict for finding in findings)
    worst = next(verdict for verdict in ("fail", "warn", "ok") if counts[verdict] or verdict == "ok")
    said = {
        "fail": "mend what is marked FAIL first",
        "warn": "it can run; look at the warnings",
        "ok": "everything is as it should be",
    }[worst]
    console.print(f"\n{counts['fail']} failed, {counts['warn']} warnings, {counts['ok']} ok: {said}")
