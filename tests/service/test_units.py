"""The units and their companions: accepted by systemd's own tools, exposed little, and true to the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import build_parser
from agent.settings import PipelineSettings
from tests.brokers import need
from tests.service.seccomp import allowed_calls
from tests.service.units import NAMES, PREFIX, SYSTEMD, Unit, unit_of

DROP_INS = [
    *[(path.parent.name.removesuffix(".service.d"), path.stem) for path in SYSTEMD.glob("*.service.d/*.conf")],
]
THRESHOLD = 15
"""1.5, the most that `systemd-analyze security` may say of each unit."""


def with_real_programs(folder: Path, name: str, drop_in: str = "") -> Path:
    """A unit (with a drop-in) whose programs and folders exist here, since systemd looks for them."""
    place = folder / f"{name}.service"
    place.write_text((SYSTEMD / f"{name}.service").read_text().replace(f"{PREFIX}/bin/python", python()))
    if drop_in:
        (folder / f"{name}.service.d").mkdir()
        source = SYSTEMD / f"{name}.service.d" / f"{drop_in}.conf"
        (folder / f"{name}.service.d" / source.name).write_text(source.read_text())
    return place


def mode(path: Path) -> int:
    """Its permission bits."""
    return path.stat().st_mode & 0o777


def systemd(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of systemd's tools to its end."""
    return subprocess.run([need(program, "systemd"), *words], capture_output=True, text=True, check=False)


def python() -> str:
    """This interpreter's real path."""
    return str(Path(sys.executable).resolve())


