"""The ways from finished files to a posterior that are compared, and the process in which one of them is timed.

`python -m tests.bench.variants NAME FOLDER PROFILE` prints one JSON line. A process each, so that thread pools and
allocators do not meet.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent import host
from agent.engine import Engine, choose
from agent.engine.eager import load_network
from agent.profile_folder import load_profile_folder
from agent.reducer import Reducer
from agent.score import Scorer, finished_folders
from models.calibration import calibrate
from models.contract import PatchKey, Prediction
from models.posterior import FRACTION_BITS
from models.profile import LoadedProfile
from models.registry import MODALITIES
from models.srh.config import srh_input
from tests.bench.ways import KEEP_MEMORY

STRIPS, PATCHES = "strips", "patches"
"""Folders with the same slide: DICOM scan strips, and one TIFF for each patch that passes the tissue gate."""
FIELD_OF_VIEW_PX = 1000
SCALED_PATCHES = 60
"""Patches whose scaling is timed."""


@dataclass(frozen=True)
class Variant:
    """One way from files to a posterior."""

    title: str
    backend: str
    """An entry of the agent's `engine.order`, or `naive`."""
    folder: str
    environment: dict[str, str] = field(default_factory=dict)
    """What the process gets beside its surroundings."""


VARIANTS = {
    "naive": Variant("published way, patch TIFFs", "naive", PATCHES),
    # By default glibc gives the memory of every large tensor back to the kernel and takes it anew, page by page.
    "naive-tuned": Variant("published way, memory kept", "naive", PATCHES, {"GLIBC_TUNABLES": KEEP_MEMORY}),
    "eager-patches": Variant("agent, eager, patch TIFFs", "eager", PATCHES),
    "eager-strips": Variant("agent, eager, DICOM strips", "eager", STRIPS),
    "bf16-patches": Variant("agent, openvino, patch TIFFs", "openvino-bf16", PATCHES),
    "bf16-strips": Variant("agent, openvino, DICOM strips", "openvino-bf16", STRIPS),
    "int8-patches": Variant("agent, openvino, patch TIFFs", "openvino-int8", PATCHES),
    "int8-strips": Variant("agent, openvino, DICOM strips", "openvino-int8", STRIPS),
}
LEAST_S = 2.0
"""A fast way reads the slide again and again for so long: short times are noisy."""
MOST_PASSES = 10


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    patches: int
    """Patches that went through the network. Others are read and judged by the agent, but do not count here."""
    total_s: float
    """From the first file to the posterior, mean of the timed passes; loading and warming the network is not part."""
    engine_rate: float
    """Patches/s of the network alone on the same batches in memory, right afterwards."""
    cpu_s: float
    """Processor time of all threads meanwhile: on a busy machine it says more than the clock."""
    precision: str
    batch: int
    answers: dict[str, list[float]]
    """Calibrated probabilities by place, `x_y`."""
    host_ms: float | None = None
    """Work per patch outside the engine: reading, cutting, tissue gate, counting."""
    cut: int | None = None
    """Patches that were cut or read, those included that did not pass the tissue gate."""
    scaling_ms: float | None = None
    """Counts → network input per patch; inside the engine's time."""

    @property
    def rate(self) -> float:
        """Patches per second from files to posterior."""
        return self.patches / self.total_s

    @property
    def cpu_ms(self) -> float:
        """Processor time per patch."""
        return 1e3 * self.cpu_s / self.patches


class TimedEngine:
    """An engine (agent.engine.Engine) that adds up the time spent in it, and may keep its inputs."""

    def __init__(self, engine: Engine, *, keep: bool) -> None:
        self.name, self.precision, self.batch_size = engine.name, engine.precision, engine.batch_size
        self.seconds = 0.0
        self.inputs: list[NDArray[np.uint16]] = []
        self._keep = keep
        self._engine = engine

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        if self._keep:
            self.inputs.append(x_BCHW)
        started = time.perf_counter()
        prediction = self._engine.predict(x_BCHW)
        self.seconds += time.perf_counter() - started
        return prediction

    def close(self) -> None:
        """See Engine.close."""
        self._engine.close()


def run_agent(folder: Path, profile_dir: Path, backend: str) -> Run:
    """Score a folder with the code of `agent score`, timing every pass but the first, then its engine alone.

    The first pass keeps the batches for the engine: kept memory is never used again, which costs time.
    """
    profile = load_profile_folder(profile_dir)
    engine = choose(profile_dir, profile, (backend,), 0).engine
    kept, timed = TimedEngine(engine, keep=True), TimedEngine(engine, keep=False)
    _, first_s = _timed(folder, profile, kept)
    passes = min(MOST_PASSES, math.ceil(LEAST_S / first_s))
    cpu_started, total_s = time.process_time(), 0.0
    for _ in range(passes):
        scorer, took_s = _timed(folder, profile, timed)
        total_s += took_s
    cpu_s = time.process_time() - cpu_started
    used = {row.key: row.values for row in scorer.patches if row.values is not None}
    started = time.perf_counter()
    for _ in range(passes):
        for x_BCHW in kept.inputs:
            engine.predict(x_BCHW)
    engine_s = (time.perf_counter() - started) / passes
    place = _places(profile, list(used))
    answers = {place[key]: [value / (1 << FRACTION_BITS) for value in values] for key, values in used.items()}
    return Run(
        patches=len(used),
        total_s=total_s / passes,
        engine_rate=len(used) / engine_s,
        cpu_s=cpu_s / passes,
        precision=engine.precision,
        batch=engine.batch_size,
        answers=answers,
        host_ms=1e3 * (total_s - timed.seconds) / passes / len(used),
        cut=len(scorer.patches),
        scaling_ms=_scaling_ms(profile, kept.inputs),
    )


