"""What every scenario stands on, made once: the phantom profile with a quick engine, the shim, some pixels."""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.acquisition import render
from tests.faults.shim import build
from tests.system.processes import PROFILE, command

STRIPS = 4
"""Rendered strips of the synthetic phantom; slides are cut from them."""
BUILD = ("--backend", "openvino", "--precision", "fp32", "--batch", "4", "--threads", "1")
FEW = ("--patches", "4", "--slides", "1")


@dataclass(frozen=True)
class Ground:
    """A folder with what is made once."""

    folder: Path

    @property
    def profile(self) -> Path:
        """The phantom profile and an OpenVINO engine: it starts without torch, in half of eager's time."""
        return self.folder / "profile"

    @property
    def library(self) -> Path:
        """The preloaded library."""
        return self.folder / "shim.so"

    def strips(self) -> NDArray[np.uint16]:
        """Scan strips of the synthetic phantom: [N, 2, 2000, 1000]."""
        strips: NDArray[np.uint16] = np.load(self.folder / "strips.npy", mmap_mode="r")
        return strips

    @property
    def engine(self) -> dict[str, Any]:
        """The settings' section that takes this engine."""
        return {"order": ["openvino"], "threads": 1}


def prepare(folder: Path) -> Ground:
    """Make it, or take what another process of the same run has made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ground = Ground(folder)
        if not (folder / "ready").exists():
            shutil.copytree(PROFILE, ground.profile, ignore=shutil.ignore_patterns("engines"), dirs_exist_ok=True)
            built = command("agent.build_trt", "--profile", ground.profile, *BUILD, *FEW, "--json")
            assert built.returncode == 0, built.stderr
            np.save(folder / "strips.npy", np.stack(render(STRIPS)))
            build(folder)
            (folder / "ready").touch()
    return ground
