"""Which processor this is, as far as a compiled engine cares: its model and the instructions that kernels pick by."""

from __future__ import annotations

from pathlib import Path

from models.profile import Frozen

_CPUINFO = Path("/proc/cpuinfo")
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
    """Those that change which kernels are chosen, sorted."""


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


def this_cpu() -> Device:
    """This machine's processor."""
    return parse_cpuinfo(_CPUINFO.read_text() if _CPUINFO.exists() else "")
