"""An engine that works until it breaks: what no test can do to a real one."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from agent.engine import Engine
from models.contract import Prediction

HOW = ("raises", "nan", "hangs")


class Breaking:
    """A real engine that breaks for good after so many batches, and says whether it was closed."""

    def __init__(self, engine: Engine, how: str = "raises", healthy: int = 0) -> None:
        self._engine = engine
        self._how = how
        self.healthy = healthy
        """Batches that it still runs."""
        self.comes_back = threading.Event()
        """Set it, or a call that hangs never ends."""
        self.closed = threading.Event()
        self.threads: set[str] = set()
        """Names of the threads that it was used on."""
        self.name, self.precision, self.batch_size = engine.name, engine.precision, engine.batch_size

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """As the real one, until it breaks."""
        self.threads.add(threading.current_thread().name)
        prediction = self._engine.predict(x_BCHW)
        self.healthy -= 1
        if self.healthy >= 0:
            return prediction
        if self._how == "raises":
            raise RuntimeError("device lost")
        if self._how == "hangs":
            self.comes_back.wait()
        return {name: np.full_like(values, np.nan) for name, values in prediction.items()}

    def close(self) -> None:
        """Free the real one."""
        self.threads.add(threading.current_thread().name)
        self._engine.close()
        self.closed.set()
