"""`agent replay`: plays a finished acquisition into a folder as the imager would have written it.

Decides order, pace and conversion; the writing is the imager's, and nothing here is part of the daemon.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from agent.errors import AgentError, SettingsError
from agent.finished import Finished, Survey, read_planes, strips_of, survey
from agent.imager import (
    BYTES_PER_S,
    Layout,
    PlannedFile,
    Wait,
    columns_of,
    mosaic_file,
    patch_files,
    plan,
    sleep,
    write_growing,
)

CONVERSIONS: dict[str, Layout] = {"dicom-strips": "strips-b", "tiff-mosaic": "tiff-mosaic", "patches": "opensrh"}

HELP = """Plays finished files into a folder at the imager's pace, so that the agent sees them grow.

Files keep their relative paths and come in the imager's order: slide by slide, strip by strip, both channels in
step; files that no built-in naming rule knows come last. At rate 1 a strip pair of 6000 rows (24 MB) takes 16 s and
everything else takes its bytes' share of that: seconds = bytes / 1,500,000 / rate. A file that is already in FOLDER
is never replaced.

examples:
  python -m agent replay finished /srv/imager                             as it was, in real time
  python -m agent replay finished /srv/imager --rate 10                   ten times faster
  python -m agent replay finished /srv/imager --as tiff-mosaic --rate inf as one TIFF per slide, at once
"""

Progressed = Callable[[int, PurePosixPath], None]
Group = list[tuple[PurePosixPath, bytes]]
"""Files that grow together: paths relative to the folder, and contents."""


def replay(
    source: Path,
    folder: Path,
    *,
    rate: float = 1.0,
    as_layout: str | None = None,
    chunk_kib: int = 64,
    rename: bool = False,
    progress: Progressed = lambda count, path: None,
    wait: Wait = sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Play the finished files below `source` into `folder`; returns False when `wait` cancelled it.

    At `rate` 1 a group of files that grow together takes bytes / BYTES_PER_S seconds; infinity is at once.
    `progress` is told the bytes just written and the first path of their group.
    Raises SettingsError for arguments that cannot be used, AgentError for files that cannot be read or written.
    """
    if not rate > 0 or chunk_kib < 1:
        raise SettingsError("the rate and the chunk size must be above 0")
    found = _checked(source, folder)
    groups = _as_they_are(source, found) if as_layout is None else _converted(source, found, as_layout)
    try:
        for files in groups:
            duration_s = sum(len(content) for _, content in files) / BYTES_PER_S / rate

            def written(count: int, path: PurePosixPath = files[0][0]) -> None:
                progress(count, path)

            if not write_growing(
                folder,
                files,
                duration_s,
                chunk_kib=chunk_kib,
                rename=rename,
                wait=wait,
                clock=clock,
                progress=written,
            ):
                return False
    except (OSError, ValueError) as error:
        raise AgentError(f"replay into {folder}: {error}") from error
    return True


def _checked(source: Path, folder: Path) -> Survey:
    if not source.is_dir():
        raise SettingsError(f"{source} is no folder")
    inside, outside = folder.resolve(), source.resolve()
    if inside == outside or outside in inside.parents:
        raise SettingsError(f"{folder} lies in the source {source}: replay would feed on its own output")
    found = survey(source)
    if not found.placed and not found.others:
        raise SettingsError(f"{source} holds no files")
    return found


def _as_they_are(source: Path, found: Survey) -> Iterator[Group]:
    for _, files in itertools.groupby(found.placed, key=lambda file: file.placed.part):
        yield [(file.relative, (source / file.relative).read_bytes()) for file in files]
    for relative in found.others:
        yield [(relative, (source / relative).read_bytes())]


def _converted(source: Path, found: Survey, as_layout: str) -> Iterator[Group]:
    if as_layout not in CONVERSIONS:
        raise SettingsError(f"--as {as_layout} is not one of {', '.join(CONVERSIONS)}")
    if not found.placed:
        raise SettingsError(f"{source}: no built-in naming rule knows a file here, so there is no slide to convert")
    for slide, files in found.slides().items():
        patient, name = (text.replace("/", "_") for text in slide)
        for _, group in itertools.groupby(
            _replanned(source, files, CONVERSIONS[as_layout], patient, name), key=attrgetter("group")
        ):
            yield [(file.relative, file.content) for file in group]


def _replanned(
    source: Path, files: list[Finished], layout: Layout, patient: str, slide: str
) -> Iterator[PlannedFile]:
    kind = files[0].placed.part.kind
    if kind == "strip":
        return plan(strips_of(source, files), layout, patient, slide)
    if kind == "mosaic" and layout == "tiff-mosaic":
        return iter([mosaic_file(read_planes(source / files[0].relative, 2), patient, slide)])
    if kind == "mosaic" and layout == "opensrh":
        return patch_files(columns_of(read_planes(source / files[0].relative, 2)), patient, slide)
    # The columns that neighbouring scan strips share, and the rows between patches, are not there any more.
    raise SettingsError(f"{patient}/{slide}: a {kind} cannot be turned back into {layout}; pixels are never invented")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent replay`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with finished files")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that the agent watches")
    parser.add_argument("--rate", type=float, default=1.0, metavar="X", help="times the imager's pace, or inf (1)")
    parser.add_argument(
        "--as", dest="as_layout", choices=list(CONVERSIONS), help="write another format than the source's"
    )
    parser.add_argument("--chunk-kib", type=int, default=64, metavar="N", help="a file grows by N KiB at a time (64)")
    parser.add_argument("--rename", action="store_true", help="write to a temporary name, and rename when whole")


def main(args: argparse.Namespace) -> int:
    """Run `agent replay` with parsed arguments; returns the exit code. Raises AgentError."""
    total = None
    if args.as_layout is None and args.source.is_dir():
        total = sum(path.stat().st_size for path in args.source.rglob("*") if path.is_file())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("replay", total=total)
        replay(
            args.source,
            args.folder,
            rate=args.rate,
            as_layout=args.as_layout,
            chunk_kib=args.chunk_kib,
            rename=args.rename,
            progress=lambda count, path: bar.update(task, advance=count, description=path.name),
        )
    return 0
