"""Short labels for pseudonyms: `Patient 3`, numbered through the day in the order of first sight. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import NamedTuple

from agent.dashboard.heard import Heard, day_of
from agent.messages import Payload

MAX_LABELS = 1024
"""Patients that are remembered; those of the earliest first sight go first."""


class Sight(NamedTuple):
    """When somebody was first spoken of."""

    time_s: float
    """By the agent's clock, seconds since 1970."""
    heard_s: float
    """By ours."""

    def said_s(self, skew_s: float) -> float:
        """By ours, as far as one can know: see Heard."""
        return max(0.0, min(self.time_s + skew_s, self.heard_s))


def earlier(sight: Sight | None, heard: Heard[Payload]) -> Sight:
    """The first sight, with one more message at hand."""
    time_s, heard_s = heard.body.time.timestamp(), heard.at.wall_s
    return Sight(time_s, heard_s) if sight is None else Sight(min(sight.time_s, time_s), min(sight.heard_s, heard_s))


def in_order(sights: dict[str, Sight], skew_s: float) -> list[str]:
    """Ids by first sight."""
    return sorted(sights, key=lambda name: (sights[name].said_s(skew_s), name))


class Labels:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._first: dict[str, Sight] = {}

    def meet(self, patient: str, heard: Heard[Payload]) -> None:
        """A message speaks of this patient."""
        self._first[patient] = earlier(self._first.get(patient), heard)
        if len(self._first) > MAX_LABELS:
            del self._first[in_order(self._first, 0.0)[0]]

    def first_s(self, patient: str, skew_s: float) -> float:
        """When the patient was first spoken of, in seconds of our clock."""
        return self._first[patient].said_s(skew_s) if patient in self._first else 0.0

    def view(self, patients: Iterable[str], skew_s: float, now_s: float, zone: tzinfo | None) -> dict[str, str]:
        """Labels of these patients; one who was first seen on another day gets the date, or two would share one."""
        days: dict[str, list[str]] = {}
        for patient in in_order(self._first, skew_s):
            days.setdefault(day_of(self.first_s(patient, skew_s), zone), []).append(patient)
        today = day_of(now_s, zone)
        labels: dict[str, str] = {}
        for day, names in days.items():
            suffix = "" if day == today else f" of {datetime.fromisoformat(day):%d %b}"
            labels |= {name: f"Patient {number}{suffix}" for number, name in enumerate(names, 1)}
        return {patient: labels[patient] for patient in patients if patient in labels}
