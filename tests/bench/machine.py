"""The machine under the figures: what it is, and how fast it can multiply at best.

A rate means little without the arithmetic that it needs and the peak that was there at that moment.
"""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agent.engine.device import this_cpu
from agent.engine.eager import import_torch, load_network
from models.profile import LoadedProfile
from models.registry import MODALITIES

LIBRARIES = ("torch", "openvino", "numpy", "tifffile", "pydicom", "paho-mqtt")
PEAK_SIDES = (512, 1024, 2048)
"""Square matrices to try: the best size differs between processors."""
PEAK_S = 0.6
"""Seconds spent on each size."""
MACHINE_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
"""Precisions whose peak torch can measure on a processor, by the name of its type."""


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


def peak_gflops(precision: str) -> float:
    """The best rate of a plain matrix product on every core, 10⁹ operations a second.

    Each size counts by the median of its products: what can be kept up, not a lucky moment.
    """
    torch = import_torch()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = getattr(torch, MACHINE_PRECISIONS[precision])
    return max(2 * side**3 / _product_s(torch, side, dtype) / 1e9 for side in PEAK_SIDES)


def _product_s(torch: Any, side: int, dtype: Any) -> float:
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    out = torch.empty(side, side, dtype=dtype)
    torch.mm(a, b, out=out)
    times: list[float] = []
    while sum(times) < PEAK_S:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - started)
    return float(np.median(times))
