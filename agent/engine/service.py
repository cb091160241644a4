"""The engine in service and those that stand in for it: one that breaks is replaced by the next of the order.

Knows no backend, and nothing of what is counted: who runs a batch runs the same batch again on the next engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.discretion import told
from agent.engine import Choice, nothing_left, self_test, usable
from agent.engine.owner import CLOSE_LIMIT_S, EngineHung, Owner
from agent.engine_limits import STRICT, EngineLimits
from agent.errors import AgentError, EngineError
from agent.profile_folder import load_profile_folder
from agent.settings import EngineSettings
from models.contract import Prediction
from models.profile import LoadedProfile

LOAD_LIMIT_S = 200.0
"""Longest wait for an engine to be loaded and to pass its golden pair; the unit allows 300 s for the start."""


@dataclass(frozen=True)
class Replacement:
    """One engine took over from another."""

    before: str
    after: str
    """Labels, as in `passed_over`."""
    reason: str

    @property
    def detail(self) -> str:
        """One sentence for people."""
        return f"engine {self.before} failed and {self.after} has taken over; nothing is lost: {self.reason}"


class Service:
    """An agent.engine.Engine that is always the one in service. Used by one thread; see Owner for its own.

    `replaced` and `beat` may be set. They are called after each replacement, and after each batch and each second
    that an engine is waited for.
    """

    name: str
    precision: str
    batch_size: int
    choice: Choice
    """The engine in service and why others are not; replaced whole, so that any thread may read it."""

    def __init__(
        self,
        choices: Iterator[Choice],
        profile: LoadedProfile,
        passed_over: dict[str, str] | None = None,
        limit_s: float = 0.0,
        limits: EngineLimits = STRICT,
    ) -> None:
        """Take the first of `choices`, which are loaded as they are taken and fill `passed_over` as they come.

        `limit_s` is the longest that one batch may take, seconds; 0 sets none, and needs no thread. Raises
        SettingsError, EngineError and EngineHung.
        """
        self.beat: Callable[[], None] = lambda: None
        self.replaced: Callable[[Replacement], None] = lambda _: None
        self.replacements: tuple[Replacement, ...] = ()
        self._choices = choices
        self._profile = profile
        self._limits = limits
        self._passed_over = {} if passed_over is None else passed_over
        self._limit_s = limit_s
        self._owner: Owner | None = None
        self._is_open = False
        self._take()

    def predict(self, x_BCHW: NDArray[np.uint16]) -> Prediction:
        """As the engine in service. Raises EngineHung when it does not come back in time."""
        engine = self.choice.engine
        if self._owner is None:
            prediction = engine.predict(x_BCHW)
        else:
            prediction = self._owner.call(partial(engine.predict, x_BCHW), self._limit_s, self.beat)
        self.beat()
        return prediction

    def self_test(self) -> float:
        """agent.engine.self_test of the engine in service."""
        return self_test(self, self._profile, self._limits)

    def next_engine(self, why: AgentError) -> None:
        """The engine in service is broken: drop it and take the next usable one, tested on the golden pair.

        Raises EngineError when none is left.
        """
        before, reason = self.choice.label, told(why)
        self._passed_over[before] = reason
        self.close()
        try:
            self._take()
        except (EngineError, EngineHung) as error:
            raise EngineError(f"{reason}; {error}") from why
        change = Replacement(before, self.choice.label, reason)
        self.replacements += (change,)
        self.replaced(change)

    def close(self) -> None:
        """Free what the engine holds, unless it hangs: then its own thread does, if it ever comes back."""
        if not self._is_open:
            return
        self._is_open = False
        if self._owner is None:
            self.choice.engine.close()
        else:
            self._owner.end(self.choice.engine.close, CLOSE_LIMIT_S)

    def _take(self) -> None:
        # Loaded on the thread that will run it; who waits goes on beating.
        owner = Owner() if self._limit_s else None
        choice = None
        try:
            choice = owner.call(self._next, LOAD_LIMIT_S, self.beat) if owner else self._next()
        finally:
            if choice is None and owner:
                owner.end(lambda: None, CLOSE_LIMIT_S)
        if choice is None:
            raise nothing_left(self._passed_over)
        self._owner, self._is_open = owner, True
        self.choice = replace(choice, passed_over=dict(self._passed_over))
        self.name, self.precision = choice.engine.name, choice.engine.precision
        self.batch_size = choice.engine.batch_size

    def _next(self) -> Choice | None:
        return next(self._choices, None)


def serve(profile_dir: Path, profile: LoadedProfile, settings: EngineSettings) -> Service:
    """The first usable engine of the settings' order, and the others behind it; raises like agent.engine.choose."""
    passed_over: dict[str, str] = {}
    choices = usable(
        profile_dir, profile, settings.order, settings.threads, passed_over, settings.limits, settings.public_key
    )
    return Service(choices, profile, passed_over, settings.batch_limit_s, settings.limits)


def open_engine(profile_dir: Path, settings: EngineSettings) -> tuple[LoadedProfile, Service]:
    """The profile and the first usable engine; raises ProfileError and like `serve`."""
    profile = load_profile_folder(profile_dir)
    return profile, serve(profile_dir, profile, settings)
