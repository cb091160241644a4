"""agent.engine.device: what is read of the processor and of a card's driver, and which devices may be asked for."""

from __future__ import annotations

import pytest
import torch

from agent.engine.device import (
    NO_CARD,
    Device,
    cuda_missing,
    parse_cpuinfo,
    parse_driver,
    select,
    this_cpu,
    this_device,
)

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
    assert this_device("cpu") == this_cpu()


DRIVERS = {
    "proprietary": (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
        "550.54.15",
    ),
    "open": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs)  Thu Jan 23\n",
        "570.86.10",
    ),
    "two numbers": ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  545.23  Mon Nov  6\n", "545.23"),
    "another file": ("GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n", ""),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("text", "expected"), DRIVERS.values(), ids=DRIVERS)
def test_driver(text: str, expected: str) -> None:
    """The driver's version, of either kind of module; nothing where the file says nothing."""
    assert parse_driver(text) == expected


def test_a_card_that_is_not_there() -> None:
    """Asked for a card, a machine without one says so instead of failing: no engine of a card matches it."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    device = this_device("cuda")
    assert (device.kind, device.model, device.instructions) == ("cuda", NO_CARD, ())
    reason = cuda_missing()
    assert reason and "\n" not in reason and "CUDA" in reason


SELECTIONS = [
    ("cpu", None, "cpu", None),
    ("cuda", None, "cuda", None),
    ("cuda", "3", "cuda", "3"),
    ("cuda:0", None, "cuda", "0"),
    ("cuda:2", None, "cuda", "2"),
    ("cuda:1", "4,6", "cuda", "6"),
    ("cuda:1", "GPU-aa, GPU-bb", "cuda", "GPU-bb"),
]


@pytest.mark.parametrize(("device", "visible", "kind", "left"), SELECTIONS)
def test_selecting(device: str, visible: str | None, kind: str, left: str | None) -> None:
    """Of several cards the one that was asked for is the only one seen afterwards, and is then the first."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert select(device, environment) == kind
    assert environment.get("CUDA_VISIBLE_DEVICES") == left


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "cuda:1 "])
def test_unknown_devices(device: str) -> None:
    """Anything else raises ValueError that names the known ones."""
    with pytest.raises(ValueError, match="known: cpu, cuda, cuda:N"):
        select(device, {})


@pytest.mark.parametrize("visible", ["", "0", "0,1"])
def test_a_card_that_is_hidden(visible: str) -> None:
    """A card beyond those that the environment shows raises ValueError."""
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        select("cuda:2", {"CUDA_VISIBLE_DEVICES": visible})
