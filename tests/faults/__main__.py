"""`python -m tests.faults`: every fault at the size of CI, or random kills in any number."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.faults.ground import prepare
from tests.faults.kills import KILLS_PER_SCENARIO, Outcome, run_scenario
from tests.system.processes import ROOT

HELP = """Causes faults for real and says whether anything was lost, counted twice, or came out differently.

Without a command: everything, at the size of CI (pytest on tests/faults; further words go to pytest).

kills: an imager writes synthetic phantom slides (not tissue) while the agent gets SIGKILL, SIGTERM or
SIGSTOP...SIGCONT at random moments: at its start, in the middle of reading, before and within writes to the ledger,
after the n-th message, while it stops. Then it is left in peace, and its finals, alerts and ledger are compared with
an undisturbed run of `agent score` on the same files, to the last bit.

examples:
  python -m tests.faults
  python -m tests.faults kills --count 1000 --seed 7 --jobs 2
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; 0 when nothing was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kills = parser.add_subparsers(dest="command").add_parser("kills", help="random kills in any number")
    kills.add_argument("--count", type=int, default=50, metavar="N", help="how many kills (50)")
    kills.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the first scenario (1)")
    kills.add_argument("--jobs", type=int, default=1, metavar="J", help="scenarios at the same time (1)")
    kills.add_argument("--work", type=Path, metavar="DIR", help="folder for the runs (a new one below TMPDIR)")
    kills.add_argument("--json", type=Path, metavar="FILE", help="write the result and every scenario's here")
    args, rest = parser.parse_known_args(words)
    if args.command is None:
        return subprocess.call([sys.executable, "-m", "pytest", "-n", "auto", "tests/faults", *rest], cwd=ROOT)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if args.count < 1 or args.jobs < 1:
        parser.error("--count and --jobs must be at least 1")
    return run_kills(args)


def run_kills(args: argparse.Namespace) -> int:
    """Run as many scenarios as it takes; 1 when one of them found anything."""
    work = args.work or Path(tempfile.mkdtemp(prefix="srh-kills-"))
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    for outcome in _outcomes(args.count, args.seed, args.jobs, work):
        outcomes.append(outcome)
        total = summary(outcomes, time.monotonic() - begun)
        print(_line(outcome, total, args.count), flush=True)
        if args.json:
            args.json.write_text(
                json.dumps({**total, "scenarios": [o.document() for o in outcomes]}, indent=1) + "\n"
            )
    print(_table(summary(outcomes, time.monotonic() - begun)))
    bad = [outcome for outcome in outcomes if not outcome.verdict.is_clean]
    for outcome in bad:
        print(f"\nseed {outcome.seed}, kept in {outcome.folder}:")
        for kind, found in outcome.verdict.found().items():
            print(f"  {kind}: {len(found)}, first: {found[0]}")
        print(f"  again: python -m tests.faults kills --count {sum(outcome.struck.values())} --seed {outcome.seed}")
    if not bad and args.work is None:
        shutil.rmtree(work)
    return 1 if bad else 0


def _outcomes(count: int, seed: int, jobs: int, work: Path) -> Iterator[Outcome]:
    ground = prepare(work / "ground").folder
    sizes = [KILLS_PER_SCENARIO] * (count // KILLS_PER_SCENARIO) + [count % KILLS_PER_SCENARIO]
    runs = [(seed + n, size, ground, work / f"seed-{seed + n}") for n, size in enumerate(sizes) if size]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_scenario, *run) for run in runs]):
            yield done.result()


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """The figures of all scenarios together."""
    struck: Counter[tuple[str, str]] = sum((outcome.struck for outcome in outcomes), Counter())
    by_signal, by_phase = Counter[str](), Counter[str]()
    for (name, phase), number in struck.items():
        by_signal[name] += number
        by_phase[phase] += number
    verdicts = [outcome.verdict for outcome in outcomes]
    counted = {name: sum(getattr(o, name) for o in outcomes) for name in ("starts", "patches", "finals", "alerts")}
    found = {kind: sum(len(getattr(v, kind)) for v in verdicts) for kind in ("lost", "doubled", "differing", "odd")}
    return {
        "kills": struck.total(),
        "signals": dict(by_signal.most_common()),
        "phases": dict(by_phase.most_common()),
        "scenarios": len(outcomes),
        "seeds": [min(o.seed for o in outcomes), max(o.seed for o in outcomes)],
        **counted,
        "messages": sum(o.messages for o in outcomes),
        "seconds": round(seconds),
        **found,
    }


def _line(outcome: Outcome, total: dict[str, Any], count: int) -> str:
    said = "ok" if outcome.verdict.is_clean else f"FOUND {outcome.verdict.found()}"[:300]
    figures = ", ".join(
        f"{name} {total[name]}" for name in ("patches", "finals", "lost", "doubled", "differing", "odd")
    )
    return f"{total['kills']}/{count} kills, {total['seconds']} s: {figures}; seed {outcome.seed}: {said}"


def _table(total: dict[str, Any]) -> str:
    return "\n".join(f"{name:10} {value}" for name, value in total.items())


if __name__ == "__main__":
    sys.exit(main())
