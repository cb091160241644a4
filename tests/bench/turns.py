"""Measurements in processes of their own, each in a quiet moment: thread pools and allocators must not meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.bench.machine import Spent, company
from tests.system.processes import ROOT

LIMIT_S = 1200.0
TRIES = 6
COMPANY_LIMIT = 0.05
"""A run is repeated when others took more of the processor than this share. Waiting threads make the published way
several times slower on a busy machine, which would flatter us."""

Found = TypeVar("Found")


def undisturbed(run: Callable[[], Found], tries: int = TRIES) -> Found:
    """One run in a quiet moment; on a machine that has none, the last of some."""
    for left in reversed(range(tries)):
        before = Spent.now()
        found = run()
        if not left or company(before, Spent.now(), os.cpu_count() or 1) <= COMPANY_LIMIT:
            return found
    raise ValueError("not even one try")


def in_a_process(module: str, *words: str | Path | float, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON that `python -m MODULE WORDS` prints; raises RuntimeError with its last word when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"{module} {' '.join(map(str, words[:1]))}: {last}")
    return json.loads(done.stdout)
