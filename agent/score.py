"""`python -m agent score`: finished data through the same code as the stream, without threads or broker.

The same files give the same posteriors, to the last bit, as the daemon that watched them arrive.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import Progress as Bar

from agent import host
from agent.ahead import ahead
from agent.batching import Batch, Batcher
from agent.engine.service import Replacement, serve
from agent.errors import AgentError, SettingsError
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.identity import Plain
from agent.intake import Problem, Progress, SlideClosed, Told
from agent.layouts import Layouts, Unknown
from agent.ledger import CountedPatch
from agent.naming import NamingSettings, rules_of
from agent.patience import Patience
from agent.profile_folder import load_profile_folder
from agent.reader import Reader
from agent.reducer import Reducer
from agent.score_report import document_of, show
from agent.settings import EngineSettings, Settings, load_settings
from agent.watch import Changes
from models.contract import ModelInput
from models.profile import LoadedProfile, Profile
from models.registry import MODALITIES

HELP = """Scores finished slides: folders in any layout that the agent knows, or single files of them.

Prints one line a slide and a patient with its decision (docs/results.md); --out writes every patch too. The
posteriors equal those of the daemon on the same files to the last bit, for the same profile and engine.

example:
  python -m agent phantom --out /tmp/phantom --slides 4
  python -m agent score /tmp/phantom --profile configs/profiles/phantom --out scores.json
