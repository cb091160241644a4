"""Where a file belongs: its path, or its DICOM tags, → patient, slide, strip and channel, under pseudonyms.

Decides by naming rules, which are configuration (agent.naming); opens no file and knows no pixel. Identity ends
here: results and their texts carry pseudonyms only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from agent.identity import Naming
from agent.naming import NamingRule
from models.contract import Part, SlideKey


@dataclass(frozen=True)
class Placed:
    """The file belongs to `part`; it holds one plane, of `channel`, or both planes (`channel` None)."""

    part: Part
    channel: int | None
    planes: Literal[1, 2]
    rule: str


@dataclass(frozen=True)
class Ignored:
    """The file is no network input, says `rule` (a virtual H&E picture, metadata, a temporary name)."""

    rule: str


@dataclass(frozen=True)
class Waiting:
    """The file's place cannot be told yet; ask again when another file has appeared."""

    why: str


@dataclass(frozen=True)
class Misnumbered:
    """The slide's running counter contradicts the rule: no file of this slide may be paired."""

    detail: str


@dataclass(frozen=True)
class Unknown:
    """No rule knows the name, or the tags do not suffice."""


Place = Placed | Ignored | Waiting | Misnumbered | Unknown

TEMPORARY = {
    ".tmp",
    ".temp",
    ".part",
    ".partial",
    ".filepart",
    ".crdownload",
    ".download",
    ".writing",
    ".swp",
    ".lock",
}
IMAGES = {".dcm", ".dicom", ".tif", ".tiff"}
"""Suffixes that promise an image."""
MAX_PATH_CHARS = 512
"""A longer path fits no rule: the time that a pattern may take grows with some power of it (agent.pattern_cost)."""
TAGS_RULE = "dicom-tags"
_PATIENT_TAGS = ("AccessionNumber", "PatientID", "StudyInstanceUID")
_SLIDE_TAGS = ("ContainerIdentifier", "SeriesInstanceUID")
_CHANNEL_TAGS = ("SeriesDescription", "OpticalPathDescription", "ImageComments")
_NUMBERS = ("strip", "number", "x", "y", "x_inner", "y_inner")
_MENTIONS = (re.compile(r"(?i)(?<![A-Z0-9])(?:CH2|2845)(?!\d)"), re.compile(r"(?i)(?<![A-Z0-9])(?:CH3|2930)(?!\d)"))


def is_temporary(relative: PurePosixPath) -> bool:
    """Whether this is a hidden file or a name that its writer will change: never an image yet."""
    name = relative.name
    return (
        any(part.startswith(".") for part in relative.parts)
        or name.endswith("~")
        or relative.suffix.lower() in TEMPORARY
    )


