"""Promises of doctor about the machine: clock, processor, memory, card, libraries, services."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.doctor.machine import (
    judge_clock,
    judge_gpu,
    judge_memory,
    judge_processor,
    kernel_synchronised,
    look_at_clock,
    look_at_gpu,
    look_at_libraries,
    look_at_memory,
    look_at_processor,
)
from agent.doctor.service import judge_unit, judge_user, judge_watchdog, look_at_services, show
from tests.agent.doctor.site import Site, only

YEAR_S = 365 * 86_400.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine."""
    return Site(tmp_path)


def test_this_machine_can_be_looked_at(site: Site) -> None:
    """Each check finds something real here, and none takes the machine for unusable."""
    for check, look in (
        ("clock", look_at_clock),
        ("processor", look_at_processor),
        ("memory", look_at_memory),
        ("gpu", look_at_gpu),
        ("libraries", look_at_libraries),
        ("user", look_at_services),
    ):
        finding = only(site.look(look), check)
        assert finding.verdict in ("ok", "warn")
        assert finding.found
    assert kernel_synchronised() in (True, False, None)


@pytest.mark.parametrize(
    ("now", "kernel", "timesyncd", "verdict", "told"),
    [
        (56 * YEAR_S, True, False, "ok", "synchronised"),
        (56 * YEAR_S, False, True, "ok", "synchronised"),
        (56 * YEAR_S, None, False, "ok", "cannot be seen"),
        (56 * YEAR_S, False, False, "warn", "not synchronised"),
        (1 * YEAR_S, True, True, "fail", "before this program was installed"),
    ],
)
def test_a_clock_is_judged(now: float, kernel: bool | None, timesyncd: bool, verdict: str, told: str) -> None:
    """A time before the installation is wrong whatever anybody says; one that nobody keeps is a warning."""
    finding = judge_clock(now, 55 * YEAR_S, kernel, timesyncd)
    assert finding.verdict == verdict
    assert told in finding.found


def test_more_threads_than_cores_warn() -> None:
    """Features that engines use are told in their order; too many threads wait for each other."""
    cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n"
    assert judge_processor(cpuinfo, 4, 0).found == "Some CPU, 4 cores, amx_bf16 avx512_bf16 avx512f avx2"
    finding = judge_processor(cpuinfo, 2, 8)
    assert (finding.verdict, finding.mend) == ("warn", "set engine.threads to 0")
    assert "no fast features" in judge_processor("", 2, 0).found


@pytest.mark.parametrize(("available_mib", "verdict"), [(4096, "ok"), (1023, "warn")])
def test_little_memory_warns(available_mib: int, verdict: str) -> None:
    """Less than 1 GiB available is a warning."""
    finding = judge_memory(f"MemTotal: 8388608 kB\nMemAvailable: {1024 * available_mib} kB\n")
    assert finding.verdict == verdict
    assert "of 8.0 GiB available" in finding.found


@pytest.mark.parametrize(
    ("devices", "said", "verdict", "told"),
    [
        ([], None, "ok", "no NVIDIA card"),
        (["nvidia0"], "NVIDIA T4, 535.1, 15360 MiB\n", "ok", "NVIDIA T4, 535.1, 15360 MiB"),
        ([], "NVIDIA T4, 535.1, 15360 MiB\n", "warn", "no /dev/nvidia0"),
        (["nvidia0"], "", "warn", "nvidia-smi fails"),
    ],
)
def test_a_card_is_judged(devices: list[str], said: str | None, verdict: str, told: str) -> None:
    """No card is no fault; one whose driver fails or whose device is missing is."""
    finding = judge_gpu(devices, said)
    assert finding.verdict == verdict
    assert told in finding.found


UP = {"ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NRestarts": "0"}


@pytest.mark.parametrize(
    ("changes", "verdict", "told"),
    [
        ({}, "ok", "is active (running)"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "fail", "result: watchdog"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "warn", "enable --now"),
        ({"ActiveState": "activating", "SubState": "start"}, "ok", "takes its time"),
        ({"UnitFileState": "disabled"}, "warn", "reboot"),
        ({"NRestarts": "3"}, "warn", "3 restarts"),
    ],
)
def test_a_unit_is_judged(changes: dict[str, str], verdict: str, told: str) -> None:
    """Failed, stopped, not enabled, restarting: each has its own remedy."""
    finding = judge_unit("spinextract-agent.service", {**UP, **changes})
    assert finding.verdict == verdict
    assert told in finding.found + finding.why + finding.mend


@pytest.mark.parametrize(("usec", "verdict"), [("30s", "ok"), ("0", "warn"), ("infinity", "warn"), ("", "warn")])
def test_a_unit_without_a_watchdog_warns(usec: str, verdict: str) -> None:
    """systemd must notice an agent that hangs."""
    assert judge_watchdog(usec).verdict == verdict


def test_looking_with_other_eyes_warns() -> None:
    """Root may read everything: examined as somebody else than the service, doctor says how to do it right."""
    assert judge_user("spinextract", "spinextract").verdict == "ok"
    assert judge_user(None, "root").verdict == "ok"
    finding = judge_user("spinextract", "root")
    assert finding.verdict == "warn" and finding.mend.startswith("runuser -u spinextract")


def test_a_machine_without_systemd_has_no_units(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Where there is no systemctl the agent is started by hand, which is no fault."""
    monkeypatch.setenv("PATH", str(site.home))
    assert show("spinextract-agent.service") is None
    assert "by hand" in only(site.look(look_at_services), "service").found
