"""The network as written, in torch fp32: the reference that every built engine is compared with.

Decides memory format and threads only. torch is imported when an engine is loaded.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import BuildRequest, Built, check_rows, thread_count
from agent.engine.manifest import Artefacts
from models.contract import Prediction
from models.profile import LoadedProfile
from models.registry import MODALITIES


def import_torch() -> Any:
    """torch, with a thread pool that sleeps while it waits.

    Waiting actively, as is the default, cuts the rate to a half or less as soon as another process wants a core.
    The variable is read when the pool is loaded: it is for the first import, and a value set outside stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    return torch


def load_network(profile: LoadedProfile) -> Any:
    """The profile's torch module with its weights, in evaluation mode.

    Raises ValueError when the weights do not fit the network of the profile.
    """
    import_torch()
    from safetensors import SafetensorError
    from safetensors.torch import load

    network = MODALITIES[profile.spec.modality].build_network(profile.spec)
    try:
        network.load_weights(load(profile.weights))
    except SafetensorError as error:
        raise ValueError(f"the weights are not safetensors: {error}") from error
    return network.eval()


class EagerEngine:
    """torch, fp32, channels last."""

    name = "eager"
    precision = "fp32"

    def __init__(self, profile: LoadedProfile, threads: int, batch_size: int) -> None:
        torch = import_torch()
        torch.set_num_threads(thread_count(threads))
        self.batch_size = batch_size
        self._torch = torch
        self._spec = profile.spec
        self._prepare = MODALITIES[profile.spec.modality].to_network_input
        network = load_network(profile)
        self._emits: str = network.emits
        self._network = network.with_embedding().to(memory_format=torch.channels_last)

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        check_rows(self, x_BCHW)
        torch = self._torch
        x = torch.from_numpy(self._prepare(self._spec, x_BCHW))
        with torch.inference_mode():
            y_BK, embedding_BE = self._network(x.to(memory_format=torch.channels_last))
        return {self._emits: y_BK.numpy(), "embedding": embedding_BE.numpy()}

    def close(self) -> None:
        """Drop the weights."""
        self._network = None


class EagerBackend:
    """Needs no build; the last resort and the reference."""

    name = "eager"
    needs_build = False
    requires: tuple[str, ...] = ("torch",)
    devices: tuple[str, ...] = ("cpu",)

    def default_batch(self, device: str) -> int:
        """One: the least latency."""
        return 1

    def unavailable(self, device: str = "cpu") -> str | None:
        """None where torch is installed."""
        return None if importlib.util.find_spec("torch") else "torch is not installed: pip install torch"

    def precisions(self, device: str = "cpu") -> tuple[str, ...]:
        """The reference precision only."""
        return ("fp32",)

    def build(self, request: BuildRequest) -> Built:
        """There is nothing to build: raises ValueError."""
        raise ValueError("eager runs straight from the profile and needs no build")

    def load(
        self, profile: LoadedProfile, artefacts: Artefacts | None, threads: int, device: str = "cpu"
    ) -> EagerEngine:
        """Build the network and load its weights."""
        return EagerEngine(profile, threads, self.default_batch(device))
