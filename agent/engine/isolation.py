"""A batch that fails is run again patch by patch: is it a patch that the engine cannot run, or the engine itself?

A patch that fails alone, while the engine still passes its own test, is at fault, and the others count. When the test
fails, too, the engine is broken, and so is one that hangs: the whole batch is run again on the next, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from agent.discretion import told
from agent.engine.owner import EngineHung
from agent.errors import AgentError, EngineError

FAILED = "engine_failed"
"""Why such a patch is rejected, and why people are told of its slide."""
FAILED_DETAIL = (
    "the engine fails on patches of this slide, each by itself, although it still passes its own test: they count as"
    " rejected, and the answer rests on the others"
)
"""The same for each, so that a slide is told once."""

Answer = TypeVar("Answer")


class Isolation:
    """See the module's docstring. `self_test` raises EngineError when the engine cannot be trusted (any more).

    Without a test an engine counts as broken when it can run no patch of a batch.
    """

    def __init__(
        self,
        self_test: Callable[[], object] | None = None,
        beat: Callable[[], None] = lambda: None,
        next_engine: Callable[[AgentError], None] | None = None,
    ) -> None:
        """`beat` is called after each single patch. `next_engine` puts another into the place of the broken one, told
        why, or raises EngineError.
        """
        self._self_test = self_test
        self._beat = beat
        self._next_engine = next_engine
        self._told = ""
        self._log = structlog.get_logger("engine")

    def run(
        self, x_NCHW: NDArray[np.uint16], answer: Callable[[NDArray[np.uint16]], Sequence[Answer]]
    ) -> list[Answer | None]:
        """What `answer` makes of each patch, all by one engine; None for one that it cannot run.

        `answer` raises EngineError for what cannot be the network's output; backends raise RuntimeError. Raises
        EngineError when no engine is left, and EngineHung.
        """
        while True:
            try:
                return self._run(x_NCHW, answer)
            except (EngineError, EngineHung) as broken:
                if self._next_engine is None:
                    raise
                self._next_engine(broken)

    def _run(
        self, x_NCHW: NDArray[np.uint16], answer: Callable[[NDArray[np.uint16]], Sequence[Answer]]
    ) -> list[Answer | None]:
        try:
            return list(answer(x_NCHW))
        except (EngineError, RuntimeError) as error:
            self._tell(error, len(x_NCHW))
            return self._one_by_one(x_NCHW, answer, error)

    def _one_by_one(
        self,
        x_NCHW: NDArray[np.uint16],
        answer: Callable[[NDArray[np.uint16]], Sequence[Answer]],
        error: EngineError | RuntimeError,
    ) -> list[Answer | None]:
        answers: list[Answer | None] = []
        for start in range(len(x_NCHW)):
            try:
                answers += answer(x_NCHW[start : start + 1])
            except (EngineError, RuntimeError):
                answers.append(None)
            self._beat()
        if None in answers:
            self._prove(error, is_any_whole=any(found is not None for found in answers))
        return answers

    def _prove(self, error: EngineError | RuntimeError, *, is_any_whole: bool) -> None:
        """Raises EngineError unless the engine still does what it was chosen for."""
        if self._self_test is None:
            if not is_any_whole:
                raise EngineError(f"the engine is broken: it runs no patch of a batch: {told(error)}") from error
            return
        try:
            self._self_test()
        except EngineError as proof:
            raise EngineError(f"the engine is broken: {told(error)}, and {proof}") from error
        self._beat()

    def _tell(self, error: EngineError | RuntimeError, patches: int) -> None:
        """Once for each kind of failure in a row: a slide full of such patches must not fill the journal."""
        if told(error) != self._told:
            self._told = told(error)
            self._log.warning("batch_failed", patches=patches, error=self._told)
