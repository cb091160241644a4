"""The results that are held, by patient and slide: what is shown, the history of the day, what goes first. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from agent.dashboard.answers import Answers, Final
from agent.dashboard.heard import Heard, Now, as_json, day_of
from agent.dashboard.heat_maps import Seen
from agent.dashboard.labels import Labels, Sight, earlier, in_order
from agent.results import PatientFinal, PatientPosterior, Result, SlideFinal, SlidePosterior

MAX_PATIENTS = 64
MAX_SLIDES = 256
"""Slides of all patients."""
HISTORY_SHOWN = 50

AnyResult = SlidePosterior | SlideFinal | PatientPosterior | PatientFinal


@dataclass
class Patient:
    """One patient's results."""

    answers: Answers = field(default_factory=Answers)
    slides: dict[str, Answers] = field(default_factory=dict)
    first: dict[str, Sight] = field(default_factory=dict)
    """Slide → when it was first spoken of."""

    def all_answers(self) -> Iterator[tuple[str | None, Answers]]:
        """The patient's own (slide None) and those of the slides."""
        yield None, self.answers
        yield from self.slides.items()

    def last_s(self, skew_s: float) -> float:
        """When something was last said of the patient, in seconds of our clock."""
        return max(answers.last_s(skew_s) for _, answers in self.all_answers())

    @property
    def spoken_s(self) -> float:
        """The same, as it seemed when it was heard."""
        return max(answers.spoken_s for _, answers in self.all_answers())

    def in_order(self, skew_s: float) -> list[str]:
        """The slides by first sight."""
        return in_order(self.first, skew_s)


