"""TIFF and BigTIFF while they grow: which page holds which channel, and what is complete so far.

Walks the directories itself, because a reader of finished files refuses the good pages in front of a cut one.
Directories may come before the pixels (tifffile), after them (libtiff) or be rewritten elsewhere (libtiff's
checkpoints): the chain is followed from the header on every call, and only what is not final is read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from agent.errors import FormatError
from agent.formats import Complete, Event, Header, Limits, Window
from agent.formats.tiff_directory import Container, Directory, read_directory
from agent.formats.tiff_lanes import Lane, make_lanes
from agent.formats.tiff_layout import Layout, read_layout, read_places

DEFAULT_LIMITS = Limits()

_STARTS = {
    b"II*\0": Container("<", big=False),
    b"MM\0*": Container(">", big=False),
    b"II+\0\x08\0\0\0": Container("<", big=True),
    b"MM\0+\0\x08\0\0": Container(">", big=True),
}


def sniff(first16: bytes) -> bool | None:
    """Is this TIFF or BigTIFF? `first16`: the first 16 bytes, or fewer while the file is shorter.

    None: too few bytes, or nothing but zeros, which a preallocated file shows before its header arrives.
    """
    if not any(first16):
        return None
    if any(first16.startswith(start) for start in _STARTS):
        return True
    return None if any(start.startswith(first16) for start in _STARTS) else False


class _Page:
    """One full-resolution page, which holds one or two planes."""

    def __init__(self, layout: Layout, planes: tuple[int, ...], limits: Limits) -> None:
        self.layout = layout
        self.lanes = make_lanes(layout, planes)
        self._limits = limits

    def place(self, window: Window, directory: Directory) -> bool:
        """Hand each lane its share of the newest segment places; True when these are final."""
        places = read_places(window, directory, self.layout, self._limits)
        if places is None:
            return False
        shape = (self.layout.lanes, self.layout.segments)
        for lane, offsets, counts in zip(
            self.lanes, places.offsets.reshape(shape), places.counts.reshape(shape), strict=True
        ):
            lane.place(offsets, counts)
        return places.final


class TiffParser:
    """One growing TIFF: two one-sample pages, one page of two samples, or one page of one sample.

    `planes` says how many planes the file must hold (2: both channels, 1: one channel). With None a single
    one-sample page counts as one plane only once the file has settled, since another page may follow.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, planes: int | None = None) -> None:
        if planes not in (None, 1, 2):
            raise ValueError(f"planes must be 1, 2 or None, not {planes}")
        self._limits = limits
        self._planes = planes
        self._container: Container | None = None
        self._final: dict[int, Directory] = {}
        """Directories that need not be read again, by offset."""
        self._pages: list[_Page] = []
        self._header: Header | None = None
        self._pending: deque[Event] = deque()
        self._complete = False

    def advance(self, window: Window, *, settled: bool) -> Iterator[Event]:
        """Yield what became complete since the last call; see `agent.formats.Parser`.

        The planes of a file come as evenly as its bytes allow. Raises FormatError.
        """
        yield from self._drain()
        if self._complete:
            return
        self._assign_pages(window, self._follow_chain(window), settled=settled)
        yield from self._drain()
        waiting = self._lanes() if self._header else []
        while waiting:
            lane = min(waiting, key=lambda lane: lane.next_row)
            regions = lane.step(window, settled=settled)
            if not regions:
                waiting.remove(lane)
            self._pending += regions
            yield from self._drain()
        if self._all_done():
            self._complete = True
            yield Complete()

    def _drain(self) -> Iterator[Event]:
        while self._pending:
            yield self._pending.popleft()

    def _lanes(self) -> list[Lane]:
        return [lane for page in self._pages for lane in page.lanes]

    def _all_done(self) -> bool:
        planes = sum(page.layout.samples for page in self._pages)
        return self._header is not None and planes == self._header.planes and all(lane.done for lane in self._lanes())

    def _follow_chain(self, window: Window) -> list[Directory]:
        """The directories that are on disk; only final ones are taken from memory, since the rest may change."""
        container = self._container = self._container or _read_container(window)
        if container is None:
            return []
        chain: list[Directory] = []
        link = container.first_link
        while offset := container.pointer(window, link):
            if any(directory.offset == offset for directory in chain):
                raise FormatError("malformed", "the directories form a loop", offset)
            if len(chain) == self._limits.max_pages:
                raise FormatError("limits", f"more than {self._limits.max_pages} pages", offset)
            directory = self._final.get(offset) or read_directory(window, container, offset, self._limits)
            if directory is None:
                break
            chain.append(directory)
            link = directory.next_link
        return chain

    def _assign_pages(self, window: Window, chain: list[Directory], *, settled: bool) -> None:
        """Decide which page holds which planes, as soon as it can be known, and queue the header."""
        full = [directory for directory in chain if not directory.is_reduced]
        if not full:
            return
        layout = read_layout(full[0], self._limits)
        planes = self._known_planes(layout, len(full))
        if len(full) * layout.samples > (planes or 2):
            raise FormatError(
                "wrong_shape", f"{len(full)} pages of {layout.samples} samples, {planes} planes expected"
            )
        for index, directory in enumerate(full):
            self._update_page(window, index, directory)
        if planes is None and settled and not full[-1].container.pointer(window, chain[-1].next_link):
            planes = 1 if all(lane.on_disk(window.size) for lane in self._lanes()) else None
        if planes is not None and self._header is None:
            self._header = Header(layout.height, layout.width, planes)
            self._pending.append(self._header)

    def _known_planes(self, layout: Layout, pages: int) -> int | None:
        if self._header is not None:
            return self._header.planes
        if layout.samples == 2 and self._planes == 1:
            raise FormatError("wrong_shape", "two samples per pixel in a file of one channel")
        return 2 if layout.samples == 2 else self._planes or (2 if pages > 1 else None)

    def _update_page(self, window: Window, index: int, directory: Directory) -> None:
        if directory.offset in self._final:
            return
        layout = read_layout(directory, self._limits)
        if index == len(self._pages):
            self._pages.append(_Page(layout, (0, 1)[index : index + layout.samples], self._limits))
        page, first = self._pages[index], self._pages[0].layout
        if (layout.height, layout.width, layout.samples) != (first.height, first.width, first.samples):
            raise FormatError(
                "wrong_shape", f"pages of {first.width} × {first.height} and {layout.width} × {layout.height} px"
            )
        if layout != page.layout:
            raise FormatError("malformed", "a directory was rewritten with another layout", directory.offset)
        if page.place(window, directory):
            self._final[directory.offset] = directory


def _read_container(window: Window) -> Container | None:
    first16 = window.read(0, min(16, window.size))
    if sniff(first16) is False:
        raise FormatError("not_an_image", "neither TIFF nor BigTIFF", 0)
    return next((container for start, container in _STARTS.items() if first16.startswith(start)), None)
