"""`python -m agent doctor`: checks this machine and says what is wrong, why it matters, and what mends it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from agent import host
from agent.engine import choose
from agent.errors import AgentError
from agent.mounts import file_system_of, is_network
from agent.profile_folder import load_profile_folder
from agent.settings import Settings, load_settings

HELP = """Checks settings, folder, profile, engine, broker and disk. Changes nothing but a probe file in state_dir.

exit code 0: everything needed is there; 1: something must be mended first (marked FAIL).

example:
  python -m agent doctor --config configs/agent.yaml
"""
LOW_DISK_BYTES = 1 << 30
BROKER_TIMEOUT_S = 3.0
Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""
    """What to do; empty when nothing is wrong."""


def examine(config: Path) -> Iterator[Finding]:
    """Every check in turn; a settings file that cannot be used ends the examination."""
    try:
        settings = load_settings(config)
    except AgentError as error:
        yield Finding("settings", "fail", str(error), f"edit {config}; configs/agent.yaml explains every key")
        return
    yield Finding("settings", "ok", str(config))
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _folder,
        _inotify,
        _state,
        _key,
        _profile_and_engine,
        _broker,
    )
    for check in checks:
        yield from check(settings)


def _folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.folder
    if not folder.is_dir():
        yield Finding("folder", "fail", f"{folder} is not a folder", "mount the imager's share or correct `folder`")
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield Finding(
            "folder", "fail", f"{folder} cannot be read by this user", f"grant read access: chmod o+rx {folder}"
        )
    else:
        kind = file_system_of(folder) or "unknown file system"
        polled = is_network(kind) or settings.watch.mode == "scan"
        how = f"scanned every {settings.watch.scan_interval_s} s" if polled else "watched by events and scan"
        yield Finding("folder", "ok", f"{folder} ({kind}, {how})")
        if is_network(kind) and settings.watch.mode == "events":
            mend = "set watch.mode to auto: what another host writes raises no event"
            yield Finding("folder", "warn", f"{kind} is a network mount but watch.mode is events", mend)


def _inotify(settings: Settings) -> Iterator[Finding]:
    if settings.watch.mode == "scan" or is_network(file_system_of(settings.folder)):
        return
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    except (OSError, ValueError):
        yield Finding(
            "inotify", "warn", "the limit of inotify watches cannot be read", "results may come with the scan only"
        )
        return
    folders = sum(1 for _ in os.walk(settings.folder)) if settings.folder.is_dir() else 0
    if folders * 2 > limit:
        mend = f"sysctl fs.inotify.max_user_watches={folders * 4}"
        yield Finding("inotify", "warn", f"{folders} folders for {limit} inotify watches", mend)
    else:
        yield Finding("inotify", "ok", f"{folders} folders, {limit} watches allowed")


def _state(settings: Settings) -> Iterator[Finding]:
    state = settings.state_dir
    probe = state / ".doctor"
    try:
        state.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        mend = f"create it and give it to the agent's user: install -d -o spinextract {state}"
        yield Finding("state_dir", "fail", f"{state}: {error.strerror or error}", mend)
        return
    free = shutil.disk_usage(state).free
    if free < LOW_DISK_BYTES:
        yield Finding(
            "disk", "warn", f"{free / 2**20:.0f} MiB free at {state}", "free some space: the ledger must grow"
        )
    else:
        yield Finding("disk", "ok", f"{free / 2**30:.1f} GiB free at {state}")


def _key(settings: Settings) -> Iterator[Finding]:
    key = settings.identity.key_file or settings.state_dir / "identity.key"
    if not key.exists():
        yield Finding("identity key", "ok", f"{key} will be made at the first start")
    elif stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield Finding("identity key", "fail", f"{key} can be read by others", f"chmod 600 {key}")
    else:
        yield Finding("identity key", "ok", str(key))


def _profile_and_engine(settings: Settings) -> Iterator[Finding]:
    try:
        profile = load_profile_folder(settings.profile)
    except AgentError as error:
        yield Finding("profile", "fail", str(error), "copy the profile again, whole, or correct `profile`")
        return
    yield Finding("profile", "ok", f"{profile.spec.name} v{profile.spec.version}, sha256 {profile.sha256[:12]}…")
    try:
        choice = choose(settings.profile, profile, settings.engine.order, settings.engine.threads)
    except AgentError as error:
        yield Finding("engine", "fail", str(error), f"python -m agent.build_trt --profile {settings.profile}")
        return
    choice.engine.close()
    engine = f"{choice.engine.name} {choice.engine.precision}, golden pair agrees"
    yield Finding("engine", "ok", engine)
    for name, why in choice.passed_over.items():
        yield Finding(
            "engine", "warn", f"{name} passed over: {why}", f"python -m agent.build_trt --profile {settings.profile}"
        )


def _broker(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.mqtt.host}:{settings.mqtt.port}"
    try:
        socket.create_connection((settings.mqtt.host, settings.mqtt.port), timeout=BROKER_TIMEOUT_S).close()
    except OSError as error:
        mend = "start the broker or correct mqtt.host and mqtt.port; meanwhile results wait in the ledger"
        yield Finding("broker", "warn", f"{where}: {error.strerror or error}", mend)
        return
    yield Finding("broker", "ok", f"{where} accepts connections")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent doctor`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (YAML)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Run `agent doctor`; returns the exit code."""
    host.configure_logging("error", "console")
    findings = []
    console = Console(highlight=False)
    for finding in examine(args.config):
        findings.append(finding)
        if not args.json:
            style = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.verdict]
            console.print(f"[{style}]{finding.verdict.upper():4}[/] {finding.check:13} ", end="")
            console.print(finding.found, markup=False)
            if finding.mend:
                console.print(f"{'':19}→ {finding.mend}", markup=False)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    return int(any(finding.verdict == "fail" for finding in findings))
