"""Which processor or card this is, as far as a compiled engine cares: its model and what kernels are picked by.

Also which devices may be asked for. Must not know backends; torch is imported only to ask about a card.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import MutableMapping
from pathlib import Path

from agent.engine.backend import kind_of
from models.profile import Frozen

_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/version")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = re.compile(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)*)\s", re.MULTILINE)
_DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?")
NO_CARD = "no CUDA device"
_X86 = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni")
_AMX = ("amx_tile", "amx_bf16", "amx_int8")
_ARM = ("asimd", "bf16", "i8mm", "sve")
_MODEL_FIELDS = ("model name", "CPU implementer", "CPU part")
"""x86 names its model; ARM gives numbers."""


class Device(Frozen):
    """What an engine was built on and is bound to."""

    kind: str
    model: str
    instructions: tuple[str, ...]
    """Those that change which kernels are chosen, sorted; of a card its capability, e.g. `sm_90`."""
    driver: str = ""
    """Version of the card's driver."""


def parse_cpuinfo(text: str) -> Device:
    """The first processor of a /proc/cpuinfo text; empty strings where it says nothing."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    model = " ".join(fields[name] for name in _MODEL_FIELDS if name in fields)
    return Device(kind="cpu", model=model, instructions=tuple(sorted({*_X86, *_AMX, *_ARM}.intersection(flags))))


def parse_driver(text: str) -> str:
    """The version in a /proc/driver/nvidia/version text, e.g. `570.86.10`; empty where it says nothing."""
    found = _DRIVER.search(text)
    return found[1] if found else ""


def this_device(kind: str) -> Device:
    """This machine's device of a kind: its processor, or the first card that this process sees."""
    return _this_card() if kind_of(kind) == "cuda" else this_cpu()


def select(device: str, environment: MutableMapping[str, str] | None = None) -> str:
    """The kind of a device that was asked for: `cpu`, `cuda`, or `cuda:N`, whose card is then the only one that this
    process and its children see. To be called before the first use of CUDA. Raises ValueError for anything else.
    """
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise ValueError(f"unknown device {device!r}; known: cpu, cuda, cuda:N")
    if found[1] is not None:
        environment = os.environ if environment is None else environment
        number, visible = int(found[1]), environment.get(_VISIBLE)
        cards = visible.split(",") if visible else None
        if visible == "" or (cards and number >= len(cards)):
            raise ValueError(f"device {device!r} is not among those of {_VISIBLE}={visible!r}")
        environment[_VISIBLE] = cards[number].strip() if cards else str(number)
    return kind_of(device)


def cuda_missing() -> str | None:
    """Why this process can use no card, in one line; None when it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: pip install torch"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install torch for CUDA (pytorch.org)"
    return None if torch.cuda.is_available() else "torch finds no CUDA device: see `nvidia-smi`"


def _this_card() -> Device:
    driver = parse_driver(_NVIDIA.read_text()) if _NVIDIA.exists() else ""
    if cuda_missing():
        return Device(kind="cuda", model=NO_CARD, instructions=(), driver=driver)
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    model = torch.cuda.get_device_name(0)
    return Device(kind="cuda", model=model, instructions=(f"sm_{major}{minor}",), driver=driver)


def this_cpu() -> Device:
    """This machine's processor."""
    return parse_cpuinfo(_CPUINFO.read_text() if _CPUINFO.exists() else "")
