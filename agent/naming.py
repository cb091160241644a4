"""Naming rules: what one is (a pattern with named groups), and the built-in ones for the known layouts.

Decides which rules are usable and in which order; agent.layouts applies them to names.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agent.pattern_cost import why_slow
from agent.typed_yaml import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Builtin = Literal["sidecars", "strips-b", "strips-c", "opensrh", "tiff-strip", "tiff-mosaic", "strips-a"]
"""The built-in naming rules (agent.layouts), in the order in which they are tried."""
BUILTINS: tuple[Builtin, ...] = (
    "sidecars",
    "strips-b",
    "strips-c",
    "opensrh",
    "tiff-strip",
    "tiff-mosaic",
    "strips-a",
)
CHANNELS = {"CH2": 0, "2845": 0, "CH3": 1, "2930": 1}


class NamingRule(Section):
    """One naming convention: a pattern with named groups, and what the groups mean.

    A scan strip is found from `strip` and `channel`; from `number` and `channel` (each file has a number and CH3
    follows its CH2: strip = number - channel); or from `number` alone, a running counter that starts at
    `first_number`: even = CH2, odd = CH3. A patch is at (x + x_inner, y + y_inner).
    """

    name: Name
    """How logs and results call this rule."""
    pattern: str
    """Regular expression for the whole path relative to the watched folder, with `/` between folders. Named groups:
    patient, slide, strip, channel, number, x, y, x_inner, y_inner; others may be used in the templates below. A
    pattern that could keep the agent busy for ever, as (a+)+ can, is refused; longer paths than 512 characters fit
    none."""
    kind: Literal["strip", "mosaic", "patch", "ignore"] = "strip"
    """What one file holds; `ignore` for files that are no network input."""
    patient: str | None = None
    """Patient where the pattern has no such group or it is empty; {group} inserts a group."""
    slide: str | None = None
    """Slide where the pattern has no such group or it is empty; {group} inserts a group."""
    channels: dict[str, int] = CHANNELS
    """Text of the group `channel` → 0 (CH2) or 1 (CH3); upper and lower case are the same."""
    first_number: int = Field(0, ge=0)
    """Number of a slide's first file where `number` is a running counter."""
    planes_per_file: Literal[1, 2] = 1
    """1: a file holds one channel; 2: a file holds CH2 and CH3."""

    @model_validator(mode="after")
    def _usable(self) -> NamingRule:
        try:
            groups = set(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from error
        except (OverflowError, RecursionError) as error:
            raise ValueError("pattern is nested too deeply or repeats too often") from error
        if slow := why_slow(self.pattern):
            raise ValueError(f"pattern {slow}")
        for wanted in sorted(self._wanted(groups) - groups):
            raise ValueError(f"pattern of a {self.kind} rule lacks the group (?P<{wanted}>...)")
        for name, template in (("patient", self.patient), ("slide", self.slide)):
            for used in sorted(set(re.findall(r"\{(\w+)\}", template or "")) - groups):
                raise ValueError(f"{name} uses {{{used}}}, which is no group of the pattern")
        if not set(self.channels.values()) <= {0, 1}:
            raise ValueError("channels may map to 0 (CH2) and 1 (CH3) only")
        return self

    def _wanted(self, groups: set[str]) -> set[str]:
        if self.kind == "ignore":
            return set()
        wanted = {name for name in ("patient", "slide") if getattr(self, name) is None}
        if self.kind == "patch":
            wanted |= {"x", "y"}
        if self.kind == "strip" and "number" not in groups:
            wanted |= {"strip"}
        counted = self.kind == "strip" and "strip" not in groups
        if self.planes_per_file == 1 and not counted:
            wanted |= {"channel"}
        return wanted


class NamingSettings(Section):
    """How file names become patient, slide, strip and channel (see docs of agent.layouts)."""

    builtin: tuple[Builtin, ...] = BUILTINS
    """Built-in rules in use."""
    first_number: int = Field(0, ge=0)
    """Number of a slide's first file in the built-in rules with a running counter (strips-a, strips-c)."""
    rules: tuple[NamingRule, ...] = ()
    r"""Own rules, tried before the built-in ones: name, pattern, kind, patient, slide, channels, first_number,
    planes_per_file. A rule for P1/S2/7_CH3.tif:
    {name: lab, pattern: '(?P<patient>[^/]+)/(?P<slide>[^/]+)/(?P<strip>\d+)_(?P<channel>CH[23])\.tif'}"""
    tags: bool = True
    """Whether DICOM tags decide where no rule knows the name."""
    tags_first_number: int = Field(1, ge=0)
    """InstanceNumber of a slide's first file where DICOM tags decide and name no channel."""


_IMAGE = r"\.(?i:dcm|tiff?)"
_TIFF = r"\.(?i:tiff?)"

BUILTIN_RULES: dict[Builtin, tuple[NamingRule, ...]] = {
    # Metadata beside the pixels: OpenSRH's meta/*.json and the phantom's truth.json.
    "sidecars": (NamingRule(name="sidecars", kind="ignore", pattern=r"(?:.*/)?(?:meta/[^/]+|truth)\.json"),),
    # <study>/<series>/strips/CH2/IMG00006.dcm with CH3/IMG00007.dcm. The counter also counts other objects, so a
    # strip is called by its CH2 file's number. The mosaic beside them is a virtual H&E picture for people.
    "strips-b": (
        NamingRule(
            name="strips-b",
            pattern=r"(?:.*/)?(?P<patient>[^/]+)/(?P<slide>[^/]+)/strips/(?P<channel>(?i:CH[23]))/"
            rf"(?i:IMG)(?P<number>\d+){_IMAGE}",
        ),
        NamingRule(name="strips-b-mosaic", kind="ignore", pattern=r"(?:.*/)?[^/]+/[^/]+/mosaics?/(?:.*/)?[^/]+\.\w+"),
    ),
    # [<patient>/]img<mosaic>_<strip>_<hash>.dcm. Assumption: <strip> counts files, CH2 and CH3 in turn. The patient
    # is the whole folder path, so that equal folder names in two places stay two patients.
    "strips-c": (
        NamingRule(
            name="strips-c",
            pattern=rf"(?:(?P<patient>.+)/)?img(?P<slide>\d+)_(?P<number>\d+)_[^/_]+{_IMAGE}",
            patient="folder",
        ),
    ),
    # studies/<patient>/<slide>/patches/<patient>-<slide>-<ix>_<jx>_<iy>_<jy>.tif: the field of view's origin
    # (ix, jx) plus the place (iy, jy) inside it.
    "opensrh": (
        NamingRule(
            name="opensrh",
            kind="patch",
            planes_per_file=2,
            pattern=r"(?:.*/)?(?P<patient>[^/]+)/(?P<slide>[^/]+)/patches/(?P=patient)-(?P=slide)-"
            rf"(?P<x>\d+)_(?P<y>\d+)_(?P<x_inner>\d+)_(?P<y_inner>\d+){_TIFF}",
        ),
    ),
    "tiff-strip": (
        NamingRule(
            name="tiff-strip",
            planes_per_file=2,
            pattern=rf"(?:.*/)?(?P<patient>[^/]+)/(?P<slide>[^/]+)/strip_(?P<strip>\d+){_TIFF}",
        ),
    ),
    "tiff-mosaic": (
        NamingRule(
            name="tiff-mosaic",
            kind="mosaic",
            planes_per_file=2,
            pattern=rf"(?:.*/)?(?P<patient>[^/]+)/(?P<slide>[^/]+)/mosaic{_TIFF}",
        ),
    ),
    # <prefix>_<specimen>_<n>.dcm: the most general pattern, so the last one, and not inside another layout's folders.
    "strips-a": (
        NamingRule(
            name="strips-a",
            pattern=r"(?!(?:.*/)?(?:patches|strips|mosaics?)/)"
            rf"(?:.*/)?(?P<patient>[^/]+)_(?P<slide>[^/_]+)_(?P<number>\d+){_IMAGE}",
        ),
    ),
}
_COUNTED = ("strips-a", "strips-c")


def rules_of(naming: NamingSettings) -> tuple[NamingRule, ...]:
    """The rules in the order in which they are tried: the user's own, then the built-in ones in use."""
    chosen = (rule for name, rules in BUILTIN_RULES.items() if name in naming.builtin for rule in rules)
    counted = {"first_number": naming.first_number}
    return naming.rules + tuple(rule.model_copy(update=counted) if rule.name in _COUNTED else rule for rule in chosen)
