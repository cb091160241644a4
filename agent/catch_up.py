"""What a receiver that came late has missed: the state and the heat maps of one patient, from the ledger.

Belongs to the SENDER room, which owns the ledger. What it says again is what was said, under the same event_ids;
only heat maps are built anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.commands import StateReplayed
from agent.heat_map import HeatMap
from agent.ledger import Ledger
from agent.reporter import Speaker
from agent.topics import Message
from models.contract import SlideKey

PATCHES_A_MESSAGE = 60
"""Keeps a message below 2 kB."""


@dataclass(frozen=True)
class Missed:
    """See the module's docstring."""

    told: StateReplayed
    state: tuple[Message, ...]
    """The birth, `current`, and the patient's posteriors and finals."""
    heat_maps: Iterator[Message]
    """Built one by one as they are taken."""


class CatchUp:
    """See the module's docstring."""

    def __init__(self, ledger: Ledger, speaker: Speaker, birth: Callable[[], Message]) -> None:
        self._ledger = ledger
        self._sha256 = speaker.profile.sha256
        self._speaker = speaker
        self._birth = birth

    def gather(self) -> Missed:
        """Everything of the patient on the table, else of the one of whom something was said last."""
        retained = [(message, json.loads(message.payload)) for message in self._ledger.retained(waiting=True)]
        named = [(message.kind, body.get("patient")) for message, body in retained]
        current = [patient for kind, patient in named if kind == "current" and patient is not None]
        spoken = [patient for kind, patient in named if kind in ("patient.posterior", "patient.final")]
        patient = next(iter((*current, *reversed(spoken))), None)
        theirs = [pair for pair in retained if pair[0].kind == "current" or pair[1].get("patient") == patient]
        names = {body["slide"] for message, body in theirs if message.kind.startswith("slide.")}
        slides = [SlideKey(str(patient), name) for name in sorted(names)]
        total = sum(self._ledger.patches.count(self._sha256, slide) for slide in slides)
        told = StateReplayed(patient=patient, retained=1 + len(theirs), patches=total)
        return Missed(told, (self._birth(), *(message for message, _ in theirs)), self._heat_maps(slides))

    def _heat_maps(self, slides: list[SlideKey]) -> Iterator[Message]:
        """Reads one slide at a time, when its turn has come: all at once would hold up what is new."""
        heat_map = HeatMap(self._speaker.profile.spec)
        for slide in slides:
            rows = list(self._ledger.patches.restore(self._sha256, slide))
            for start in range(0, len(rows), PATCHES_A_MESSAGE):
                for payload in heat_map.tell(rows[start : start + PATCHES_A_MESSAGE], self._speaker.stamp):
                    yield self._speaker.topics.message(payload)
