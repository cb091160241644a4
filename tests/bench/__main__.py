"""`python -m tests.bench`: runs the benchmarks, prints their tables and what became of each promise."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from agent.errors import AgentError
from tests.bench import burst, clutter, growth, latency, memory, outage, pipeline, soak
from tests.bench.figures import Outcome
from tests.bench.live import ensure_engine
from tests.bench.machine import describe
from tests.system.processes import PROFILE

BENCHMARKS: dict[str, Callable[..., Outcome]] = {
    "latency": latency.measure,
    "pipeline": pipeline.measure,
    "memory": memory.measure,
    "soak": soak.measure,
    "burst": burst.measure,
    "outage": outage.measure,
    "clutter": clutter.measure,
    "growth": growth.measure,
}
"""Every benchmark by name; a new one is one file and one line here."""
USUAL = ("latency", "pipeline", "memory")
"""Those that run when none is named: how fast it is. The others show what it bears, and take longer."""
COUNTED = ("soak", "burst", "outage", "growth")
"""Those that --slides is for."""

FILE_WIDTH = 150
LEAST_SLIDES = 6

HELP = """Measures this machine; no figure is remembered from another run.

  latency    one slide written over 10 s a strip: when its first posterior and its final are heard
  pipeline   finished files to posterior, patches/s, beside the published way and the physical limit
  memory     50 slides of 360 patches in one run of the agent (some minutes)

What it bears (each some minutes; figures in docs/reliability.md):

  soak       days of scanning, one slide after another: memory, descriptors, threads, ledger (400 slides)
  burst      1,000 slides at once, and one that is being scanned: who is on the table does not wait
  outage     a day without a broker, then it is back (40 slides)
  clutter    100,000 texts and 10,000 broken files in the folder
  growth     what stays in memory of each slide for ever, by place (300 slides, no network)

Timings of a shared machine compare within one run only: look at ratios, and at the load printed first.
Exit codes: 0 every promise kept, 1 a promise broken or a benchmark failed, 2 bad arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} or all ({', '.join(USUAL)})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--slides", type=int, metavar="N", help=f"how many slides ({', '.join(COUNTED)})")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw how soak went, as a PNG")
    parser.add_argument("--profile", type=Path, default=PROFILE, metavar="DIR", help="profile (the phantom's)")
    args = parser.parse_args(argv)
    wrong = set(args.names) - {*BENCHMARKS, "all"}
    if wrong:
        parser.error(f"unknown benchmark {', '.join(sorted(wrong))}; known: {', '.join(BENCHMARKS)}, all")
    if args.slides is not None and args.slides < LEAST_SLIDES:
        parser.error(f"--slides must be at least {LEAST_SLIDES}")
    chosen = list(BENCHMARKS) if "all" in args.names else args.names or list(USUAL)
    options: dict[str, dict[str, Any]] = {name: {} for name in BENCHMARKS}
    for name in COUNTED if args.slides is not None else ():
        options[name]["slides"] = args.slides
    if args.picture is not None:
        options["soak"]["picture"] = args.picture
    try:
        return run(chosen, args.profile.resolve(), args.json, _console(), options)
    # A missing broker or a wait in vain ends the tests' own machinery with a pytest outcome.
    except (AgentError, RuntimeError, TimeoutError, pytest.fail.Exception, pytest.skip.Exception) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _console() -> Console:
    """Wide enough for the tables where there is no terminal that says how wide it is."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def run(
    names: Sequence[str],
    profile: Path,
    json_file: Path | None,
    console: Console,
    options: Mapping[str, Mapping[str, Any]],
) -> int:
    """Run some benchmarks, print and write what they found; 1 when a promise was broken."""
    machine = describe()
    table = Table("machine", "", title_justify="left")
    for item in machine.items():
        table.add_row(*item)
    console.print(table)
    engine = ensure_engine(profile, console)
    console.print(f"profile {profile.name}, engine {engine}\n", highlight=False)
    outcomes: list[Outcome] = []
    for name in names:
        outcomes.append(BENCHMARKS[name](profile, console, **options[name]))
        outcomes[-1].show(console)
        if json_file is not None:  # after each, so that a later failure loses nothing
            found = {outcome.name: outcome.document() for outcome in outcomes}
            document = {"machine": machine, "profile": profile.name, "engine": engine, **found}
            json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(promise.kept for outcome in outcomes for promise in outcome.promises) else 1


if __name__ == "__main__":
    sys.exit(main())
