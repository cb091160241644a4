"""What the objects are called: identifiers of patient and slide, and UIDs that are the same each time.

Decides what identity an object bears. Without leave of the site that is the pseudonyms that the agent uses.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError
from agent.results import SlideFinal
from agent.spool import SpooledResult

_NAMESPACE = uuid.UUID("4f1f6e0c-6e3b-5c0e-9d0c-2f8f5c0d7a11")
LONGEST_ID = 64
"""Characters of a Patient ID or specimen identifier (LO)."""


class NameUnknown(AgentError):
    """The lookup file holds no name for a pseudonym."""


def uid(*said: str) -> str:
    """A UID made of words: the same words give the same UID (PS3.5, B.2; UUID version 5)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(31).join(said)).int}"


@dataclass(frozen=True)
class Names:
    """What one result's objects are called."""

    patient: str
    """Patient ID."""
    slide: str | None
    """Container and specimen identifier; None for a patient's result."""
    real: bool
    """Whether these are the site's own names and not pseudonyms."""


class NameBook:
    """Pseudonyms → the site's own names, from the agent's lookup file; without one pseudonyms stay what they are."""

    def __init__(self, lookup: Path | None = None) -> None:
        """Reads the file at each question, since the agent writes on."""
        self._lookup = lookup

    def names_of(self, result: SpooledResult) -> Names:
        """Raises NameUnknown for a pseudonym that the file does not hold, AgentError when it cannot be read."""
        final = result.final
        slide = final.slide if isinstance(final, SlideFinal) else None
        if self._lookup is None:
            return Names(final.patient, slide, real=False)
        known = self._read(self._lookup)
        try:
            return Names(known[final.patient], None if slide is None else known[slide], real=True)
        except KeyError as error:
            raise NameUnknown(
                f"{self._lookup} holds no name for pseudonym {error.args[0]}: the file must have been there before "
                "the agent saw the slide; dicom_out.identity: false writes pseudonyms"
            ) from error

    @staticmethod
    def _read(path: Path) -> dict[str, str]:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
            entries = [json.loads(line) for line in lines if line.endswith("}")]
            return {entry["pseudonym"]: _identifier(entry["original"][-1]) for entry in entries}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise AgentError(f"identity.lookup_file {path} cannot be used: {type(error).__name__}") from error


def _identifier(name: str) -> str:
    """As DICOM takes it: no backslash, no control characters, no bytes that are no text, not too long."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\\", "/")
    return "".join(letter for letter in text if letter.isprintable()).strip()[:LONGEST_ID]


@dataclass(frozen=True)
class Uids:
    """The UIDs around one result. Objects with real names share none with those that bear pseudonyms."""

    result: SpooledResult
    real: bool

    @property
    def study(self) -> str:
        """One study a patient."""
        return self._of("study", self.result.final.patient)

    @property
    def specimen(self) -> str:
        """The slide's specimen."""
        return self._of("specimen", *self._scope)

    @property
    def tracking(self) -> str:
        """The measured thing: the same for every revision."""
        return self._of("tracking", *self._scope)

    @property
    def frame_of_reference(self) -> str:
        """The slide's own coordinates."""
        return self._of("frame-of-reference", *self._scope)

    @property
    def observer(self) -> str:
        """The agent at this instrument."""
        return uid("observer", self.result.origin.site, self.result.origin.instrument)

    def series(self, kind: str) -> str:
        """One series for each kind of object and each slide (or patient)."""
        return self.series_of_slide(kind, self._scope[-1])

    def series_of_slide(self, kind: str, slide: str) -> str:
        """The series of another slide of this patient."""
        return self._of("series", kind, self.result.final.patient, slide)

    def instance(self, kind: str, event_id: str | None = None) -> str:
        """The object of this kind for this final, or for another."""
        return self._of("instance", kind, event_id or self.result.final.event_id)

    def part(self, kind: str) -> str:
        """A UID needed within the object of this kind."""
        return self._of("part", kind, self.result.final.event_id)

    @property
    def _scope(self) -> tuple[str, str]:
        final = self.result.final
        return final.patient, final.slide if isinstance(final, SlideFinal) else ""

    def _of(self, *said: str) -> str:
        return uid("real" if self.real else "pseudonymous", *said)
