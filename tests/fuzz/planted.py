"""Targets that break their promise in one case, to see that a campaign notices (test_campaign.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.target import Target

BAD = 130
"""The number of the case that does harm: behind the warm-up, so that all limits are in place."""


class _Planted(Target):
    def case(self, seed: int, index: int) -> bytes:
        """Good ones but for one."""
        return b"bad" if index == BAD else b"good"


def _planted(name: str, harm: Callable[[], object]) -> Target:
    def check(case: bytes) -> str:
        if case == b"bad":
            harm()
        return case.decode()

    return _Planted(f"tests.fuzz.planted:{name}", "none", lambda rng: b"", check, 0.0)


def _waste(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


RAISES = _planted("RAISES", lambda: os.environ["NO_SUCH_VARIABLE"])
DIES = _planted("DIES", os.abort)
HANGS = _planted("HANGS", lambda: _waste(1e9))
DAWDLES = _planted("DAWDLES", lambda: _waste(1.2))
EATS = _planted("EATS", lambda: bytes(100 << 20).replace(b"\0", b"\1"))
CLAIMS = _planted("CLAIMS", lambda: bytearray(1 << 34))
ESCAPES = _planted("ESCAPES", lambda: Path("/etc/hostname").read_bytes())
LISTS = _planted("LISTS", lambda: list(Path("/").iterdir()))
