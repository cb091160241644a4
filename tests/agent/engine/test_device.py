"""agent.engine.device: what is read from /proc/cpuinfo."""

from __future__ import annotations

from agent.engine.device import Device, parse_cpuinfo, this_cpu

X86 = """processor\t: 0
model name\t: AMD EPYC 9B14
flags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16 avx512_vnni
processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd bf16 i8mm aes
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_x86() -> None:
    """The first processor's model and the instructions that matter, sorted."""
    expected = ("avx2", "avx512_bf16", "avx512_vnni", "avx512f", "fma")
    assert parse_cpuinfo(X86) == Device(kind="cpu", model="AMD EPYC 9B14", instructions=expected)


def test_arm() -> None:
    """ARM has no model name: implementer and part stand for it."""
    assert parse_cpuinfo(ARM) == Device(kind="cpu", model="0x41 0xd40", instructions=("asimd", "bf16", "i8mm"))


def test_nothing_known() -> None:
    """An empty text gives an empty device, not an error."""
    assert parse_cpuinfo("") == Device(kind="cpu", model="", instructions=())


def test_this_machine() -> None:
    """Asking twice gives the same device: an engine built now is valid now."""
    assert this_cpu() == this_cpu()
