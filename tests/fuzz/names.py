"""What placing owes us for any path, tags and naming rule: an answer in a short time, pseudonyms and nothing else.

Names are bytes on disk: they come as Python gives them, with surrogates for what is no UTF-8.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from random import Random

from pydantic import ValidationError

from agent.identity import Pseudonyms
from agent.layouts import Layouts, Misnumbered, Place, Placed, Waiting, is_temporary, may_be_image
from agent.layouts import natural as natural_order
from agent.naming import NamingRule, NamingSettings, rules_of
from tests.fuzz.mutation import mutated

_RULES = rules_of(NamingSettings())
_PSEUDONYM = re.compile(r"[a-z2-7]{16}")
_NAMING = Pseudonyms(bytes(32))

PATHS = (
    b"P1_S1_3.dcm",
    b"study/series/strips/CH2/IMG00006.dcm",
    b"study/series/mosaic/he.png",
    b"P1/img1_4_abcdef.dcm",
    b"studies/NIO_1/2/patches/NIO_1-2-1000_2000_300_600.tif",
    b"P1/S1/strip_4.tif",
    b"P1/S1/mosaic.tiff",
    b"meta/opensrh.json",
    b"incoming/P1_S1_3.dcm.part",
    b"1.2.826.0.1.3680043.8.498.1",
)
_PIECES: tuple[bytes, ...] = (
    *(
        b"/",
        b"..",
        b"../",
        b"_",
        b"__",
        b"-",
        b".dcm",
        b".TIF",
        b"CH2",
        b"ch3",
        b"IMG",
        b"img",
        b"patches/",
        b"strips/",
    ),
    *(b"\0", b"\n", b"\r\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", "٣".encode(), "²".encode(), "ı".encode(), b"9" * 40),
    *(b"a", b"A" * 255, b"0", b"{patient}", b"%s", b"$(x)", b"\\", b"~", b" ", b"truth.json", b"mosaic", b"strip_"),
)


def _insert(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(_PIECES) * rng.choice((1, 1, 1, 2, 10))


def _pump(rng: Random, data: bytearray) -> None:
    """Long names: a piece until the name has up to 10,000 characters."""
    piece = rng.choice((*_PIECES, b"a_", b"_1", b"/a", b"a/_", b"-1_1"))
    at = rng.randrange(len(data) + 1)
    data[at:at] = piece * min(rng.choice((20, 250, 4000, 10_000)), 10_000 // len(piece))


def make_path(rng: Random) -> bytes:
    """A path, mutated; the same bytes serve as tags."""
    return mutated(rng, PATHS, (_insert, _insert, _insert, _pump))


def check_path(case: bytes) -> str:
    """Place a path by the built-in rules, then by tags made of its folders."""
    layouts = Layouts(_RULES, _NAMING, by_tags=True)
    text = case.decode("utf-8", "surrogateescape")
    relative = PurePosixPath(text)
    place = layouts.place(relative)
    _check_place(place, text)
    is_temporary(relative)
    may_be_image(relative)
    assert natural_order(text) == natural_order(text)
    pieces = case.decode("utf-8", "replace").split("/")
    keywords = ("PatientID", "ContainerIdentifier", "InstanceNumber", "SeriesDescription", "ImageComments")
    for planes in (1, 2):
        _check_place(layouts.place_by_tags(dict(zip(keywords, pieces, strict=False)), planes), text)
    return type(place).__name__.lower()


def _check_place(place: Place, text: str) -> None:
    if isinstance(place, Placed):
        part = place.part
        assert _PSEUDONYM.fullmatch(part.slide.patient) and _PSEUDONYM.fullmatch(part.slide.slide), part
        assert 0 <= part.strip < 1 << 31 and all(0 <= n < 1 << 31 for n in part.origin), part
        assert place.channel in (None, 0, 1)
    if isinstance(place, Waiting | Misnumbered):
        said = place.why if isinstance(place, Waiting) else place.detail
        known = {word for rule in _RULES for word in (rule.name,)} | {"dicom-tags"}
        words = re.findall(r"[^\s:,]+", said)
        assert not [w for w in words if len(w) > 8 and w in text and w not in known and w not in _SAID], said


_SAID = {"different", "first_number", "channels", "together"}
"""Words of our own sentences that a mutated name may hold by chance."""

_ATOMS = (
    "a",
    "1",
    "_",
    "/",
    r"\.",
    r"\d",
    r"\w",
    r"[^/]",
    r"[^/_]",
    ".",
    r"\s",
    "[a-z0-9]",
    "(?i:CH[23])",
    "$",
    "^",
    r"\b",
)
_GROUPS = ("(?P<patient>{})", "(?P<slide>{})", "(?P<strip>{})", "(?P<channel>{})", "(?P<number>{})")
_WRAPS = ("(?:{})", "({})", "(?={})", "(?!{})", "(?>{})", "(?:{}|{})", "(?:{}|a)", "(?:{}_)")
_REPEATS = ("", "", "*", "+", "?", "*?", "+?", "++", "{2}", "{1,3}", "{2,}", "{0,60}")


def make_pattern(rng: Random) -> bytes:
    """A naming rule's pattern from a small grammar, a NUL, and a name with long runs."""
    parts = [_expression(rng, rng.randint(1, 3)) for _ in range(rng.randint(1, 3))]
    parts += [group.format(_expression(rng, 2)) for group in rng.sample(_GROUPS, rng.choice((0, 2, 3)))]
    rng.shuffle(parts)
    name = "".join(
        rng.choice(("a", "1", "_", "/", "a1", "a_", "CH2", ".")) * rng.choice((1, 3, 40)) for _ in range(6)
    )
    return "".join(parts).encode() + b"\0" + name[:250].encode()


def _expression(rng: Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(_ATOMS) + rng.choice(_REPEATS)
    inner = "".join(_expression(rng, depth - 1) for _ in range(rng.randint(1, 2)))
    return rng.choice(_WRAPS).replace("{}", inner) + rng.choice(_REPEATS)


def check_pattern(case: bytes) -> str:
    """A rule with this pattern is refused by name of the field, or places any name in a short time."""
    pattern, _, name = case.decode("utf-8", "replace").partition("\0")
    try:
        rule = NamingRule(name="own", pattern=pattern, kind="ignore")
    except ValidationError as error:
        assert all(detail["loc"] in ((), ("pattern",)) for detail in error.errors()), error
        return "refused"
    place = Layouts((rule,), _NAMING, by_tags=False).place(PurePosixPath(name))
    return type(place).__name__.lower()
