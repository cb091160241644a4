"""What stays in memory of each slide for ever, by the line of code that holds it; without a network or a broker.

Slides are tiny and go from the folder after a while. What grows here grows for months.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import threading
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from agent.batching import Batch, Batcher
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.handover import CancelToken, Handover
from agent.identity import Pseudonyms
from agent.imager import Layout, plan, tiff_two_pages
from agent.intake import PatientClosed, SlideClosed, Told
from agent.layouts import Layouts
from agent.ledger import Record
from agent.messages import EngineRef
from agent.naming import NamingSettings, rules_of
from agent.patience import Patience
from agent.reader import Reader
from agent.reducer import Reducer
from agent.reporter import Reporter, Speaker
from agent.topics import Topics
from agent.worker import Work, Worker
from models.contract import ModelInput
from models.profile import LoadedProfile
from models.registry import MODALITIES
from tests.bench.figures import Outcome, Promise
from tests.fakes import FakeEngine, ToldFolder
from tests.tiny_profile import PATCHES, SIDE, strips_of, texture, write_tiny_profile

SLIDES = 300
KEPT = 10
"""Slides that stay in the folder."""
A_DAY = 40
LIMIT_BYTES = 8 << 10
"""Most that may stay of each complete slide."""
SHOWN = 12
KINDS: tuple[Layout, ...] = ("strips-b", "opensrh")
"""Slides whose number of parts is known, and slides where only silence can tell."""


@dataclass
class Grown:
    """How memory went over one run."""

    slides: int
    bytes_per_slide: float
    places: list[tuple[str, float]]
    """Line of code and bytes a slide, the largest first."""


class Rooms:
    """READER on the caller's thread and ENGINE on its own, with a fake engine; what they say goes nowhere."""

    def __init__(self, folder: Path, profile: LoadedProfile) -> None:
        self.folder = ToldFolder(folder)
        self.now = 0.0
        naming = Pseudonyms(b"k" * 32)
        self.reader = Reader(
            self.folder,
            Layouts(rules_of(NamingSettings()), naming, by_tags=True),
            naming,
            MODALITIES["srh"].make_assembler(profile.spec),
            open_parser,
            limits=Limits(),
            patience=Patience(settle_s=1.0),
        )
        self.reducer = Reducer(FakeEngine(), profile.spec)
        engine = EngineRef(name="fake", precision="fp32")
        topics = Topics("srh/v1", "site", "scope")
        speaker = Speaker("session", topics, profile, engine, lambda: datetime.now(UTC))
        self._inbox: Handover[Work] = Handover("reader-engine", 16, CancelToken())
        self._outbox: Handover[Record] = Handover("engine-sender", 16, CancelToken())
        worker = Worker(
            self._inbox, self._outbox, self.reducer, Reporter(self.reducer, speaker), profile.sha256, interval_s=0.0
        )
        self._threads = [
            threading.Thread(target=worker.run, name="engine"),
            threading.Thread(target=self._forget, name="sender"),
        ]
        self._batcher = Batcher(self.reducer.engine.batch_size, 0.05)
        self._files: list[list[str]] = []

    def __enter__(self) -> Rooms:
        for thread in self._threads:
            thread.start()
        self._take(self.reader.poll(self.now))  # an empty folder: what comes later is new
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.close()
        for thread in self._threads:
            thread.join()

    def image(self, files: Iterable[tuple[PurePosixPath, bytes]]) -> None:
        """A slide comes whole, and one that came long ago goes."""
        names = []
        for relative, content in files:
            path = self.folder.folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            names.append(relative.as_posix())
        self._files.append(names)
        self._turn(touched=names)
        if len(self._files) > KEPT:
            gone = self._files.pop(0)
            for name in gone:
                (self.folder.folder / name).unlink()
            self._turn(removed=gone)

    def _turn(self, touched: Sequence[str] = (), removed: Sequence[str] = ()) -> None:
        """Changes, then silence until files have settled and have been examined."""
        self.folder.touched, self.folder.removed = list(touched), list(removed)
        for _ in range(3):
            self._take(self.reader.poll(self.now))
            while self.reader.behind:
                self._take(self.reader.poll(self.now))
            self.now += 5.0
        self._inbox.wait_until_taken(60.0)

    def _take(self, told: Iterable[Told]) -> None:
        """As the feeder does."""
        for item in told:
            if isinstance(item, ModelInput):
                self._put(self._batcher.add(item, self.now))
            else:
                if isinstance(item, SlideClosed | PatientClosed):
                    self._put(self._batcher.flush())
                self._inbox.put(item)
        self._put(self._batcher.flush())

    def _put(self, batch: Batch | None) -> None:
        if batch is not None:
            self._inbox.put(batch)

    def _forget(self) -> None:
        while not self._outbox.ended:
            self._outbox.get()


