"""Compiles a unit's rules about system calls into kernel filters, with the library that systemd uses for it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from tests.brokers import need
from tests.service.units import Unit

ALLOW = 0x7FFF0000
LESS, EQUAL, GREATER, MASKED = 2, 4, 6, 7  # scmp_compare of seccomp.h
NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000


def _deny(number: int) -> int:
    return 0x00050000 | number


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        if os.environ.get("CI"):
            pytest.fail("libseccomp.so.2 not installed: apt-get install libseccomp2")
        pytest.skip("libseccomp.so.2 not installed: apt-get install libseccomp2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    return library


class Filter:
    """One filter program: what happens by default, and rules that say otherwise."""

    def __init__(self, default: int) -> None:
        """`default` happens to every call that no rule knows."""
        self._context = _library().seccomp_init(default)
        assert self._context

    def rule(self, action: int, call: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Do `action` on a call whose arguments compare so: (argument, operator, a, b). Unknown calls are skipped."""
        number = _library().seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            array = (_Comparison * len(comparisons))(*(_Comparison(*each) for each in comparisons))
            done = _library().seccomp_rule_add_array(self._context, action, number, len(comparisons), array)
            assert done == 0, f"{call}: {os.strerror(-done)}"

    def program(self) -> int:
        """A descriptor of the compiled program, at its beginning."""
        with tempfile.TemporaryFile() as file:
            assert _library().seccomp_export_bpf(self._context, file.fileno()) == 0
            _library().seccomp_release(self._context)
            file.seek(0)
            return os.dup(file.fileno())


@cache
def group(name: str) -> frozenset[str]:
    """The calls of a group such as @system-service, by systemd's own list."""
    words = [need("systemd-analyze", "systemd"), "syscall-filter", "--no-pager", name]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    return expanded(line for line in lines if line and not line.startswith("#"))


def expanded(names: Iterable[str]) -> frozenset[str]:
    """Groups replaced by their calls."""
    return frozenset(call for name in names for call in (group(name) if name.startswith("@") else {name}))


def allowed_calls(unit: Unit) -> frozenset[str]:
    """What SystemCallFilter= leaves: allowed groups, less the lines with ~, plus what systemd always allows."""
    allowed: frozenset[str] = group("@default")
    for line in unit.lines("SystemCallFilter"):
        if line.startswith("~"):
            allowed -= expanded(line[1:].split())
        else:
            allowed |= expanded(line.split())
    return allowed


def filters_of(unit: Unit) -> list[int]:
    """Descriptors of the filter programs that the unit asks for."""
    programs = [_calls(unit), _families(unit)]
    if unit.yes("RestrictNamespaces"):
        programs.append(_namespaces())
    if unit.yes("MemoryDenyWriteExecute"):
        programs.append(_write_or_execute())
    return programs


def _calls(unit: Unit) -> int:
    denied = Filter(_deny(getattr(errno, unit.one("SystemCallErrorNumber"))))
    for call in sorted(allowed_calls(unit)):
        denied.rule(ALLOW, call)
    return denied.program()


def _families(unit: Unit) -> int:
    numbers = sorted(FAMILIES[name] for name in unit.words("RestrictAddressFamilies"))
    filter_ = Filter(ALLOW)
    refusal = _deny(errno.EAFNOSUPPORT)
    filter_.rule(refusal, "socket", (0, LESS, numbers[0], 0))
    filter_.rule(refusal, "socket", (0, GREATER, numbers[-1], 0))
    for number in set(range(numbers[0], numbers[-1])) - set(numbers):
        filter_.rule(refusal, "socket", (0, EQUAL, number, 0))
    return filter_.program()


def _namespaces() -> int:
    filter_ = Filter(ALLOW)
    filter_.rule(_deny(errno.ENOSYS), "clone3")  # its flags are out of a filter's reach
    filter_.rule(_deny(errno.EPERM), "setns", (1, EQUAL, 0, 0))
    for flag in NAMESPACES.values():
        for call in ("clone", "unshare", "setns"):
            filter_.rule(_deny(errno.EPERM), call, (int(call == "setns"), MASKED, flag, flag))
    return filter_.program()


def _write_or_execute() -> int:
    filter_ = Filter(ALLOW)
    both = PROT_WRITE | PROT_EXEC
    filter_.rule(_deny(errno.EPERM), "mmap", (2, MASKED, both, both))
    for call, flag in (("mprotect", PROT_EXEC), ("pkey_mprotect", PROT_EXEC), ("shmat", SHM_EXEC)):
        filter_.rule(_deny(errno.EPERM), call, (2, MASKED, flag, flag))
    return filter_.program()
