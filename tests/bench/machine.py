"""The machine under the figures: what it is, who else uses it, and what arithmetic a network asks of it."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from agent.engine.device import this_cpu
from agent.engine.eager import import_torch, load_network
from models.profile import LoadedProfile
from models.registry import MODALITIES

LIBRARIES = ("torch", "openvino", "numpy", "tifffile", "pydicom", "paho-mqtt")


def describe() -> dict[str, str]:
    """What a reader needs to place the figures, in words; no host name and no date."""
    cpu = this_cpu()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": cpu.model or platform.machine(),
        "instructions": " ".join(cpu.instructions),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f} runnable over the last minute",
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


class Spent(NamedTuple):
    """Clocks at one moment, seconds."""

    wall: float
    busy: float
    """Of all processors, by whomever; time stolen by a host counts (proc_stat(5))."""
    own: float
    """Of this process and its children; a child counts from its end on."""

    @classmethod
    def now(cls) -> Spent:
        """As the clocks stand."""
        return cls(time.monotonic(), _busy_s(), _own_s())


def company(before: Spent, after: Spent, cores: int) -> float:
    """What everybody else took of the processors between two moments, 0..1. Ticks are 10 ms: not for short times."""
    wall_s, busy_s, own_s = (late - early for early, late in zip(before, after, strict=True))
    return min(1.0, max(0.0, (busy_s - own_s) / (wall_s * cores)))


def _busy_s() -> float:
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rss_bytes(pid: int) -> int:
    """Resident memory of a process, bytes (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gflop_per_patch(profile: LoadedProfile) -> float:
    """Arithmetic of one patch, 10⁹ multiplications and additions, counted by torch while the network runs."""
    torch = import_torch()
    from torch.utils.flop_counter import FlopCounterMode

    prepare = MODALITIES[profile.spec.modality].to_network_input
    x_1CHW = torch.from_numpy(prepare(profile.spec, profile.golden_inputs[:1]))
    # The fused attention kernel hides its arithmetic from the counter.
    math_only = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), math_only, FlopCounterMode(display=False) as counter:
        load_network(profile)(x_1CHW)
    return float(counter.get_total_flops()) / 1e9
