"""What a target is. It knows none of them, so that a worker loads no more than its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from random import Random


@dataclass(frozen=True)
class Target:
    """A reader of what others wrote."""

    name: str
    promise: str
    """For people."""
    make: Callable[[Random], bytes]
    """A case from a source of numbers."""
    check: Callable[[bytes], str]
    """Its outcome in a word; any exception is a find."""
    share: float
    """Part of a run's time when all targets run."""

    def case(self, seed: int, index: int) -> bytes:
        """The same bytes for the same numbers, in every process."""
        return self.make(Random(f"{seed} {self.name} {index}"))


def find_target(name: str) -> Target:
    """One of tests.fuzz.targets.TARGETS, or `module:NAME` for one that stands elsewhere."""
    module, _, attribute = name.partition(":")
    if attribute:
        found: Target = getattr(import_module(module), attribute)
    else:
        found = import_module("tests.fuzz.targets").TARGETS[name]
    return found
