"""Networks without anything around them: the ways that are compared, and the processes that build them or time one.

`python -m tests.bench.ways build PROFILE FOLDER --batches 1 8` compiles every engine without gates, and
`... rate PROFILE FOLDER --way NAME --threads 2 --batches 1 8` times one; each prints one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent import host
from agent.engine import BACKENDS, find_backend, open_built
from agent.engine.backend import Backend, BuildRequest, Built, Counted, thread_count
from agent.engine.eager import EagerEngine, load_network
from agent.engine.openvino import OpenVinoBackend
from agent.errors import AgentError
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile
from models.registry import MODALITIES
from models.srh.config import srh_input
from tests.agent.engine.unproven import build_unproven

KEEP_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
CALIBRATION_PATCHES = 128
FIRST_SLIDE = 2000
"""Of the phantom slides that int8 is calibrated on: none that a gate of the build looks at."""

Predict = Callable[[NDArray[np.uint16]], object]
"""Raw counts [B, 2, H, W] to float32 outputs."""


@dataclass(frozen=True)
class Way:
    """One way from raw counts in memory to the network's outputs."""

    title: str
    backend: str
    """A backend of the agent, or `naive`."""
    precision: str
    environment: dict[str, str] = field(default_factory=dict)
    """What the process gets beside its surroundings."""

    @property
    def needs_build(self) -> bool:
        """Whether there is something to compile first."""
        return self.backend != "naive" and find_backend(self.backend).needs_build


PUBLISHED = "naive"
WAYS = {
    PUBLISHED: Way("published network call", "naive", "fp32"),
    # By default glibc gives the memory of every large tensor back to the kernel and takes it anew, page by page.
    "naive-tuned": Way("the same, memory kept", "naive", "fp32", {"GLIBC_TUNABLES": KEEP_MEMORY}),
    "eager": Way("agent, eager, channels last", "eager", "fp32"),
    "openvino-fp32": Way("agent, openvino fp32", "openvino", "fp32"),
    "openvino-bf16": Way("agent, openvino bf16", "openvino", "bf16"),
    "openvino-int8": Way("agent, openvino int8", "openvino", "int8"),
    "inductor-bf16": Way("agent, inductor bf16", "inductor", "bf16"),
}
"""By the name of the entry in `engine.order`."""


def missing(way: Way) -> str | None:
    """Why a way cannot be measured here; None when it can."""
    if way.backend == "naive":
        return None
    if way.backend not in BACKENDS:
        return f"this version has no backend {way.backend}"
    backend = find_backend(way.backend)
    if reason := backend.unavailable():
        return reason
    return None if way.precision in backend.precisions() else f"this processor has no {way.precision}"


def folder_of(root: Path, name: str, batch: int) -> Path:
    """Where the engine of a way lies for one batch shape."""
    return root / "engines" / f"{name}-b{batch}"


class OneSearch(OpenVinoBackend):
    """OpenVINO that converts each batch shape once, and for int8 searches once for all of them."""

    def __init__(self, calibration: NDArray[np.uint16], announce: Callable[[str], None]) -> None:
        self._calibration = calibration
        self._announce = announce
        self._graphs: dict[int, Any] = {}
        self._found: Any = None

    def build(self, request: BuildRequest) -> Built:
        """See Backend.build."""
        from agent.engine.openvino_build import save, search_int8

        graph = self._graph(request.profile, request.batch_size)
        if request.precision != "int8":
            return save(graph, request.directory, {})
        if self._found is None:
            asked = replace(request, threads=0, calibration=self._calibration, announce=self._announce)
            self._found = search_int8(self._graph(request.profile, 1), asked)
        return save(self._found.quantise(graph), request.directory, self._found.notes)

    def _graph(self, profile: LoadedProfile, batch: int) -> Any:
        from agent.engine.openvino_build import convert

        if batch not in self._graphs:
            self._graphs[batch] = convert(profile, batch, "fp32")
        return self._graphs[batch]


