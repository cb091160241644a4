"""What every engine and every backend promises. One file per backend stands behind these Protocols.

Must not know any backend, modality or file format.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agent.engine_limits import STRICT, EngineLimits
from models.contract import Prediction
from models.profile import LoadedProfile

if TYPE_CHECKING:
    from agent.engine.manifest import Artefacts

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""Every precision that an engine may be asked for."""


class Engine(Protocol):
    """A profile compiled for one device, with one batch shape."""

    name: str
    """Backend, e.g. `eager`."""
    precision: str
    """One of PRECISIONS."""
    batch_size: int
    """The one fixed number of rows."""

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """Raw inputs, exactly `batch_size` rows, to float32: [B, K] "logits" or "probabilities", [B, E] "embedding".

        A row's bits do not depend on its neighbours or its place. Raises ValueError for another batch size.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it must not be used afterwards."""
        ...


@runtime_checkable
class Counted(Protocol):
    """An engine whose backend can tell in which precision its layers run."""

    census: dict[str, int]
    """Arithmetic layers by the precision that they run in, e.g. {"bf16": 33}."""


@dataclass(frozen=True)
class BuildRequest:
    """What to compile, and the empty directory that takes the files."""

    profile: LoadedProfile
    directory: Path
    precision: str
    batch_size: int
    threads: int
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    calibration: NDArray[np.uint16] | None = None
    """Raw inputs of the profile's domain, for precisions whose ranges must be measured; None: the golden inputs."""
    announce: Callable[[str], None] = lambda step: None
    """Takes the name of each step of a long build."""
    limits: EngineLimits = STRICT
    """What the gates will ask of it."""


@dataclass(frozen=True)
class Built:
    """What a backend says of the files that it wrote."""

    outputs: dict[str, int]
    """Name → columns."""
    notes: dict[str, str] = field(default_factory=dict)
    """What people should know of this build: topic → sentence."""


class Backend(Protocol):
    """One way to make and load engines. Heavy imports happen inside the methods."""

    name: str
    needs_build: bool
    """False: loads from the profile alone."""
    requires: tuple[str, ...]
    """Distributions whose exact version a built engine is bound to."""
    devices: tuple[str, ...]
    """Kinds of devices that it can build for: `cpu`, `cuda`."""

    def default_batch(self, device: str) -> int:
        """The best single batch shape in service, as measured (docs/performance.md)."""
        ...

    def unavailable(self, device: str = "cpu") -> str | None:
        """Why this backend cannot be used for a device of this machine, with what to do; None when it can."""
        ...

    def precisions(self, device: str = "cpu") -> tuple[str, ...]:
        """What this machine can run and `--precision` may ask for, best first."""
        ...

    def build(self, request: BuildRequest) -> Built:
        """Write the engine's files. Raises RuntimeError, ValueError, OSError."""
        ...

    def load(self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int, device: str = "cpu") -> Engine:
        """Load from verified bytes (None where no build is needed). Raises like `build`."""
        ...


def kind_of(device: str) -> str:
    """`cuda` of `cuda:1`: the kind of a device."""
    return device.partition(":")[0]


def thread_count(threads: int) -> int:
    """`threads`, or every core that this process may use when it is 0."""
    return threads or len(os.sched_getaffinity(0))


def check_rows(engine: Engine, x_BCHW: NDArray[np.uint16]) -> None:
    """Raises ValueError unless the batch has exactly the engine's rows."""
    if len(x_BCHW) != engine.batch_size:
        raise ValueError(f"{engine.name} engine takes {engine.batch_size} rows, got {len(x_BCHW)}")


def predict_padded(engine: Engine, x_NCHW: NDArray[np.uint16]) -> Prediction:
    """Any number of inputs in batches of the engine's one shape: float32 [N, …] per output name.

    The last batch is filled with zeros; what they give is dropped and cannot reach the other rows.
    Raises ValueError for no input at all.
    """
    if not len(x_NCHW):
        raise ValueError("no inputs to predict")
    size = engine.batch_size
    outputs: dict[str, list[NDArray[np.float32]]] = {}
    for start in range(0, len(x_NCHW), size):
        batch = x_NCHW[start : start + size]
        rows = len(batch)
        if rows < size:
            batch = np.concatenate([batch, np.zeros((size - rows, *batch.shape[1:]), batch.dtype)])
        for name, values in engine.predict(batch).items():
            outputs.setdefault(name, []).append(values[:rows])
    return {name: np.concatenate(parts) for name, parts in outputs.items()}
