"""What a parser owes us for any bytes: refusals by FormatError only, regions within the header's shape that never
overlap, Complete only when every pixel is there, and the same outcome in whatever pieces the bytes come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile

import numpy as np
from numpy.typing import NDArray

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Parser, Region, Window
from tests.agent.formats.tiff_cases import Bytes

LIMITS = Limits(
    max_side_px=1024,
    max_plane_bytes=1 << 20,
    max_segment_bytes=1 << 18,
    max_header_bytes=1 << 16,
    max_tags=128,
    max_pages=6,
    max_segments=2048,
)
"""Small, so that what a hostile file may cost within them is small too."""

PLAN_BYTES = 12
"""How a case is shown to the parser stands in front of its file: see `Plan`."""

Open = Callable[[Window, int | None], Parser | None]
"""(window, planes that the file must hold) → its parser, or None while the first bytes do not tell."""


@dataclass(frozen=True)
class Plan:
    """How the bytes reach the parser."""

    planes: int | None
    sizes: tuple[int, ...]
    """What of the file is there at each visit but the last, which sees all of it."""
    take: int
    """Events taken from each iterator before it is dropped; 0: all."""
    preallocated: bool
    """Whether the file has its full size from the beginning, with zeros where bytes are still to come."""
    settles_early: bool
    """Whether the file rests for a while at every visit, so that it counts as settled."""

    @staticmethod
    def of(head: bytes, size: int) -> Plan:
        """The plan that twelve bytes spell for a file of `size` bytes."""
        flags = head[0]
        cuts = (int.from_bytes(head[at : at + 2], "big") for at in range(2, PLAN_BYTES, 2))
        sizes = sorted(cut * size >> 16 for cut in islice(cuts, flags >> 2 & 7))
        return Plan(
            (None, 1, 2, None)[flags & 3], tuple(sizes), head[1] & 3, flags & 0x60 == 0x60, flags & 0x90 == 0x90
        )

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the number of visits differs from showing the whole file once."""
        return not self.preallocated and not self.settles_early


@dataclass
class Seen:
    """What a parser said so far; fails at once when it breaks a promise."""

    header: Header | None = None
    complete: bool = False
    refusal: FormatError | None = None
    pixels: NDArray[np.uint16] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint16))
    there: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), np.bool_))

    def take(self, event: Event) -> None:
        """Accept one event."""
        assert not self.complete, "an event behind Complete"
        if isinstance(event, Header):
            self._begin(event)
        elif isinstance(event, Region):
            self._paint(event)
        else:
            assert isinstance(event, Complete) and self.header is not None
            assert self.there.all(), "complete without every pixel"
            self.complete = True

    def _begin(self, header: Header) -> None:
        assert self.header is None, "a second Header"
        assert header.planes in (1, 2), header
        assert 0 < min(header.height, header.width) <= max(header.height, header.width) <= LIMITS.max_side_px, header
        assert header.height * header.width * 2 <= LIMITS.max_plane_bytes, header
        for text in header.tags.values():
            text.encode("utf-8")  # what is hashed, logged and sent later must be text
        self.header = header
        shape = (header.planes, header.height, header.width)
        self.pixels, self.there = np.zeros(shape, np.uint16), np.zeros(shape, np.bool_)

    def _paint(self, region: Region) -> None:
        assert self.header is not None, "a Region before the Header"
        assert region.pixels.dtype == np.uint16 and region.pixels.dtype.isnative and region.pixels.ndim == 2
        height, width = region.pixels.shape
        assert min(region.plane, region.y, region.x) >= 0 and region.plane < self.header.planes, region
        assert height and width, "an empty region"
        assert region.y + height <= self.header.height and region.x + width <= self.header.width, region
        place = (region.plane, slice(region.y, region.y + height), slice(region.x, region.x + width))
        assert not self.there[place].any(), "a pixel came twice"
        self.there[place], self.pixels[place] = True, region.pixels

    @property
    def outcome(self) -> str:
        """One word or two for the tally."""
        if self.refusal is not None:
            return f"refused: {self.refusal.reason}"
        return "complete" if self.complete else "some pixels" if self.there.any() else "needs more"


class Reading:
    """One file before its parser, as the daemon reads it: the parser is opened when the first bytes tell."""

    def __init__(self, open_parser: Open, planes: int | None, take: int = 0) -> None:
        self.seen = Seen()
        self._open, self._planes, self._take = open_parser, planes, take
        self._parser: Parser | None = None

    def visit(self, contents: bytes, *, settled: bool) -> bool:
        """Show these bytes until they give nothing more; False when the file's story is over."""
        window = Bytes(contents)
        try:
            self._parser = self._parser or self._open(window, self._planes)
            while self._parser is not None and self._some_events(self._parser, window, settled):
                if not self._take:
                    break
        except FormatError as refusal:
            self.seen.refusal = refusal
        return self.seen.refusal is None and not self.seen.complete

    def _some_events(self, parser: Parser, window: Bytes, settled: bool) -> bool:
        came = False
        for event in islice(parser.advance(window, settled=settled), self._take or None):
            self.seen.take(event)
            came = True
        return came


def check(open_parser: Open, case: bytes) -> str:
    """Show a case as its plan says; fails when a promise is broken, and gives the outcome otherwise."""
    contents = case[PLAN_BYTES:]
    plan = Plan.of(case[:PLAN_BYTES].ljust(PLAN_BYTES, b"\0"), len(contents))
    grown = Reading(open_parser, plan.planes, plan.take)
    size, settled = len(contents), True
    for size, settled in _visits(plan, len(contents)):
        rest = bytes(len(contents) - size) if plan.preallocated else b""
        if not grown.visit(contents[:size] + rest, settled=settled):
            break
    if plan.is_plain:
        at_once = Reading(open_parser, plan.planes)
        at_once.visit(contents[:size], settled=settled)
        agree(grown.seen, at_once.seen)
    return grown.seen.outcome


def _visits(plan: Plan, whole: int) -> Iterator[tuple[int, bool]]:
    yield from ((size, plan.settles_early) for size in takewhile(lambda size: size <= whole, plan.sizes))
    yield whole, False
    yield whole, True


def agree(grown: Seen, at_once: Seen) -> None:
    """In pieces and at once: the same end, the same header, and wherever both saw a pixel the same one."""
    assert grown.outcome == at_once.outcome, f"in pieces: {grown.outcome}, at once: {at_once.outcome}"
    if grown.refusal is not None and not (grown.header and at_once.header):
        return
    assert grown.header == at_once.header
    both = grown.there & at_once.there
    assert np.array_equal(grown.pixels[both], at_once.pixels[both]), "other pixels in pieces than at once"
    assert grown.refusal is not None or np.array_equal(grown.there, at_once.there), "fewer pixels one way"