@pytest.mark.parametrize(("name", "drop_in"), [*[(name, "") for name in NAMES], *DROP_INS])
def test_systemd_accepts_the_unit(name: str, drop_in: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown key and no wrong value, with each of our drop-ins."""
    unit = with_real_programs(tmp_path, name, drop_in)
    done = systemd("systemd-analyze", "verify", "--man=no", unit)
    assert [line for line in done.stderr.splitlines() if name in line] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "drop_in"), [*[(name, "") for name in NAMES], *DROP_INS])
def test_the_exposure_is_low(name: str, drop_in: str, tmp_path: Path) -> None:
    """`systemd-analyze security` rates each unit at 1.5 or less, with each of our drop-ins as well."""
    unit = with_real_programs(tmp_path, name, drop_in)
    done = systemd("systemd-analyze", "security", "--offline=true", f"--threshold={THRESHOLD}", "--no-pager", unit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"exposure level for {name}.service" in done.stdout
    if drop_in == "gpu":
        assert "✗ PrivateDevices=" in done.stdout, "the drop-in was not read"


def test_systemd_would_make_the_users() -> None:
    """`systemd-sysusers` understands the file, and it makes every user that a unit names, each in its own group."""
    path = SYSTEMD / "sysusers.d" / "spinextract-agent.conf"
    done = systemd("systemd-sysusers", "--dry-run", path)
    assert done.returncode == 0, done.stderr
    made = {line.split()[1] for line in path.read_text().splitlines() if line.startswith("u ")}
    assert {unit_of(name).one(key) for name in NAMES for key in ("User", "Group")} == made


def test_systemd_would_make_the_folders(tmp_path: Path) -> None:
    """`systemd-tmpfiles` makes the folders, and only root enters the one of the secrets."""
    lines = (SYSTEMD / "tmpfiles.d" / "spinextract-agent.conf").read_text()
    config = tmp_path / "ours.conf"
    config.write_text(lines.replace(" spinextract spinextract ", " - - "))
    root = tmp_path / "root"
    root.mkdir()
    done = systemd("systemd-tmpfiles", "--create", f"--root={root}", config)
    assert done.returncode == 0, done.stderr
    assert mode(root / "etc/spinextract-agent") == 0o755
    assert mode(root / "var/lib/spinextract-agent") == 0o700
    for name in NAMES:
        (credential,) = unit_of(name).words("LoadCredential")
        folder = root / credential.partition(":")[2].lstrip("/")
        assert folder.is_dir() and mode(folder.parent) == 0o700


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_fits_the_program(name: str) -> None:
    """The command exists, readiness is told, and a restart comes only where it can help."""
    unit = unit_of(name)
    program, dash_m, package, *words = unit.words("ExecStart")
    assert (program, dash_m, package) == (f"{PREFIX}/bin/python", "-m", "agent")
    args = build_parser(words[0]).parse_args(words)
    assert args.config == Path("/etc/spinextract-agent/agent.yaml")
    assert (unit.one("Type"), unit.one("NotifyAccess")) == ("notify", "main")
    assert unit.one("RestartPreventExitStatus") == "2" and unit.one("Restart") in ("on-failure", "always")
    assert int(unit.one("StartLimitBurst", "Unit")) * int(unit.one("RestartSec")) < int(
        unit.one("StartLimitIntervalSec", "Unit")
    )
    assert unit.one("LimitCORE") == "0"


def test_the_agent_has_time_to_stop() -> None:
    """systemd kills no agent that still finishes what is in hand, nor one that is slow within its watchdog."""
    unit = unit_of("spinextract-agent")
    assert int(unit.one("TimeoutStopSec")) >= 2 * PipelineSettings().stop_limit_s
    assert int(unit.one("WatchdogSec")) >= 30
    assert unit.one("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert "network-online.target" in unit.words("After", "Unit")


def test_the_agent_comes_first() -> None:
    """When processors or memory are short, dashboard and DICOM results step back."""
    agent, *others = (unit_of(name) for name in NAMES)
    for other in others:
        assert int(other.one("CPUWeight")) * 10 <= int(agent.one("CPUWeight"))
        assert int(other.one("OOMScoreAdjust")) > int(agent.one("OOMScoreAdjust"))
        assert other.one("MemoryMax") and int(other.one("Nice")) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_root_is_really_empty(name: str) -> None:
    """ProtectSystem=strict would put a read-only "/" in the place of the empty one: seen with systemd 252."""
    unit = unit_of(name)
    assert unit.words("TemporaryFileSystem") == ["/:ro"]
    assert unit.one("ProtectSystem") == "full"
    assert "/run/systemd/notify" in unit.words("BindReadOnlyPaths")


def test_the_dashboard_cannot_reach_what_is_the_agents() -> None:
    """Another user, and neither the state folder nor images among the files that it sees."""
    dashboard, agent = unit_of("spinextract-dashboard"), unit_of("spinextract-agent")
    assert dashboard.one("User") != agent.one("User")
    seen = {path.removeprefix("-") for path in dashboard.words("BindReadOnlyPaths") + dashboard.words("BindPaths")}
    assert not {path for path in seen if path.startswith(("/var", "/mnt", "/media", "/srv"))}
    assert dashboard.words("LoadCredential") != agent.words("LoadCredential")


@pytest.mark.parametrize("name", NAMES)
def test_only_needed_calls_are_left(name: str) -> None:
    """What the filter leaves has neither tracing nor mounting, modules, clocks, keys or raw devices in it."""
    forbidden = {
        "ptrace", "mount", "umount2", "init_module", "finit_module", "kexec_load", "reboot",
        "bpf", "perf_event_open", "keyctl", "add_key", "settimeofday", "clock_settime", "iopl", "ioperm", "swapon",
        "setuid", "setresuid", "chroot", "pivot_root", "userfaultfd", "io_uring_setup", "sched_setscheduler",
    }  # fmt: skip
    assert not forbidden & allowed_calls(unit_of(name))


def test_the_folder_drop_in_leaves_one_folder() -> None:
    """folder.conf hides /mnt, /media and /srv, and keeps everything else that the unit shows."""
    plain, narrowed = (set(unit.words("BindReadOnlyPaths")) for unit in (
        unit_of("spinextract-agent"), unit_of("spinextract-agent", "folder")
    ))  # fmt: skip
    assert narrowed - plain == {"/srv/imager"}
    assert plain - narrowed == {"-/mnt", "-/media", "-/srv"}


def test_an_empty_value_forgets_what_came_before(tmp_path: Path) -> None:
    """Our reading of units adds lists up and resets them as systemd does."""
    file = tmp_path / "some.service"
    file.write_text("[Service]\n# no\nBindPaths=/a /b\nBindPaths=\nBindPaths=/c\nBindPaths=/d\nNice=1\nNice=2\n")
    unit = Unit(file)
    assert unit.words("BindPaths") == ["/c", "/d"]
    assert (unit.one("Nice"), unit.one("User")) == ("2", "")