class Patients:
    """See the module's docstring."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._held: dict[str, Patient] = {}

    def hear(self, result: AnyResult, at: Now, live: bool, skew_s: float, keep: str | None) -> None:
        """Take a result. Beyond the limits the patient, or slide, spoken of least lately goes, but never `keep`."""
        held = self._held.setdefault(result.patient, Patient())
        answers = held.answers
        if isinstance(result, SlidePosterior | SlideFinal):
            answers = held.slides.setdefault(result.slide, Answers())
            held.first[result.slide] = earlier(held.first.get(result.slide), Heard(result, at, live))
        if isinstance(result, SlideFinal | PatientFinal):
            answers.hear_final(Heard(result, at, live), skew_s)
        else:
            answers.hear_posterior(Heard(result, at, live), skew_s)
        self._forget_patients(keep)
        self._forget_slides(keep)

    def shown(self, current: str | None, skew_s: float, now: Now, zone: tzinfo | None) -> str | None:
        """The current patient, else the last one of today."""
        if current is not None:
            return current
        today = day_of(now.wall_s, zone)
        todays = [name for name, held in self._held.items() if day_of(held.last_s(skew_s), zone) == today]
        return max(todays, key=lambda name: (self._labels.first_s(name, skew_s), name), default=None)

    def patient_view(self, patient: str | None, skew_s: float) -> dict[str, Any] | None:
        """The `patient` of the view."""
        newest = self._of(patient).answers.newest(skew_s)
        return None if newest is None else as_json(newest.body)

    def slides_view(self, patient: str | None, skew_s: float) -> list[dict[str, Any]]:
        """The `slides` of the view."""
        held = self._of(patient)
        named = ((name, held.slides[name]) for name in held.in_order(skew_s))
        return [_slide_view(name, number, answers, skew_s) for number, (name, answers) in enumerate(named, 1)]

    def result(self, patient: str | None, slide: str, skew_s: float) -> Result | None:
        """The newest result of a slide."""
        newest = self._of(patient).slides.get(slide, Answers()).newest(skew_s)
        return None if newest is None else newest.body

    def seen(self, patient: str | None, skew_s: float) -> list[Seen]:
        """Slides of a patient by first sight, and the patches seen of each."""
        results = ((name, self.result(patient, name, skew_s)) for name in self._of(patient).in_order(skew_s))
        return [
            Seen(name, 0, False) if result is None else Seen(name, result.counts.seen, result.state != "receiving")
            for name, result in results
        ]

    def slides_told(self, patient: str | None, skew_s: float) -> int:
        """How many slides the patient has, by the patient's own result."""
        newest = self._of(patient).answers.newest(skew_s)
        told = None if newest is None else newest.body
        return min(told.slides, MAX_SLIDES) if isinstance(told, PatientPosterior | PatientFinal) else 0

    def lacking(self, patient: str | None, slide: str | None, skew_s: float) -> list[tuple[str, str]]:
        """Which of these two have no result at all, as ("patient", id) and ("slide", id)."""
        held = self._of(patient)
        lacks_patient = patient is not None and held.answers.newest(skew_s) is None
        lacks_slide = slide is not None and slide not in held.slides
        return [("patient", patient or "")] * lacks_patient + [("slide", slide or "")] * lacks_slide

    def newest(self, patient: str | None, skew_s: float) -> Heard[Result] | None:
        """The newest result of a patient or of one of the patient's slides."""
        found = [answers.newest(skew_s) for _, answers in self._of(patient).all_answers()]
        said = [heard for heard in found if heard is not None]
        return max(said, key=lambda heard: heard.order(skew_s), default=None)

    def history_view(self, skew_s: float, now: Now, zone: tzinfo | None) -> list[dict[str, Any]]:
        """The `history` of the view: finals of today, newest first; a superseded one stays, marked."""
        today = day_of(now.wall_s, zone)
        finals = [
            (final, slide, answers)
            for held in self._held.values()
            for slide, answers in held.all_answers()
            for final in answers.finals.values()
            if day_of(final.said_s(skew_s), zone) == today
        ]
        finals.sort(key=lambda entry: entry[0].order(skew_s), reverse=True)
        return [
            _history_entry(final.body, slide, superseded=answers.is_superseded(final, skew_s))
            for final, slide, answers in finals[:HISTORY_SHOWN]
        ]

    def slide_labels(self, skew_s: float) -> dict[str, str]:
        """Labels of every slide held, numbered within its patient."""
        return {
            name: _slide_label(number)
            for held in self._held.values()
            for number, name in enumerate(held.in_order(skew_s), 1)
        }

    def _of(self, patient: str | None) -> Patient:
        return self._held.get(patient or "", Patient())

    def _forget_patients(self, keep: str | None) -> None:
        if len(self._held) > MAX_PATIENTS:
            others = [name for name in self._held if name != keep]
            del self._held[min(others, key=lambda name: (self._held[name].spoken_s, name))]

    def _forget_slides(self, keep: str | None) -> None:
        if sum(len(held.slides) for held in self._held.values()) > MAX_SLIDES:
            slides = [
                (patient == keep, answers.spoken_s, slide, patient)
                for patient, held in self._held.items()
                for slide, answers in held.slides.items()
            ]
            _, _, slide, patient = min(slides)
            del self._held[patient].slides[slide], self._held[patient].first[slide]


def _slide_label(number: int) -> str:
    return f"Slide {number}"


def _slide_view(name: str, number: int, answers: Answers, skew_s: float) -> dict[str, Any]:
    newest, final = answers.newest(skew_s), answers.final(skew_s)
    return {
        "slide": name,
        "label": _slide_label(number),
        "result": None if newest is None else as_json(newest.body),
        "is_final": final is not None and newest is final,
        "revision": None if final is None else final.body.revision,
        "corrected": final is not None and final.body.revision > 1,
    }


def _history_entry(final: Final, slide: str | None, *, superseded: bool) -> dict[str, Any]:
    written = as_json(final)
    names = ("time", "patient", "predicted", "confidence", "decision", "counts", "revision")
    return {**{name: written[name] for name in names}, "slide": slide, "superseded": superseded}
