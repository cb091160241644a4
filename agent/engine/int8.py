"""Which layers of a network may run in int8: all, if the answers stay, and else all but the most sensitive ones.

Each trial is judged on patches that the calibration did not see. Must not know how a layer is quantised
(agent.engine.quantise) or run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.quantise import Rounding, convolutions, prepare, quantise, shift_of

MOST_KEPT = 0.25
"""Largest share of the convolutions that may stay in the higher precision: beyond, int8 is not worth its risk."""
RANKED_ON = 4
"""Layers are ranked on every so manyth patch."""
MARGIN = 0.8
"""A trial must stay below this share of each limit, since the gates look at other patches."""


@dataclass(frozen=True)
class Found:
    """How to quantise a network so that its answers stay, at any batch size, and what people should know of it."""

    rounding: Rounding
    keep: frozenset[int]
    shift: NDArray[np.float64]
    """See agent.engine.quantise.shift_of."""
    notes: dict[str, str]

    def quantise(self, model: Any) -> Any:
        """The network's graph, of any batch size, in int8."""
        return quantise(model, self.rounding, self.keep, self.shift)


def search(
    model: Any,
    calibration: Sequence[NDArray[np.float32]],
    compiled: Callable[[Any, str], Any],
    used: Callable[[Any, int], float],
    announce: Callable[[str], None],
) -> Found:
    """Quantise as many convolutions as the answers allow. `compiled` takes a graph and a precision; `used` tells
    which share of the parity limits a graph takes up on every n-th of the patches that trials are judged on, none of
    them of the calibration; 1 is just allowed.

    Raises RuntimeError when more than MOST_KEPT of them would have to stay.
    """
    count = len(convolutions(model))
    announce(f"int8: round {count} convolutions for {len(calibration)} patches")
    rounding = prepare(model, lambda graph: compiled(graph, "fp32"), calibration)

    def trial(keep: Iterable[int]) -> tuple[float, Found]:
        found = Found(rounding, frozenset(keep), np.zeros(len(rounding.embedding)), {})
        shift = shift_of(found.quantise(model), lambda graph: compiled(graph, "int8"), calibration, rounding)
        found = replace(found, shift=shift)
        return used(found.quantise(model), 1), found

    announce(f"int8: trial with all {count} convolutions")
    share, found = trial(())
    first = share
    ranked: list[int] = []
    while share > MARGIN:
        if not ranked:
            ranked = _ranked(model, found, used, announce)
        kept = ranked[: len(found.keep) + 1]
        if len(kept) > MOST_KEPT * count:
            raise RuntimeError(
                f"int8 changes the answers: {share:.2f} of the limits taken up with {len(found.keep)} of {count}"
                " convolutions in higher precision; use bf16 or fp32"
            )
        announce(f"int8: trial with {len(kept)} layers kept")
        share, found = trial(kept)
    return replace(found, notes=_notes(count, found.keep, first, share, len(calibration)))


def _ranked(
    model: Any, found: Found, used: Callable[[Any, int], float], announce: Callable[[str], None]
) -> list[int]:
    """Convolutions by what is gained when each alone is kept, most first; on some patches, since there are many."""
    count = len(found.rounding.filters)
    shares = []
    for number in range(count):
        announce(f"int8: ranking the layers, {number + 1} of {count}")
        shares.append(used(replace(found, keep=frozenset({number})).quantise(model), RANKED_ON))
    return sorted(range(count), key=shares.__getitem__)


def _notes(count: int, keep: frozenset[int], first: float, share: float, patches: int) -> dict[str, str]:
    why = f" ({first:.2f} without, {MARGIN} allowed)" if keep else ""
    numbers = ", ".join(str(number + 1) for number in sorted(keep))
    listed = f"convolutions {numbers}, without which the answers changed most, and the head" if keep else "the head"
    return {
        "int8": f"{count - len(keep)} of {count} convolutions, rounded by the second moments of {patches} patches",
        "kept in higher precision": f"{listed}, pooling and sums: little of the arithmetic",
        "share of the limits taken up": f"{share:.2f} on other patches, half of them blends{why}",
    }