def may_be_image(relative: PurePosixPath) -> bool:
    """Whether a name that no rule knows may still be an image: its suffix says so, or it has none (DICOM exports are
    often called by a UID). Anything else may be a temporary name that will change.
    """
    suffix = relative.suffix.lower()
    return suffix in IMAGES or suffix[1:].isdecimal() or not suffix


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts `strip_10` after `strip_9`."""
    return tuple(_by_size(piece) if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", text))


def _by_size(digits: str) -> tuple[int, str]:
    # As int() would order them, which refuses names of thousands of digits.
    return len(digits.lstrip("0")), digits.lstrip("0")


class Layouts:
    """Places files by naming rules; the first rule whose pattern fits the whole relative path decides.

    A running counter (names where even = CH2 and odd = CH3) with the wrong base would pair the CH3 of one strip with
    the CH2 of the next. So the files of such a slide are `Waiting` until the one with the first number has been asked
    for; a smaller number makes the whole slide `Misnumbered`. Files may be asked for in any order, and again.
    """

    def __init__(
        self, rules: Iterable[NamingRule], pseudonyms: Naming, by_tags: bool, tags_first_number: int = 1
    ) -> None:
        self._rules = [(re.compile(rule.pattern), rule) for rule in rules]
        self._pseudonyms = pseudonyms
        self._by_tags = by_tags
        self._tags_first_number = tags_first_number
        self._started: set[tuple[str, SlideKey]] = set()
        self._misnumbered: dict[tuple[str, SlideKey], Misnumbered] = {}

    def place(self, relative: PurePosixPath) -> Place:
        """Place a file by its path relative to the watched folder."""
        if is_temporary(relative):
            return Ignored("temporary")
        if len(str(relative)) > MAX_PATH_CHARS:
            return Unknown()
        for pattern, rule in self._rules:
            match = pattern.fullmatch(str(relative))
            if match:
                return Ignored(rule.name) if rule.kind == "ignore" else self._by_rule(rule, match.groupdict())
        return Unknown()

    def place_by_tags(self, tags: Mapping[str, str], planes: int = 1) -> Place:
        """Place a DICOM file by its tags (by keyword), where `place` did not know its name.

        AccessionNumber, PatientID or StudyInstanceUID name the patient; ContainerIdentifier or SeriesInstanceUID the
        slide. InstanceNumber is the strip where a description names the channel or the file has both planes, and a
        running counter otherwise. Unknown when a tag is missing, or when tags are not to be used.
        """
        patient = next((tags[name] for name in _PATIENT_TAGS if tags.get(name)), None)
        slide = next((tags[name] for name in _SLIDE_TAGS if tags.get(name)), None)
        number = _number(tags.get("InstanceNumber", "").strip())
        if not self._by_tags or not patient or not slide or number is None:
            return Unknown()
        key = self._key(patient, slide)
        if planes == 2:
            return Placed(Part(key, "strip", number), None, 2, TAGS_RULE)
        channel = _mentioned([tags.get(name, "") for name in _CHANNEL_TAGS])
        if channel is None:
            return self._by_counter(key, number, self._tags_first_number, TAGS_RULE)
        return Placed(Part(key, "strip", number), channel, 1, TAGS_RULE)

    def _by_rule(self, rule: NamingRule, groups: Mapping[str, str | None]) -> Place:
        patient, slide = (
            groups.get(name) or _fill(template, groups)
            for name, template in (("patient", rule.patient), ("slide", rule.slide))
        )
        if not patient or not slide:
            return Unknown()
        key = self._key(patient, slide)
        channel: int | None = None
        if rule.planes_per_file == 1 and "channel" in groups:
            by_text = {text.casefold(): value for text, value in rule.channels.items()}
            channel = by_text.get((groups["channel"] or "").casefold())
            if channel is None:
                return Unknown()
        if rule.kind == "mosaic":
            return Placed(Part(key, "mosaic", 0), channel, rule.planes_per_file, rule.name)
        numbers: dict[str, int] = {}
        for name in _NUMBERS:
            if (text := groups.get(name)) is not None:
                number = _number(text)
                if number is None:
                    return Unknown()
                numbers[name] = number
        return self._by_numbers(rule, key, numbers, channel)

    def _by_numbers(self, rule: NamingRule, key: SlideKey, n: Mapping[str, int], channel: int | None) -> Place:
        planes = rule.planes_per_file
        if rule.kind == "patch" and {"x", "y"} <= n.keys():
            origin = (n["x"] + n.get("x_inner", 0), n["y"] + n.get("y_inner", 0))
            return Placed(Part(key, "patch", 0, origin), channel, planes, rule.name)
        if rule.kind == "patch" or not {"strip", "number"} & n.keys():
            return Unknown()
        if "strip" in n:
            return Placed(Part(key, "strip", n["strip"]), channel, planes, rule.name)
        if planes == 1 and channel is None:
            return self._by_counter(key, n["number"], rule.first_number, rule.name)
        if n["number"] < (channel or 0):
            return Misnumbered(f"rule {rule.name}: a CH3 file with number 0 has no CH2 file before it")
        return Placed(Part(key, "strip", n["number"] - (channel or 0)), channel, planes, rule.name)

    def _by_counter(self, key: SlideKey, number: int, first: int, rule: str) -> Place:
        counter = (rule, key)
        if number < first:
            self._misnumbered[counter] = Misnumbered(
                f"rule {rule}: slide {key.slide} has a file with number {number}, but numbers start at {first}: "
                f"set first_number to {number} if that is its first file"
            )
        if counter in self._misnumbered:
            return self._misnumbered[counter]
        if number == first:
            self._started.add(counter)
        if counter not in self._started:
            return Waiting(
                f"rule {rule}: slide {key.slide} has no file with number {first} yet, which must come first: "
                "without it CH2 and CH3 cannot be told apart"
            )
        strip, channel = divmod(number - first, 2)
        return Placed(Part(key, "strip", strip), channel, 1, rule)

    def _key(self, patient: str, slide: str) -> SlideKey:
        of = self._pseudonyms.of
        return SlideKey(of("patient", patient), of("slide", patient, slide))


def _fill(template: str | None, groups: Mapping[str, str | None]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: groups[found[1]] or "", template or "")


def _number(text: str | None) -> int | None:
    """A whole number of at most nine digits, so that it fits wherever it is stored."""
    return int(text) if text and text.isdecimal() and len(text) <= 9 else None


def _mentioned(texts: Iterable[str]) -> int | None:
    """The one channel that the texts name; None for none or both."""
    found = {channel for text in texts for channel, mention in enumerate(_MENTIONS) if mention.search(text)}
    return found.pop() if len(found) == 1 else None