"""

READ_AHEAD = 8
"""Batches (or words about slides) that are read while the network runs."""


@dataclass
class FinishedFolder:
    """A folder that does not change any more (agent.intake.Folder)."""

    folder: Path
    paths: list[str]

    def poll(self, now: float) -> Changes:
        """Every path at the first poll, none later."""
        touched, self.paths = self.paths, []
        return Changes(sorted(touched))

    def wait_s(self, now: float) -> float:
        """Nothing will happen."""
        return math.inf

    def modified_ns(self, path: str) -> int | None:
        """All are equally new."""
        return None


def finished_folders(paths: list[Path], naming: NamingSettings | None = None) -> list[FinishedFolder]:
    """The folders to read. A file belongs to the nearest folder above it from which a naming rule knows it."""
    layouts = Layouts(rules_of(naming or NamingSettings()), Plain(), by_tags=True)
    folders: dict[Path, list[str]] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
            folders.setdefault(path, []).extend(found)
        elif path.is_file():
            roots = [path.absolute().parents[depth] for depth in range(min(6, len(path.absolute().parents)))]
            names = [(root, path.absolute().relative_to(root).as_posix()) for root in roots]
            known = [pair for pair in names if not isinstance(layouts.place(PurePosixPath(pair[1])), Unknown)]
            root, name = (known or names)[0]
            folders.setdefault(root, []).append(name)
        else:
            raise SettingsError(f"{path}: no such file or folder")
    return [FinishedFolder(folder, names) for folder, names in folders.items()]


def reader_of(folder: FinishedFolder, spec: Profile, naming: NamingSettings) -> Reader:
    """A reader for whom what is on disk is all there is: settled at once, and nothing is waited for."""
    return Reader(
        folder,
        Layouts(rules_of(naming), Plain(), naming.tags, naming.tags_first_number),
        Plain(),
        MODALITIES[spec.modality].make_assembler(spec),
        open_parser,
        limits=Limits(),
        patience=Patience(0.0, math.inf, math.inf, math.inf, next_ends_patient=False),
        examine=False,
    )


def everything(reader: Reader) -> Iterator[Told]:
    """All that a reader has to say of a finished folder."""
    for _ in range(2):  # the second time for what only then counts as settled
        yield from reader.poll(0.0)
        while reader.behind:
            yield from reader.poll(0.0)
    yield from reader.close()


class Scorer:
    """Runs the reducer over finished folders while the reader reads ahead; the order is the reader's."""

    def __init__(self, profile: LoadedProfile, reducer: Reducer, naming: NamingSettings | None = None) -> None:
        self.reducer = reducer
        self.patches: list[CountedPatch] = []
        self.problems: list[Problem] = []
        self._profile = profile
        self._naming = naming or NamingSettings()

    def score(self, folder: FinishedFolder) -> Iterator[int]:
        """Count every patch of a folder; yields the number counted so far after each batch."""
        with closing(ahead(self._work(folder), READ_AHEAD)) as work:
            for item in work:
                if isinstance(item, Batch):
                    self.patches += self.reducer.run(item)
                    yield len(self.patches)
                elif isinstance(item, Progress):
                    self.reducer.slide(item.slide).follow(item)
                elif isinstance(item, SlideClosed):
                    self.reducer.close(item.slide, item.unformed)
                else:
                    self.problems.append(item)

    def _work(self, folder: FinishedFolder) -> Iterator[Batch | Progress | SlideClosed | Problem]:
        """What the reader says, patches in batches; a slide's last batch comes before its closing."""
        batcher = Batcher(self.reducer.engine.batch_size, math.inf)
        for told in everything(reader_of(folder, self._profile.spec, self._naming)):
            if isinstance(told, ModelInput):
                yield from filter(None, [batcher.add(told, 0.0)])
            elif isinstance(told, SlideClosed):
                yield from filter(None, [batcher.flush()])
                yield told
            elif isinstance(told, Progress | Problem):
                yield told
        yield from filter(None, [batcher.flush()])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent score`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folder or file of finished slides")
    parser.add_argument("--profile", type=Path, required=True, metavar="DIR", help="profile folder")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take `naming` and `engine` but its order from here"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write patches, slides and patients as JSON")
    parser.add_argument(
        "--backend", metavar="B", help="engine, as in engine.order (default: openvino where built, else eager)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine (0, the default: every core)")
    parser.add_argument("--json", action="store_true", help="print the JSON without the patches instead of a table")


def _engine_settings(args: argparse.Namespace, settings: Settings | None) -> EngineSettings:
    """Those of the settings file, but for the order: whoever scores says it here."""
    engine = settings.engine if settings else EngineSettings()
    order = (args.backend,) if args.backend else ("openvino", "eager")
    threads = engine.threads if args.threads is None else args.threads
    return engine.model_copy(update={"order": order, "threads": threads})


def _tell_replaced(change: Replacement) -> None:
    Console(stderr=True).print(change.detail, style="yellow", highlight=False, soft_wrap=True)


def main(args: argparse.Namespace) -> int:
    """Run `agent score`; returns the exit code. Raises AgentError."""
    host.configure_logging("warning", "console")
    settings = load_settings(args.config) if args.config else None
    naming = settings.naming if settings else NamingSettings()
    folders = finished_folders(args.paths, naming)
    profile = load_profile_folder(args.profile)
    engine = serve(args.profile, profile, _engine_settings(args, settings))
    engine.replaced = _tell_replaced
    reducer = Reducer(
        engine,
        profile.spec,
        reference=profile.reference,
        self_test=engine.self_test,
        next_engine=engine.next_engine,
    )
    scorer = Scorer(profile, reducer, naming)
    started = time.monotonic()
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"patches ({engine.name} {engine.precision})", total=None)
        for folder in folders:
            for count in scorer.score(folder):
                bar.update(task, completed=count)
    document = document_of(profile, scorer.reducer, scorer.patches, scorer.problems, engine.replacements)
    if args.out:
        try:
            args.out.touch(0o600)  # it speaks of patients as their folders do
            args.out.write_text(json.dumps(document) + "\n", encoding="utf-8")
        except OSError as error:
            raise AgentError(f"{args.out}: {error.strerror or error}") from error
    if args.json:
        print(json.dumps({key: value for key, value in document.items() if key != "patches"}))
    else:
        show(document, time.monotonic() - started)
    for problem in scorer.problems:
        Console(stderr=True).print(f"{problem.file_id or '-'}: {problem.detail}", style="yellow", highlight=False)
    if not document["slides"]:
        raise AgentError("no slide was found; `python -m agent score --help` lists the layouts by example")
    return 0
