"""Finished files on disk → posterior: the agent's own code path beside the published way, in one run.

Every variant runs in a process of its own (`python -m tests.bench.pipeline`), so that thread pools and allocators
do not meet, and the variants take turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agent.engine import Engine, choose
from agent.engine.backend import thread_count
from agent.engine.eager import import_torch, load_network
from agent.imager import Layout, plan
from agent.profile_folder import load_profile_folder
from agent.reducer import Reducer
from agent.score import Scorer, finished_folders
from models.calibration import calibrate
from models.contract import Prediction
from models.posterior import FRACTION_BITS
from models.profile import LoadedProfile
from models.registry import MODALITIES
from models.srh.phantom import PhantomSlide, strip
from tests.bench.figures import Outcome, Spread
from tests.bench.machine import MACHINE_PRECISIONS, gflop_per_patch, peak_gflops
from tests.bench.naive import BATCH, published_way
from tests.system.processes import ROOT

SLIDE = PhantomSlide(41_002, 2, 6000)
REPETITIONS = 3
LIMIT_S = 600.0
STRIPS, PATCHES = "strips", "patches"
"""The two folders with the same slide: DICOM scan strips, and one TIFF per patch."""

Probabilities = dict[str, list[float]]
"""Calibrated probabilities by patch, named `x_y` as in the mosaic."""


@dataclass(frozen=True)
class Variant:
    """One way from files to a posterior."""

    title: str
    backend: str
    """`naive`, or a backend of the agent."""
    folder: str


VARIANTS = {
    "naive": Variant(f"published way: patch TIFFs, batch {BATCH}, eager fp32", "naive", PATCHES),
    "eager-patches": Variant("agent, eager: patch TIFFs", "eager", PATCHES),
    "eager-strips": Variant("agent, eager: DICOM scan strips", "eager", STRIPS),
    "openvino-patches": Variant("agent, openvino: patch TIFFs", "openvino", PATCHES),
    "openvino-strips": Variant("agent, openvino: DICOM scan strips", "openvino", STRIPS),
}


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    patches: int
    """Patches that went through the network; rejected ones are read by the agent but not counted."""
    total_s: float
    engine_s: float
    """Time inside the engine, scaling included; 0 for the published way."""
    engine_rate: float
    """Patches/s of the engine alone on the same patches in memory, right afterwards; 0 for the published way."""
    scaling_ms: float
    """Counts → network input on the host, per patch (inside engine_s)."""
    precision: str
    batch: int
    answers: Probabilities

    @property
    def rate(self) -> float:
        """Patches per second from files to posterior."""
        return self.patches / self.total_s

    @property
    def host_ms(self) -> float:
        """Work per patch outside the engine: reading, cutting, gate, counting."""
        return 1e3 * (self.total_s - self.engine_s) / self.patches


class TimedEngine:
    """An engine (agent.engine.Engine) that keeps its inputs and adds up the time spent in it."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision, self.batch_size = engine.name, engine.precision, engine.batch_size
        self.seconds = 0.0
        self.inputs: list[NDArray[np.uint16]] = []
        self._engine = engine

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        self.inputs.append(x_BCHW)
        started = time.perf_counter()
        prediction = self._engine.predict(x_BCHW)
        self.seconds += time.perf_counter() - started
        return prediction

    def close(self) -> None:
        """See Engine.close."""
        self._engine.close()


def run_agent(folder: Path, profile_dir: Path, backend: str) -> Run:
    """Score a folder with the agent's own code, then time its engine alone on the same batches."""
    profile = load_profile_folder(profile_dir)
    engine = choose(profile_dir, profile, (backend,), 0).engine
    timed = TimedEngine(engine)
    started = time.perf_counter()
    scorer = Scorer(profile, Reducer(timed, profile.spec))
    for finished in finished_folders([folder]):
        for _ in scorer.score(finished):
            pass
    posterior = [scorer.reducer.of_slide(key) for key in scorer.reducer.slides]
    total_s = time.perf_counter() - started
    used = [row for row in scorer.patches if row.values is not None]
    assert len(posterior) == 1 and posterior[0].counts.used == len(used), scorer.problems
    started = time.perf_counter()
    for x_BCHW in timed.inputs:
        engine.predict(x_BCHW)
    engine_rate = len(used) / (time.perf_counter() - started)
    answers = {
        f"{_mosaic_x(row.key.strip, row.key.x, profile)}_{row.key.y}": [v / (1 << FRACTION_BITS) for v in row.values]
        for row in used
        if row.values is not None
    }
    scaling_ms = _scaling_ms(profile, timed.inputs)
    engine.close()
    return Run(
        len(used), total_s, timed.seconds, engine_rate, scaling_ms, engine.precision, engine.batch_size, answers
    )
