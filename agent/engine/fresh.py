"""A fresh process loads an engine and runs the golden inputs in batches that are filled more or less.

`python -m agent.engine.fresh --profile DIR --engine DIR --threads N` prints digests as JSON; the build compares them
with its own. Nothing of the building process, its libraries' state included, is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine import open_built, predict_padded
from agent.engine.backend import Engine
from agent.engine.figures import GateFigure
from agent.engine.gates import GateFailedError
from agent.errors import AgentError
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile

LIMIT_S = 300
_PACKAGES = Path(__file__).parents[2]
_GROUPS = 4
"""Most batches that are run at each fill."""


def fills(batch_size: int) -> list[int]:
    """How many rows of a batch hold inputs: one, half, all; zeros fill the rest."""
    return sorted({1, max(1, batch_size // 2), batch_size})


def row_digests(engine: Engine, golden: NDArray[np.uint16]) -> dict[int, list[str]]:
    """Fill → sha256 (hex) of everything that each golden input gives, in order, as far as it was run."""
    found: dict[int, list[str]] = {}
    for fill in fills(engine.batch_size):
        rows = np.resize(golden, (min(max(len(golden), fill), _GROUPS * fill), *golden.shape[1:]))
        found[fill] = []
        for start in range(0, len(rows), fill):
            prediction = predict_padded(engine, rows[start : start + fill])
            parts = [prediction[name] for name in sorted(prediction)]
            found[fill] += [_digest(part[row] for part in parts) for row in range(len(parts[0]))]
    return found


def reload_gate(
    profile_dir: Path, profile: LoadedProfile, folder: Path, engine: Engine, threads: int
) -> list[GateFigure]:
    """The same bits from a fresh process, at every fill of a batch."""
    there = _in_fresh_process(profile_dir, folder, threads)
    here = row_digests(engine, profile.golden_inputs)
    full = here[engine.batch_size]
    lists = [*here.values(), *there.values()]
    others = sum(digest != full[row] for digests in lists for row, digest in enumerate(digests))
    words = f"rows with other bits, here and in a fresh process, filled by {', '.join(map(str, here))}"
    if list(there) != list(here) or not all(lists):
        raise GateFailedError("reload", f"a fresh process filled batches by {list(there)}, not {list(here)}")
    return [GateFigure(gate="reload", measure=words, figure=others, bound="at most", limit=0)]


def _in_fresh_process(profile_dir: Path, folder: Path, threads: int) -> dict[int, list[str]]:
    command = [sys.executable, "-m", "agent.engine.fresh", "--profile", str(profile_dir), "--engine", str(folder)]
    paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [*command, "--threads", str(threads)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GateFailedError("reload", f"a fresh process took more than {LIMIT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise GateFailedError("reload", lines[-1])
    return {int(fill): digests for fill, digests in json.loads(done.stdout).items()}


def _digest(rows: Iterable[NDArray[np.float32]]) -> str:
    return hashlib.sha256(b"".join(row.tobytes() for row in rows)).hexdigest()


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m agent.engine.fresh", description=__doc__)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    try:
        profile = load_profile_folder(args.profile)
        engine = open_built(profile, args.engine, args.threads, unproven=True)
    except AgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(row_digests(engine, profile.golden_inputs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
