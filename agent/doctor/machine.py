"""The machine itself: clock, processor, memory, graphics card, libraries."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import agent
from agent.doctor.finding import Finding
from agent.settings import Settings
from agent.speech import DISTRIBUTION

LOW_MEMORY_BYTES = 1 << 30
FAST_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")
"""Processor features that engines use, the most useful first."""
TOLD = ("numpy", "torch", "openvino", "tifffile", "imagecodecs", "pydicom", "paho-mqtt", "watchdog", "pydantic")
_UNSYNCHRONISED = 0x40  # STA_UNSYNC, adjtimex(2)
_TIMEX = "I4xqqqqi"  # modes, offset, freq, maxerror, esterror, status: the head of struct timex on 64 bits
PROGRAM_S = 3.0


def look_at_clock(_: Settings) -> Iterator[Finding]:
    """Whether the time can be right, and whether somebody keeps it right."""
    now, installed = time.time(), Path(agent.__file__).stat().st_mtime
    yield judge_clock(now, installed, kernel_synchronised(), Path("/run/systemd/timesync/synchronized").exists())


def kernel_synchronised() -> bool | None:
    """What the kernel was told by whoever sets the clock (chrony, ntpd, timesyncd); None when it does not say."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return None
    *_, status = struct.unpack_from(_TIMEX, buffer)
    return not status & _UNSYNCHRONISED


def judge_clock(now: float, installed: float, kernel: bool | None, timesyncd: bool) -> Finding:
    """A time before the agent was installed is wrong; one that nobody keeps will be."""
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    mend = "timedatectl set-ntp true   (or set up chrony with the hospital's time server)"
    if now < installed:
        why = "times in results are wrong, and certificates look as if they were not valid yet"
        return Finding("clock", "fail", f"{shown}, which is before this program was installed", why, mend)
    if kernel or timesyncd:
        return Finding("clock", "ok", f"{shown}, synchronised")
    if kernel is None:
        return Finding("clock", "ok", f"{shown}; whether it is synchronised cannot be seen here")
    why = "times in results drift away from those of other systems, and certificates seem to end too soon or late"
    return Finding("clock", "warn", f"{shown}, not synchronised", why, mend)


def look_at_processor(settings: Settings) -> Iterator[Finding]:
    """Cores that this process may use, features, and the engine's threads."""
    cores = len(os.sched_getaffinity(0))
    yield judge_processor(Path("/proc/cpuinfo").read_text(), cores, settings.engine.threads)


def judge_processor(cpuinfo: str, cores: int, threads: int) -> Finding:
    """More threads than cores slow an engine down; without its features reduced precision gains nothing."""
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.M)
    flags = re.search(r"^flags\s*: (.+)$", cpuinfo, re.M)
    held = set(flags[1].split()) if flags else set()
    fast = [flag for flag in FAST_FLAGS if flag in held]
    found = f"{model[1] if model else platform.machine()}, {cores} cores, {' '.join(fast) or 'no fast features'}"
    if threads > cores:
        why = "threads that share a core wait for each other"
        return Finding("processor", "warn", f"engine.threads is {threads}; {found}", why, "set engine.threads to 0")
    return Finding("processor", "ok", found)


def look_at_memory(_: Settings) -> Iterator[Finding]:
    """Memory that programs may still have."""
    yield judge_memory(Path("/proc/meminfo").read_text())


def judge_memory(meminfo: str) -> Finding:
    """From /proc/meminfo."""
    sizes = {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.M)}
    found = f"{sizes['MemAvailable'] / 2**30:.1f} of {sizes['MemTotal'] / 2**30:.1f} GiB available"
    if sizes["MemAvailable"] < LOW_MEMORY_BYTES:
        why = "the engine needs some hundred MiB, a large mosaic more; the kernel ends what asks for too much"
        return Finding("memory", "warn", found, why, "ps aux --sort=-rss | head   shows what takes it")
    return Finding("memory", "ok", found)


def look_at_gpu(_: Settings) -> Iterator[Finding]:
    """NVIDIA cards, when there are any; none are needed."""
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    program = shutil.which("nvidia-smi")
    if program is None:
        yield judge_gpu(devices, None)
        return
    words = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    yield judge_gpu(devices, done.stdout if done.returncode == 0 else "")


def judge_gpu(devices: list[str], said: str | None) -> Finding:
    """From the devices and what nvidia-smi said: None when it is not there, nothing when it failed."""
    cards = [line.strip() for line in (said or "").splitlines() if line.strip()]
    why = "engines built for a card cannot run; those for the processor can"
    if said == "":
        mend = "nvidia-smi; dmesg | grep -i nvrm   (a driver update needs a reboot)"
        return Finding("gpu", "warn", "nvidia-smi fails: driver and kernel module do not fit", why, mend)
    if cards and not devices:
        mend = "nvidia-modprobe -u -c=0   (as root), and add it to the boot"
        return Finding("gpu", "warn", f"{'; '.join(cards)}, but there is no /dev/nvidia0", why, mend)
    return Finding("gpu", "ok", "; ".join(cards) or "no NVIDIA card: engines run on the processor")


def look_at_libraries(_: Settings) -> Iterator[Finding]:
    """Python and what the agent needs of it."""
    needed = [line for line in requires(DISTRIBUTION) or () if "extra ==" not in line]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed]
    missing = [name for name in names if _version(name) is None]
    if missing:
        why = "the agent cannot run without them"
        mend = f"pip install --constraint constraints.txt {' '.join(missing)}"
        yield Finding("libraries", "fail", f"missing: {', '.join(missing)}", why, mend)
        return
    told = [f"{name} {found}" for name in TOLD if (found := _version(name)) is not None]
    own = f"{DISTRIBUTION} {version(DISTRIBUTION)}, Python {platform.python_version()}"
    yield Finding("libraries", "ok", f"{own}; {', '.join(told)}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