def slide_files(layout: Layout) -> list[tuple[PurePosixPath, bytes]]:
    """The files of one tiny slide of patient `PATIENT`."""
    if layout == "opensrh":
        # As the imager would cut them, were its patches as small.
        folder = PurePosixPath("studies", "PATIENT", "1", "patches")
        names = [f"PATIENT-1-0_0_0_{SIDE * number}.tif" for number in range(PATCHES)]
        return [(folder / name, tiff_two_pages(texture(n, SIDE, SIDE))) for n, name in enumerate(names)]
    return [(file.relative, file.content) for file in plan(strips_of(1), layout, "PATIENT", "1")]


def run(folder: Path, profile: LoadedProfile, layout: Layout, slides: int) -> Grown:
    """Image so many slides of as many patients, and compare what is held after a third of them with the end."""
    once = slide_files(layout)
    base = None
    with Rooms(folder, profile) as rooms:
        tracemalloc.start()
        try:
            for number in range(slides):
                name = f"P{number:06d}"
                rooms.image((PurePosixPath(str(p).replace("PATIENT", name)), content) for p, content in once)
                if number == slides // 3:
                    base = _snapshot()
            end = _snapshot()
        finally:
            tracemalloc.stop()
    assert base is not None
    counted = slides - 1 - slides // 3
    places = [(_place(one.traceback[0]), one.size_diff / counted) for one in end.compare_to(base, "lineno")]
    total = sum(one.size for one in end.statistics("filename")) - sum(one.size for one in base.statistics("filename"))
    return Grown(slides, total / counted, sorted(places, key=lambda place: -place[1])[:SHOWN])


def _snapshot() -> tracemalloc.Snapshot:
    gc.collect()
    here = (tracemalloc.__file__, __file__, "<frozen*")
    return tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, name) for name in here])


def _place(frame: tracemalloc.Frame) -> str:
    parts = Path(frame.filename).parts[-2:]
    return f"{'/'.join(parts)}:{frame.lineno}"


def measure(profile: Path, console: Console, slides: int = SLIDES) -> Outcome:
    """Of each kind of slide, what stays of it; the profile does not matter, a tiny one is used."""
    log_level = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with tempfile.TemporaryDirectory(prefix="bench-growth-") as home:
            tiny = write_tiny_profile(Path(home) / "profile")
            grown = {kind: run(Path(home) / kind, tiny, kind, slides) for kind in KINDS}
    finally:
        structlog.configure(**log_level)
    return outcome(grown)


def outcome(grown: dict[Layout, Grown]) -> Outcome:
    """Judge what stays."""
    tables, promises = [], []
    for kind, one in grown.items():
        year = one.bytes_per_slide * A_DAY * 365 / (1 << 20)
        table = Table(
            f"{kind}: held by",
            "bytes a slide",
            title=f"{one.bytes_per_slide:.0f} bytes stay of each slide: {year:.0f} MiB in a year of {A_DAY} a day",
            title_justify="left",
        )
        for place, size in one.places:
            table.add_row(place, f"{size:.0f}")
        tables.append(table)
        promises.append(
            Promise(
                f"less than {LIMIT_BYTES >> 10} KiB stay of each slide ({kind})",
                f"{one.bytes_per_slide:.0f} bytes",
                one.bytes_per_slide < LIMIT_BYTES,
            )
        )
    figures: dict[str, Any] = {kind: asdict(one) for kind, one in grown.items()}
    return Outcome("growth", tables, figures, promises)
