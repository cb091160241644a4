"""What every engine and every backend promises. One file per backend stands behind these Protocols.

Must not know any backend, modality or file format.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from models.contract import Prediction
from models.profile import LoadedProfile

if TYPE_CHECKING:
    from agent.engine.manifest import Artefacts

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
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


@dataclass(frozen=True)
class BuildRequest:
    """What to compile, and the empty directory that takes the files."""

    profile: LoadedProfile
    directory: Path
    precision: str
    batch_size: int
    threads: int


class Backend(Protocol):
    """One way to make and load engines. Heavy imports happen inside the methods."""

    name: str
    needs_build: bool
    """False: loads from the profile alone."""
    requires: tuple[str, ...]
    """Distributions whose exact version a built engine is bound to."""
    default_batch: int
    """The best single batch shape as measured (docs/performance.md)."""

    def unavailable(self) -> str | None:
        """Why this backend cannot be used on this machine, with what to do; None when it can."""
        ...

    def precisions(self) -> tuple[str, ...]:
        """What this machine can run, best first."""
        ...

    def build(self, request: BuildRequest) -> dict[str, int]:
        """Write the engine's files, return its outputs (name → columns). Raises RuntimeError, ValueError, OSError."""
        ...

    def load(self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int) -> Engine:
        """Load from verified bytes (None where no build is needed). Raises like `build`."""
        ...


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
