"""What must hold after any faults: what was lost, what was doubled, what differs from an undisturbed run.

Sees what a receiver sees (messages), what is on the disk (a copy of the ledger, by its own queries; the spool) and
what `agent score` says of the same files. Knows nothing of which faults there were.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.contract import SlideKey
from models.posterior import FRACTION_BITS
from tests.system.processes import AgentProcess

SAME = (
    "probabilities",
    "interval",
    "counts",
    "predicted",
    "decision",
    "decision_reason",
    "high_confidence",
    "domain",
)
"""Fields in which a final must equal `agent score` on the same files, floats to the last bit."""
SAME_OF_SLIDE = (*SAME, "state", "strips")
Place = tuple[str, str, int, int, int]
"""Patient, slide, strip, x, y."""


@dataclass
class Verdict:
    """Everything that is not as it must be."""

    lost: list[str] = field(default_factory=list)
    """Patches, finals and alerts that are missing."""
    doubled: list[str] = field(default_factory=list)
    """What was counted or said twice, or said differently under one event_id."""
    differing: list[str] = field(default_factory=list)
    """Results that are not those of an undisturbed run."""
    odd: list[str] = field(default_factory=list)
    """Whatever else must not happen: a process that ends by itself, a traceback."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.lost or self.doubled or self.differing or self.odd)

    def found(self) -> dict[str, list[str]]:
        """What was found, by kind."""
        return {kind: said for kind, said in vars(self).items() if said}


@dataclass(frozen=True)
class Standing:
    """What a ledger held at one moment, by pseudonyms."""

    patches: Mapping[Place, bytes] = field(default_factory=dict)
    """Place → outcome as the ledger keeps it."""
    rows: int = 0
    """Rows of patches."""
    owed: frozenset[str] = frozenset()
    """event_ids of finals and alerts that are promised to the broker."""
    finals: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """(scope, patient, slide) → revision."""