def _timed(folder: Path, profile: LoadedProfile, engine: Engine) -> tuple[Scorer, float]:
    """One pass to the posterior, and its seconds."""
    started = time.perf_counter()
    scorer = _score(folder, profile, engine)
    (posterior,) = [scorer.reducer.of_slide(key) for key in scorer.reducer.slides]
    took_s = time.perf_counter() - started
    used = sum(row.values is not None for row in scorer.patches)
    if posterior.counts.used != used or scorer.problems:
        raise RuntimeError(f"{posterior.counts.used} of {used} patches counted: {scorer.problems}")
    return scorer, took_s


def _score(folder: Path, profile: LoadedProfile, engine: Engine) -> Scorer:
    scorer = Scorer(profile, Reducer(engine, profile.spec, reference=profile.reference))
    for finished in finished_folders([folder]):
        for _ in scorer.score(finished):
            pass
    return scorer


def _places(profile: LoadedProfile, keys: list[PatchKey]) -> dict[PatchKey, str]:
    """Patches by their place in the patch files' own coordinates, where scan strip i begins at x = 1000 · i."""
    strips = sorted({key.strip for key in keys})
    if len(strips) == 1:  # finished patches bring their place
        return {key: f"{key.x}_{key.y}" for key in keys}
    trim_px = srh_input(profile.spec).trim_px
    return {key: f"{FIELD_OF_VIEW_PX * strips.index(key.strip) + key.x - trim_px}_{key.y}" for key in keys}


def _scaling_ms(profile: LoadedProfile, inputs: list[NDArray[np.uint16]]) -> float:
    prepare = MODALITIES[profile.spec.modality].to_network_input
    some = inputs[: max(1, SCALED_PATCHES // len(inputs[0]))]
    started = time.perf_counter()
    for x_BCHW in some:
        prepare(profile.spec, x_BCHW)
    return 1e3 * (time.perf_counter() - started) / sum(len(x_BCHW) for x_BCHW in some)


def run_naive(folder: Path, profile_dir: Path) -> Run:
    """The published way on the patch files of a folder, its second pass timed, then its network alone."""
    # Only here: the agent's own variants must not pay for torch.
    import torch

    from tests.bench.naive import BATCH, PatchFiles, published_way

    profile = load_profile_folder(profile_dir)
    network = load_network(profile)
    spec = srh_input(profile.spec)
    paths = sorted(folder.rglob("*.tif"))
    published_way(paths, profile, network)  # as warm as the agent's second pass
    started, cpu_started = time.perf_counter(), time.process_time()
    emitted_NK = published_way(paths, profile, network)
    probabilities_NK = calibrate(emitted_NK, profile.spec.calibration, network.emits)
    probabilities_NK.mean(axis=0)  # its posterior
    total_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    files = PatchFiles(paths, spec.scale, spec.third_channel_base)
    x_NCHW = torch.stack([files[index] for index in range(len(paths))])
    started = time.perf_counter()
    with torch.no_grad():
        for x_BCHW in torch.split(x_NCHW, BATCH):
            network(x_BCHW)
    engine_s = time.perf_counter() - started
    answers = {_place_of(path): list(row) for path, row in zip(paths, probabilities_NK.tolist(), strict=True)}
    return Run(len(paths), total_s, len(paths) / engine_s, cpu_s, "fp32", BATCH, answers)


def _place_of(path: Path) -> str:
    ix, jx, iy, jy = map(int, path.stem.rsplit("-", 1)[1].split("_"))
    return f"{ix + iy}_{jx + jy}"


def run(name: str, root: Path, profile_dir: Path) -> dict[str, Any]:
    """Measure one variant on the folders below `root`; the answer is ready for JSON."""
    variant = VARIANTS[name]
    folder = root / variant.folder
    naive = variant.backend == "naive"
    return asdict(run_naive(folder, profile_dir) if naive else run_agent(folder, profile_dir, variant.backend))


def main() -> int:
    """Measure what the command line names and print it as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.variants", description=__doc__)
    parser.add_argument("name", choices=list(VARIANTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("profile", type=Path)
    args = parser.parse_args()
    host.configure_logging("warning", "console")
    print(json.dumps(run(args.name, args.folder, args.profile)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
