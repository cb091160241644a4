"""Takes the steps that a build announces."""

from __future__ import annotations

from collections.abc import Callable


class Steps:
    """`Announce` that keeps the names in order, each once, and calls `at` before each word is kept."""

    def __init__(self, at: Callable[[str], None] = lambda step: None) -> None:
        self.names: list[str] = []
        self.words: list[tuple[str, int, int]] = []
        self._at = at

    def __call__(self, step: str, done: int = 0, of: int = 0) -> None:
        """See Announce."""
        self._at(step)
        self.words.append((step, done, of))
        if not self.names or self.names[-1] != step:
            self.names.append(step)