def standing(state: Path, scratch: Path) -> Standing:
    """Look into a copy of a ledger that nobody is writing; nothing at all when there is none yet."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path in state.glob("ledger.sqlite*"):
        shutil.copyfile(path, scratch / path.name)
    if not (scratch / "ledger.sqlite").exists():
        return Standing()
    database = sqlite3.connect(scratch / "ledger.sqlite")
    try:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not {"patches", "outbox", "finals"} <= tables:
            return Standing()
        query = "SELECT patient, slide, strip, x, y, outcome FROM slides JOIN patches USING (slide_id)"
        patches = database.execute(query).fetchall()
        finals = database.execute("SELECT scope, patient, slide, revision FROM finals")
        owed = database.execute("SELECT event_id FROM outbox WHERE NOT coalesce")
        return Standing(
            {row[:5]: row[5] for row in patches},
            len(patches),
            frozenset(row[0] for row in owed),
            {row[:3]: row[3] for row in finals},
        )
    finally:
        database.close()


@dataclass(frozen=True)
class Heard:
    """What reached a subscriber, in the order of arrival."""

    bodies: list[dict[str, Any]]
    """Payloads as parsed JSON, each with its `bytes`."""

    def of_kind(self, ending: str) -> list[dict[str, Any]]:
        """Messages whose kind ends so, repetitions left out."""
        first: dict[str, dict[str, Any]] = {}
        for body in self.bodies:
            if body["kind"].endswith(ending):
                first.setdefault(body["event_id"], body)
        return list(first.values())

    @property
    def status(self) -> str:
        """The last state of the agent that was told."""
        return next((str(body["state"]) for body in reversed(self.bodies) if body["kind"] == "status"), "")

    def finals(self, scope: str) -> dict[str, dict[str, Any]]:
        """The last final on each topic."""
        return {body[scope]: body for body in self.bodies if body["kind"] == f"{scope}.final"}


class Judge:
    """Compares one agent's whole life with an undisturbed run."""

    def __init__(self, agent: AgentProcess, scores: Mapping[str, Any]) -> None:
        """`scores` is what `agent score --out` wrote of the same files; the agent must have made its key."""
        self.patches = sum(row["counts"]["seen"] for row in scores["slides"])
        """Of all slides."""
        self._agent = agent
        self._scores = scores
        self._slides: dict[SlideKey, Mapping[str, Any]] = {
            agent.pseudonym(row["patient"], row["slide"]): row for row in scores["slides"]
        }
        self._patients: dict[str, Mapping[str, Any]] = {
            agent.pseudonym(row["patient"], "").patient: row for row in scores["patients"]
        }

    def differing(self, heard: Heard) -> list[str]:
        """In what the last final of a slide or patient is not that of the undisturbed run."""
        of_slide, of_patient = heard.finals("slide"), heard.finals("patient")
        found = []
        for key, row in self._slides.items():
            found += _unlike(of_slide.get(key.slide), row, SAME_OF_SLIDE, f"slide {row['patient']}/{row['slide']}")
        for name, row in self._patients.items():
            found += _unlike(of_patient.get(name), row, SAME, f"patient {row['patient']}")
        return found

    def judge(self, heard: Heard, deaths: Iterable[Standing], scratch: Path) -> Verdict:
        """Look at everything, after a clean end; `deaths` are the ledger's standings whenever its process died."""
        verdict = Verdict(differing=self.differing(heard))
        last = standing(self._agent.state, scratch)
        self._look_at_messages(heard, verdict)
        self._look_at_promises(heard, [*deaths, last], verdict)
        self._look_at_patches(last, verdict)
        self._look_at_finals(heard, last, verdict)
        self._look_at_alerts(heard, verdict)
        if "Traceback" in self._agent.log():
            verdict.odd.append("a traceback in the log")
        return verdict

    def _look_at_messages(self, heard: Heard, verdict: Verdict) -> None:
        """One event_id is one message, to the last byte; no count ever exceeds what the files hold."""
        first: dict[str, bytes] = {}
        hold = {**{key.slide: row for key, row in self._slides.items()}, **self._patients}
        for body in heard.bodies:
            name = f"{body['kind']} {body['event_id']}"
            if body["bytes"] != first.setdefault(body["event_id"], body["bytes"]):
                verdict.doubled.append(f"{name} was said with two contents")
            if body["kind"].endswith((".posterior", ".final")):
                counts, most = body["counts"], hold[body.get("slide") or body["patient"]]["counts"]["seen"]
                if counts["seen"] > most or counts["seen"] != counts["used"] + sum(counts["rejected"].values()):
                    verdict.doubled.append(f"{name} counts {counts}, the files hold {most}")

    @staticmethod
    def _look_at_promises(heard: Heard, lives: list[Standing], verdict: Verdict) -> None:
        """What a ledger held when its process died is there ever after, or has reached the broker."""
        said = {body["event_id"] for body in heard.bodies}
        for number, (before, after) in enumerate(itertools.pairwise(lives)):
            gone = [name for name, n in before.finals.items() if after.finals.get(name, 0) < n]
            verdict.lost += [f"message {event_id} of life {number} never came" for event_id in before.owed - said]
            verdict.lost += [f"patch {place} of life {number}" for place in before.patches.keys() - after.patches]
            verdict.lost += [f"final {name} of life {number} went back" for name in gone]
        if lives[-1].owed:
            verdict.lost.append(f"{len(lives[-1].owed)} messages are still in the outbox")

    def _look_at_patches(self, last: Standing, verdict: Verdict) -> None:
        """The ledger holds each patch of the files once, with the values of the undisturbed run."""
        expected: dict[Place, tuple[float, ...]] = {}
        keys = {(row["patient"], row["slide"]): key for key, row in self._slides.items()}
        for patch in self._scores["patches"]:
            key = keys[patch["patient"], patch["slide"]]
            expected[*key, patch["strip"], patch["x"], patch["y"]] = tuple(patch["probabilities"])
        used = {place: values for place, out in last.patches.items() if (values := _values(out)) is not None}
        verdict.lost += [f"patch {place} was not counted" for place in expected.keys() - used]
        verdict.doubled += [f"patch {place} was invented" for place in used.keys() - expected]
        verdict.differing += [f"patch {p} differs" for p in expected.keys() & used if expected[p] != used[p]]
        if last.rows != len(last.patches):
            verdict.doubled.append(f"{last.rows} rows for {len(last.patches)} patches")
        rejected = Counter((place[:2], out[1:].decode()) for place, out in last.patches.items() if out[:1] == b"r")
        for (slide, reason), count in rejected.items():
            row = self._slides.get(SlideKey(*slide))
            most = 0 if row is None else row["counts"]["rejected"].get(reason, 0)
            if count > most:
                verdict.doubled.append(f"{count} patches of {slide} are {reason}, not {most}")

    def _look_at_finals(self, heard: Heard, last: Standing, verdict: Verdict) -> None:
        """Each revision was heard, in order, superseding the one before, and lies in the spool."""
        spool = {path.stem for path in (self._agent.state / "results").glob("*.json")}
        for (scope, patient, slide), latest in last.finals.items():
            finals = heard.of_kind(f"{scope}.final")
            said = [body for body in finals if (body["patient"], body.get("slide", "")) == (patient, slide)]
            ids = [body["event_id"] for body in said]
            revisions = [body["revision"] for body in said]
            missing = set(range(1, latest + 1)) - set(revisions)
            verdict.lost += [f"revision {number} of a {scope} final never came" for number in sorted(missing)]
            verdict.lost += [f"{scope} final {id_} is not in the spool" for id_ in ids if id_ not in spool]
            if not missing and revisions != list(range(1, latest + 1)):
                verdict.odd.append(f"{scope} finals came out of order: revisions {revisions}")
            elif not missing and [body["supersedes"] for body in said] != [None, *ids[:-1]]:
                verdict.odd.append(f"{scope} finals do not supersede each other")

    def _look_at_alerts(self, heard: Heard, verdict: Verdict) -> None:
        """Each problem of the files was told, and none of them under two event_ids."""
        alerts = heard.of_kind("alert")
        slides = {row["slide"]: key.slide for key, row in self._slides.items()}
        told = {(body["reason"], body["slide"]) for body in alerts}
        for problem in self._scores["problems"]:
            if (problem["reason"], slides.get(problem["slide"])) not in told:
                verdict.lost.append(f"alert {problem['reason']} never came")
        # Of files that were whole when they were looked at: the same problem of a file that has grown is another.
        whole = [body for body in alerts if body["reason"] in ("not_an_image", "truncated")]
        same = Counter((body["reason"], body["file"], body["detail"]) for body in whole)
        verdict.doubled += [f"alert {which[0]} came {n} times" for which, n in same.items() if n > 1]


def _values(outcome: bytes) -> tuple[float, ...] | None:
    """[K] probabilities of a used patch, from its outcome in the ledger; None for a rejected one."""
    head = {b"r": None, b"v": 1, b"j": 2}[outcome[:1]]
    if head is None:
        return None
    return tuple(value / (1 << FRACTION_BITS) for (value,) in struct.iter_unpack("<q", outcome[head:]))


def _unlike(final: Mapping[str, Any] | None, row: Mapping[str, Any], fields: Iterable[str], what: str) -> list[str]:
    """In which fields a final is not what `agent score` says."""
    if final is None:
        return [f"{what}: no final"]
    # On the wire "nothing to say" is null, in a score an empty list.
    return [
        f"{what}: {name} is {final[name]}, not {row[name]}"
        for name in fields
        if (final[name] or None) != (row[name] or None)
    ]
