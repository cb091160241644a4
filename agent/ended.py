"""Patients who have ended: of whom single patches stay in memory, and of whom only exact sums and counts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from agent.reducer import Reducer

KEPT_PATIENTS = 32
"""The last ones who ended: all their patches stay."""
KEPT_INCOMPLETE = 256
"""Of so many before those, the patches of slides that are not complete stay, since bytes may still come."""


class EndedPatients:
    """See the module's docstring. Without it memory would grow with every slide that there ever was."""

    def __init__(self, reducer: Reducer, before: Callable[[], None]) -> None:
        """`before` is called when patches are about to go."""
        self._reducer = reducer
        self._before = before
        self._last: OrderedDict[str, None] = OrderedDict()
        self._incomplete: OrderedDict[str, None] = OrderedDict()
        """Those who ended before the last ones, and of whom a slide is not complete."""

    def goes_on(self, patient: str) -> None:
        """Bytes of this patient came."""
        self._last.pop(patient, None)
        self._incomplete.pop(patient, None)

    def add(self, patient: str) -> None:
        """This patient has ended."""
        self.goes_on(patient)
        self._last[patient] = None
        while len(self._last) > KEPT_PATIENTS:
            self._before()
            oldest, _ = self._last.popitem(last=False)
            if self._reducer.freeze(oldest):
                self._incomplete[oldest] = None
        while len(self._incomplete) > KEPT_INCOMPLETE:
            self._reducer.freeze(self._incomplete.popitem(last=False)[0], everything=True)