def phantom_patches(profile: LoadedProfile, count: int) -> NDArray[np.uint16]:
    """Patches of synthetic slides that pass the tissue gate, uint16 [count, 2, H, W]."""
    paint = MODALITIES[profile.spec.modality].phantom_slide
    patches = (patch for number in itertools.count(FIRST_SLIDE) for patch in paint(profile.spec, number))
    return np.stack(list(itertools.islice(patches, count)))


def build(profile_dir: Path, root: Path, names: Sequence[str], batches: Sequence[int]) -> dict[str, Any]:
    """Compile what is not there yet; says what could not be built and what people should know of the rest."""
    profile = load_profile_folder(profile_dir)
    reasons: dict[str, str] = {}
    notes: dict[str, dict[str, str]] = {}

    def announce(step: str) -> None:
        print(step, file=sys.stderr, flush=True)

    backends: dict[str, Backend] = dict(BACKENDS)
    if any(WAYS[name].precision == "int8" for name in names):
        backends["openvino"] = OneSearch(phantom_patches(profile, CALIBRATION_PATCHES), announce)
    for name in names:
        way = WAYS[name]
        if reason := missing(way):
            reasons[name] = reason
            continue
        for batch in batches if way.needs_build else ():
            target = folder_of(root, name, batch)
            if target.exists() or name in reasons:
                continue
            announce(f"{name}, batch {batch}")
            try:
                manifest = build_unproven(backends[way.backend], profile, target, way.precision, batch)
                notes[name] = manifest.notes
            except (AgentError, ImportError, RuntimeError, ValueError) as error:
                reasons[name] = " ".join(str(error).split())[:300]
    return {"missing": reasons, "notes": notes}


def opened(name: str, profile: LoadedProfile, root: Path, batch: int, threads: int) -> tuple[Predict, dict[str, int]]:
    """A way that is ready to run, and its layers by precision where it can tell."""
    way = WAYS[name]
    if way.backend == "naive":
        return _published(profile, threads), {}
    engine = (
        open_built(profile, folder_of(root, name, batch), threads)
        if way.needs_build
        else EagerEngine(profile, threads, batch)
    )
    return engine.predict, engine.census if isinstance(engine, Counted) else {}


def _published(profile: LoadedProfile, threads: int) -> Predict:
    """The published scripts' transform and network call; torch as it comes, but for the number of threads."""
    import torch

    from tests.bench.naive import to_input

    if threads != thread_count(0):
        torch.set_num_threads(threads)
    network = load_network(profile)
    spec = srh_input(profile.spec)

    def predict(x_BCHW: NDArray[np.uint16]) -> object:
        x = torch.stack([to_input(patch, spec.scale, spec.third_channel_base) for patch in x_BCHW])
        with torch.no_grad():
            return network(x).numpy()

    return predict


def rates(
    name: str, profile_dir: Path, root: Path, threads: int, batches: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Patches/s of one way at some batch sizes, one after another; each runs for `seconds`, once at least."""
    profile = load_profile_folder(profile_dir)
    found = []
    for batch in batches:
        x_BCHW = np.resize(profile.golden_inputs, (batch, *profile.golden_inputs.shape[1:]))
        predict, census = opened(name, profile, root, batch, threads)
        predict(x_BCHW)
        count, started = 0, time.perf_counter()
        while (took_s := time.perf_counter() - started) < seconds or not count:
            predict(x_BCHW)
            count += 1
        found.append({"batch": batch, "patches_per_s": batch * count / took_s, "census": census})
    return found


def main() -> int:
    """Do what the command line says and print what came of it as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ways", description=__doc__)
    parser.add_argument("action", choices=("build", "rate"))
    parser.add_argument("profile", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--way", choices=list(WAYS), nargs="+", required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    host.configure_logging("warning", "console")
    if args.action == "build":
        print(json.dumps(build(args.profile, args.folder, args.way, args.batches)))
    else:
        (name,) = args.way
        threads = thread_count(args.threads)
        print(json.dumps(rates(name, args.profile, args.folder, threads, args.batches, args.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
