"""The systemd unit and its user: accepted by systemd's own tools, and true to what the program expects."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

from tests.brokers import need

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "spinextract-agent.service"


class _Keys(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        """Keep the case of keys."""
        return optionstr


def unit() -> _Keys:
    """The unit's settings (no key in it is given twice)."""
    parsed = _Keys(interpolation=None)
    parsed.read_string(UNIT.read_text())
    return parsed


def installed(folder: Path) -> Path:
    """The unit with this interpreter in the place of the installed one, which systemd wants to find."""
    python = unit()["Service"]["ExecStart"].split()[0]
    copy = folder / UNIT.name
    copy.write_text(UNIT.read_text().replace(python, str(Path(sys.executable).resolve())))
    return copy


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown key, wrong value or missing file."""
    program = need("systemd-analyze", "systemd")
    done = subprocess.run([program, "verify", installed(tmp_path)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


def test_the_exposure_stays_moderate(tmp_path: Path) -> None:
    """`systemd-analyze security` rates the unit below 4.5 (hardening proper has its own issue)."""
    program = need("systemd-analyze", "systemd")
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=45", installed(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_would_make_the_user() -> None:
    """`systemd-sysusers` understands the file, and it makes the user that the unit names."""
    program = need("systemd-sysusers", "systemd")
    path = SYSTEMD / "sysusers.d" / "spinextract-agent.conf"
    done = subprocess.run([program, "--dry-run", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    user = unit()["Service"]["User"]
    assert any(line.startswith(f"u {user} ") for line in path.read_text().splitlines())


def test_the_unit_fits_the_program() -> None:
    """Ready when warm, watched, its own user and state, and a restart only where it can help."""
    service = unit()["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert int(service["WatchdogSec"]) == 30
    assert (service["User"], service["StateDirectory"]) == ("spinextract", "spinextract-agent")
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert service["ExecStart"].endswith(" -m agent run --config /etc/spinextract-agent/agent.yaml")
    assert "network-online.target" in unit()["Unit"]["After"].split()
