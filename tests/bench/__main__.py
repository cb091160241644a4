"""`python -m tests.bench`: runs the benchmarks, prints their tables and what became of each promise."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from agent.errors import AgentError
from tests.bench import burst, clutter, engines, growth, latency, memory, outage, pipeline, soak, start
from tests.bench.figures import Outcome
from tests.bench.live import PRECISIONS, ensure_engines
from tests.bench.machine import describe
from tests.bench.summary import summary
from tests.system.processes import PROFILE, ROOT

BENCHMARKS: dict[str, Callable[..., Outcome]] = {
    "latency": latency.measure,
    "pipeline": pipeline.measure,
    "memory": memory.measure,
    "engines": engines.measure,
    "start": start.measure,
    "soak": soak.measure,
    "burst": burst.measure,
    "outage": outage.measure,
    "clutter": clutter.measure,
    "growth": growth.measure,
}
"""Every benchmark by name; a new one is one file and one line here."""
USUAL = ("latency", "pipeline", "memory", "engines", "start")
"""Those that run when none is named: how fast it is. The others show what it bears, and take longer."""
OF_FULL_SIZE = ("engines", "pipeline", "latency", "start")
"""Those that run on the full-size network when none is named."""
OF_EACH_ENGINE = ("latency", "pipeline", "start")
"""Those that compare the engines built in the profile."""
DRAWN = ("engines", "soak")
COUNTED = ("soak", "burst", "outage", "growth")
"""Those that --slides is for."""

QUICK: dict[str, dict[str, Any]] = {
    "latency": {"repetitions": 1, "strip_s": 2.0},
    "pipeline": {"repetitions": 1},
    "memory": {"slides": 10},
    "engines": {"rounds": 1, "seconds": 0.3, "batches": (1, 32)},
    "start": {"starts": 2},
}
"""To see that everything works; such figures are for nobody."""
FULL_SIZE = ROOT / "build" / "full-size"
RECIPE = ROOT / "configs" / "train" / "full-size.yaml"
FILE_WIDTH = 170
LEAST_SLIDES = 6

HELP = """Measures this machine; no figure is remembered from another run.

  latency    one slide written over 10 s a strip: when its first posterior and its final are heard
  pipeline   finished files to posterior, patches/s, beside the published way and the physical limit
  memory     50 slides of 360 patches in one run of the agent (some minutes)
  engines    the network alone at batch 1 to 32, one thread and all: every engine beside the published call
  start      the daemon's start to READY, and its memory then, with each engine built in the profile

What it bears (each some minutes; figures in docs/reliability.md):

  soak       days of scanning, one slide after another: memory, descriptors, threads, ledger (400 slides)
  burst      1,000 slides at once, and one that is being scanned: who is on the table does not wait
  outage     a day without a broker, then it is back (40 slides)
  clutter    100,000 texts and 10,000 broken files in the folder
  growth     what stays in memory of each slide for ever, by place (300 slides, no network)

With --full-size: engines, pipeline, latency and start on the published network at its full size (15.26 GFLOP a
patch), trained in build/full-size first if it is not there (some 20 minutes). Promises about
speed are judged on it only.

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
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help=f"draw what one of {', '.join(DRAWN)} found, as a PNG"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--profile", type=Path, default=PROFILE, metavar="DIR", help="profile (the phantom's)")
    which.add_argument("--full-size", action="store_true", help="the network at its full size, build/full-size")
    parser.add_argument("--quick", action="store_true", help="as little as possible, to see that it works")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="what `engines` compiles stays there")
    args = parser.parse_args(argv)
    wrong = set(args.names) - {*BENCHMARKS, "all"}
    if wrong:
        parser.error(f"unknown benchmark {', '.join(sorted(wrong))}; known: {', '.join(BENCHMARKS)}, all")
    if args.slides is not None and args.slides < LEAST_SLIDES:
        parser.error(f"--slides must be at least {LEAST_SLIDES}")
    usual = OF_FULL_SIZE if args.full_size else USUAL
    chosen = list(BENCHMARKS) if "all" in args.names else args.names or list(usual)
    least = QUICK if args.quick else {}
    options: dict[str, dict[str, Any]] = {name: dict(least.get(name, {})) for name in BENCHMARKS}
    for name in COUNTED if args.slides is not None else ():
        options[name]["slides"] = args.slides
    if args.picture is not None:
        drawn = [name for name in DRAWN if name in chosen]
        if len(drawn) != 1:
            parser.error(f"--picture is for one of {', '.join(DRAWN)}")
        options[drawn[0]]["picture"] = args.picture
    if args.engines is not None:
        options["engines"]["kept"] = args.engines.resolve()
    try:
        profile = full_size_profile() if args.full_size else args.profile.resolve()
        return run(chosen, profile, args.json, _console(), options)
    # A missing broker or a wait in vain ends the tests' own machinery with a pytest outcome.
    except (AgentError, RuntimeError, TimeoutError, pytest.fail.Exception, pytest.skip.Exception) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def full_size_profile() -> Path:
    """The profile of the full-size network, trained first if it is not there. Raises AgentError."""
    if not (FULL_SIZE / "profile.yaml").exists():
        print("training the full-size network first (make full-size-profile)", file=sys.stderr)
        words = ("phantom-profile", "--recipe", str(RECIPE), "--out", str(FULL_SIZE))
        if subprocess.run([sys.executable, "-m", "train", *words], cwd=ROOT, check=False).returncode:
            raise AgentError("the full-size network cannot be trained")
    return FULL_SIZE


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
    compared = set(names) & set(OF_EACH_ENGINE)
    usable = ensure_engines(profile, console, PRECISIONS if compared else PRECISIONS[:1])
    console.print(f"profile {profile.name}, engines: {'; '.join(usable.values())}\n", highlight=False)
    each: dict[str, dict[str, Any]] = {"latency": {"engines": list(usable)}, "start": {"engines": [*usable, "eager"]}}
    outcomes: list[Outcome] = []
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        outcomes.append(BENCHMARKS[name](profile, console, **{**each.get(name, {}), **options[name]}))
        outcomes[-1].show(console)
        found[name] = outcomes[-1].document()
        if json_file is not None:  # after each, so that a later failure loses nothing
            write_json(json_file, profile.name, {"machine": machine, "engines_built": usable, **found})
    if set(names) & {*USUAL, *OF_FULL_SIZE}:
        console.print(summary(found))
    return 0 if all(promise.kept for outcome in outcomes for promise in outcome.promises) else 1


def write_json(path: Path, profile: str, document: Mapping[str, Any]) -> None:
    """Put what one run found into the file, by profile; what it holds of other profiles stays."""
    known: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        known = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**known, profile: document}, indent=2, sort_keys=False) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
