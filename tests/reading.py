"""A reader and a reducer without threads, over real files in a folder: what the parity and reader tests share."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from agent.acquisition import State
from agent.batching import Batch, Batcher
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.identity import Plain
from agent.imager import Layout, plan
from agent.intake import PatientClosed, Problem, Progress, SlideClosed, SlideReopened, Told
from agent.layouts import Layouts
from agent.ledger import CountedPatch, FileStanding
from agent.ledger_records import PartRead
from agent.naming import NamingSettings, rules_of
from agent.patience import Patience
from agent.reader import Reader
from agent.reducer import Reducer
from models.contract import ModelInput, SlideKey
from models.posterior import Posterior
from models.srh.config import srh_input
from models.srh.patches import PatchAssembler
from tests.fakes import FakeEngine, ToldFolder, fake_profile, fake_reference

LAYOUTS: tuple[Layout, ...] = ("strips-a", "strips-b", "strips-c", "tiff-strip", "tiff-mosaic", "opensrh")


@functools.cache
def slide_files(layout: Layout, slide: str) -> dict[PurePosixPath, bytes]:
    """A small slide (two strips of 2000 rows, some of it empty) in one of the imager's layouts."""
    rng = np.random.default_rng(int(slide))
    strips = []
    for _ in range(2):
        strip = np.kron(rng.integers(3000, 20000, (2, 20, 10)), np.ones((1, 100, 100))).astype(np.uint16)
        strip[:, :900] += rng.integers(0, 500, (2, 900, 1000)).astype(np.uint16)
        strip[:, 1100:1500] = 700 + rng.integers(0, 20, (2, 400, 1000)).astype(np.uint16)
        strips.append(strip)
    return {file.relative: file.content for file in plan(strips, layout, "PAT", slide)}


class Outcome(NamedTuple):
    """What must not depend on how the files came."""

    posterior: Posterior
    state: State
    done: int
    expected: int | None


class Bench:
    """A reader and a reducer without threads; a restart keeps only what the ledger keeps."""

    def __init__(self, folder: ToldFolder) -> None:
        self.folder = folder
        self.ledger: list[CountedPatch] = []
        self.problems: list[Problem] = []
        self.closed: list[SlideClosed | PatientClosed] = []
        self.files: dict[str, FileStanding] = {}
        self.reopened: list[SlideKey] = []
        self.progress: list[Progress] = []
        self.restart()

    def restart(self, finished: Iterable[SlideKey] = ()) -> None:
        """Start again on the ledger and on everything in the folder."""
        profile = fake_profile()
        self.reducer = Reducer(FakeEngine(), profile, self.ledger, fake_reference())
        self.batcher = Batcher(self.reducer.engine.batch_size, 0.05)
        self.assembler = PatchAssembler(srh_input(profile))
        self.reader = Reader(
            self.folder,
            Layouts(rules_of(NamingSettings()), Plain(), by_tags=True),
            Plain(),
            self.assembler,
            open_parser,
            limits=Limits(),
            patience=Patience(settle_s=1.0),
            counted={row.key: row.pixels for row in self.ledger},
            finished=finished,
            files=self.files.values(),
        )
        root = self.folder.folder
        self.folder.touched = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]

    def poll(self, now: float) -> None:
        """Turns of the reader until nothing waits, everything it tells taken to the reducer."""
        self.take(self.reader.poll(now))
        while self.reader.behind:
            self.take(self.reader.poll(now))

    def take(self, tellings: Iterable[Told]) -> None:
        """As the rooms behind the reader do."""
        for told in tellings:
            if isinstance(told, ModelInput):
                self._run(self.batcher.add(told, 0.0))
            elif isinstance(told, Progress):
                self.progress.append(told)
                self.reducer.slide(told.slide).follow(told)
            elif isinstance(told, Problem):
                self.problems.append(told)
            elif isinstance(told, FileStanding):
                self.files[told.file_id] = told
            elif isinstance(told, PartRead):
                self._run(self.batcher.flush())
                self.reducer.settle(told)
                strip = (told.part.slide, told.part.strip)
                self.ledger[:] = [
                    row for row in self.ledger if (row.key.of_slide, row.key.strip) != strip or row.key in told.keys
                ]
            elif isinstance(told, SlideReopened):
                self.reopened.append(told.slide)
                self.reducer.reopen(told.slide)
                for file_id, of in self.files.items():
                    if (of.patient, of.slide) == told.slide and of.outcome == "whole":
                        self.files[file_id] = replace(of, outcome="changed")
            else:
                self._run(self.batcher.flush())
                self.closed.append(told)
                if isinstance(told, SlideClosed):
                    self.reducer.close(told.slide, told.unformed)
        self._run(self.batcher.flush())

    def outcomes(self) -> dict[SlideKey, Outcome]:
        """Where every slide stands."""
        return {
            key: Outcome(self.reducer.of_slide(key), record.state, record.done, record.expected)
            for key, record in self.reducer.slides.items()
        }

    def _run(self, batch: Batch | None) -> None:
        if batch is not None:
            rows = {row.key: row for row in self.reducer.run(batch)}
            self.ledger[:] = [row for row in self.ledger if row.key not in rows] + list(rows.values())


def at_once(folder: Path, files: dict[PurePosixPath, bytes]) -> dict[SlideKey, Outcome]:
    """The same files, finished, read in one go."""
    for relative, content in files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
    bench = Bench(ToldFolder(folder))
    for now in (0.0, 2.0):
        bench.poll(now)
    bench.take(bench.reader.close_patient(None))
    return bench.outcomes()
