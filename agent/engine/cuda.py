"""Running a network on a card: raw counts up, answers down, the same captured graph for every batch.

Decides who touches the card (one thread), how the copies overlap (two pinned buffers: while the card fetches one, the
host fills the other) and in which order. Must not know how a network was compiled. What needs a card is `TorchCard`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine.backend import check_rows
from agent.engine.manifest import Manifest
from agent.engine.owner import CLOSE_LIMIT_S, Owner
from models.contract import Prediction

PARTS = 4
"""Pieces in which a batch goes up."""
_WARM_UPS = 3

Forward = Callable[[Any], Sequence[Any]]
"""Raw counts on the card (int16 bits, [B, 2, H, W]) to what the head emits and the embedding, float32 there."""


class Card(Protocol):
    """The calls that need a card. Tensors are torch's; everything runs on one stream, in the order of the calls."""

    def pinned(self, shape: Sequence[int], dtype: str) -> Any:
        """An empty tensor in host memory that the card can fetch by itself."""
        ...

    def resident(self, shape: Sequence[int], dtype: str) -> Any:
        """An empty tensor on the card."""
        ...

    def copy(self, source: Any, target: Any) -> Any:
        """Start a copy and return a mark of its end; `source` must stay as it is until then."""
        ...

    def wait(self, mark: Any) -> None:
        """Return when what was marked has ended."""
        ...

    def captured(self, run: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], Callable[[], None]]:
        """What `run` gives, and a function that starts the same work again, into the same tensors."""
        ...


Open = Callable[[Card], AbstractContextManager[Forward]]
"""Loads a network; what it needs only for its first runs is gone at the end of the context."""


class CudaEngine:
    """One network on one card, with one batch shape, behind one thread."""

    def __init__(
        self,
        manifest: Manifest,
        row_shape: tuple[int, ...],
        make_card: Callable[[], Card],
        network: Open,
        census: dict[str, int],
    ) -> None:
        """`row_shape` is that of one raw input. Raises what loading raises."""
        self.name, self.precision, self.batch_size = manifest.backend, manifest.precision, manifest.batch_size
        self.census = census
        self._shape = (manifest.batch_size, *row_shape)
        (emits,) = set(manifest.outputs) - {"embedding"}
        self._columns = {name: manifest.outputs[name] for name in (emits, "embedding")}
        self._owner = Owner()
        try:
            self._owner.call(partial(self._open, make_card, network))
        except BaseException:
            self._owner.end(lambda: None, CLOSE_LIMIT_S)
            raise

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """See Engine.predict."""
        check_rows(self, x_BCHW)
        if x_BCHW.shape != self._shape or x_BCHW.dtype != np.uint16:
            raise ValueError(f"expected uint16 {list(self._shape)}, got {x_BCHW.dtype} {list(x_BCHW.shape)}")
        return self._owner.call(partial(self._run, x_BCHW))

    def close(self) -> None:
        """Free the card and end the thread."""
        self._owner.end(self._drop, CLOSE_LIMIT_S)

    def _open(self, make_card: Callable[[], Card], network: Open) -> None:
        self._card = card = make_card()
        rows = -(-self.batch_size // PARTS)
        self._host = [card.pinned((rows, *self._shape[1:]), "int16") for _ in range(2)]
        self._busy: list[Any] = [None, None]
        self._raw = card.resident(self._shape, "int16")
        self._raw.zero_()
        with network(card) as forward:
            self._forward: Forward | None = forward  # kept: the graph runs in its memory
            outputs, self._replay = card.captured(lambda: forward(self._raw))
        found = [tuple(output.shape) for output in outputs]
        expected = [(self.batch_size, columns) for columns in self._columns.values()]
        if found != expected:
            raise RuntimeError(f"the network gives {found}, its manifest says {expected}")
        self._outputs = list(zip(self._columns, outputs, strict=True))
        self._answers = {name: card.pinned(output.shape, "float32") for name, output in self._outputs}

    def _run(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        card, rows = self._card, len(self._host[0])
        for number, start in enumerate(range(0, self.batch_size, rows)):
            part = x_BCHW[start : start + rows]
            if self._busy[number % 2] is not None:
                card.wait(self._busy[number % 2])
            host = self._host[number % 2][: len(part)]
            host.numpy()[...] = part.view(np.int16)
            self._busy[number % 2] = card.copy(host, self._raw[start : start + len(part)])
        self._replay()
        marks = [card.copy(output, self._answers[name]) for name, output in self._outputs]
        card.wait(marks[-1])
        return {name: self._answers[name].numpy().copy() for name, _ in self._outputs}

    def _drop(self) -> None:
        del self._replay
        self._forward = None
        self._outputs, self._answers, self._host, self._raw = [], {}, [], None


class TorchCard:
    """The first card that this process sees, with one stream of its own."""

    def __init__(self) -> None:
        from agent.engine.eager import import_torch

        self._torch = torch = import_torch()
        self.device = torch.device("cuda", 0)
        torch.cuda.set_device(self.device)
        exact(torch)
        self.stream = torch.cuda.Stream(self.device)

    def pinned(self, shape: Sequence[int], dtype: str) -> Any:
        """See Card."""
        return self._torch.empty(tuple(shape), dtype=getattr(self._torch, dtype), pin_memory=True)

    def resident(self, shape: Sequence[int], dtype: str) -> Any:
        """See Card."""
        with self._torch.cuda.stream(self.stream):
            return self._torch.empty(tuple(shape), dtype=getattr(self._torch, dtype), device=self.device)

    def copy(self, source: Any, target: Any) -> Any:
        """See Card."""
        with self._torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def wait(self, mark: Any) -> None:
        """See Card."""
        mark.synchronize()

    def captured(self, run: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], Callable[[], None]]:
        """See Card. The first runs, which choose kernels and load them, are not captured."""
        torch = self._torch
        with torch.inference_mode():
            torch.cuda.synchronize(self.device)  # what was filled on another stream
            with torch.cuda.stream(self.stream):
                for _ in range(_WARM_UPS):
                    run()
            self.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                outputs = run()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return outputs, replay


def exact(torch: Any) -> None:
    """fp32 is fp32 (by default convolutions round to TF32), and a convolution's algorithm is always the same."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
