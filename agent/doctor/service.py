"""What systemd knows of the services: as whom they run, whether they are up, and whether a hang would be noticed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from agent.doctor.finding import Finding
from agent.settings import Settings

UNIT = "spinextract-agent.service"
OTHERS = ("spinextract-dashboard.service", "spinextract-dicom-out.service")
PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,NRestarts,WatchdogUSec,User,Result"
PROGRAM_S = 3.0
Properties = Mapping[str, str]


def look_at_services(_: Settings) -> Iterator[Finding]:
    """The agent's unit, the other units that are installed, and whether we look with the agent's eyes."""
    shown = show(UNIT)
    if shown is None or shown.get("LoadState") != "loaded":
        yield Finding("service", "ok", f"{UNIT} is not installed here: the agent is started by hand")
        yield judge_user(None, _user())
        return
    yield judge_user(shown.get("User"), _user())
    yield judge_unit(UNIT, shown)
    yield judge_watchdog(shown.get("WatchdogUSec", ""))
    for unit in OTHERS:
        other = show(unit)
        if other is not None and other.get("LoadState") == "loaded" and other.get("UnitFileState") == "enabled":
            yield judge_unit(unit, other)


def show(unit: str) -> Properties | None:
    """What systemd says of a unit; None without systemd."""
    program = shutil.which("systemctl")
    if program is None:
        return None
    words = [program, "show", unit, f"--property={PROPERTIES}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    return (
        dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line) if done.returncode == 0 else None
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def judge_user(service: str | None, here: str) -> Finding:
    """Root may read everything: what doctor finds as root says little about a service that runs as somebody else."""
    if service and service != here:
        why = "what this user may read and write says nothing about what the service may"
        mend = f"runuser -u {service} -- python -m agent doctor --config FILE"
        return Finding("user", "warn", f"examined as {here}, but the service runs as {service}", why, mend)
    return Finding("user", "ok", f"examined as {here}" + (", as which the service runs" if service else ""))


def judge_unit(unit: str, shown: Properties) -> Finding:
    """Up, failed, or not started."""
    state, sub = shown.get("ActiveState", "unknown"), shown.get("SubState", "unknown")
    restarts = shown.get("NRestarts", "0")
    found = f"{unit} is {state} ({sub}), {restarts} restarts since it was started"
    name = "service"
    if state == "failed":
        why = f"nothing is read or published (result: {shown.get('Result', 'unknown')})"
        mend = f"journalctl -u {unit} -n 50; then systemctl reset-failed {unit} && systemctl start {unit}"
        return Finding(name, "fail", found, why, mend)
    if state == "activating":
        return Finding(name, "ok", f"{found}: an engine that has to be loaded or built takes its time")
    if state != "active":
        return Finding(name, "warn", found, "it does not run", f"systemctl enable --now {unit}")
    if shown.get("UnitFileState") != "enabled":
        return Finding(
            name, "warn", f"{found}, not enabled", "it does not come back after a reboot", f"systemctl enable {unit}"
        )
    if restarts != "0":
        mend = f"journalctl -u {unit} -p warning --since -1day"
        return Finding(name, "warn", found, "something ended it again and again", mend)
    return Finding(name, "ok", found)


def judge_watchdog(usec: str) -> Finding:
    """systemd prints a span ("30s"), "0" or "infinity"."""
    if usec in ("", "0", "infinity"):
        why = "an agent that hangs would hang until somebody notices"
        mend = f"systemctl edit {UNIT}   and write [Service] and WatchdogSec=30"
        return Finding("watchdog", "warn", "no WatchdogSec in the unit", why, mend)
    return Finding("watchdog", "ok", f"systemd restarts the agent when it does not answer for {usec}")
