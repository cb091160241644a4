"""`python -m tests.fuzz`: seeded cases for as long as one likes; exit code 1 on any find."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from pathlib import Path

from tests.fuzz import cage
from tests.fuzz.campaign import Campaign, Plan, try_case
from tests.fuzz.targets import TARGETS

_DOC = """
Hostile and broken input against everything that reads what others wrote. A case is made from its seed and number
alone, so a find is repeated by naming them. Each failing input is also written to --out.

Targets:
"""
_EXAMPLES = """
examples:
  python -m tests.fuzz --seconds 60                        every target, for a minute in all
  python -m tests.fuzz --target dicom --cases 1000000      a million cases of one target
  python -m tests.fuzz --target tiff --seed 7 --case 1234  one case again, with its traceback
  python -m tests.fuzz --target tiff --input FILE          a written case again
  python -m tests.fuzz.guided --target tiff --seconds 600  guided by coverage (needs: pip install atheris)
"""


def _arguments() -> argparse.Namespace:
    targets = "\n".join(f"  {target.name:10}{target.promise}" for target in TARGETS.values())
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=textwrap.dedent(_DOC).strip() + "\n" + targets,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be repeated; default: every target")
    parser.add_argument("--seconds", type=float, help="for how long, all targets together (default 60)")
    parser.add_argument("--cases", type=int, help="how many of each target, instead of --seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the whole run (default 1)")
    parser.add_argument("--processes", type=int, default=1, help="workers side by side (default 1)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where failing inputs go")
    parser.add_argument("--case", type=int, help="run this one case of --seed here, without limits")
    parser.add_argument("--input", type=Path, help="run the case in this file here, without limits")
    arguments = parser.parse_args()
    single = arguments.case is not None or arguments.input is not None
    if single and len(arguments.target or ()) != 1:
        parser.error("--case and --input need exactly one --target")
    return arguments


def main() -> int:
    """Run what the command line asks for."""
    arguments = _arguments()
    if arguments.case is not None or arguments.input is not None:
        return _one(arguments)
    names = arguments.target or list(TARGETS)
    seconds = None if arguments.cases else arguments.seconds or 60.0
    whole = sum(TARGETS[name].share for name in names)
    print(f"seed {arguments.seed}, {arguments.processes} process(es), Python {sys.version.split()[0]}")
    print(
        f"limits of a case: {cage.CASE_CPU_S:.0f} s of CPU, a hang at {cage.HANG_S:.0f} s, resident peak"
        f" +{cage.PEAK_BYTES >> 20} MiB, address space +{cage.ADDRESS_BYTES >> 20} MiB",
        flush=True,
    )
    cases, finds, began = 0, 0, time.monotonic()
    for name in names:
        share = None if seconds is None else seconds * TARGETS[name].share / whole
        campaign = Campaign(Plan(name, arguments.seed, arguments.processes, share, arguments.cases), arguments.out)
        tally = campaign.run()
        print(campaign.line())
        for outcome, count in tally.outcomes.most_common():
            print(f"          {count:10,}  {outcome}")
        sys.stdout.flush()
        cases, finds = cases + tally.cases, finds + len(tally.finds)
    took = time.monotonic() - began
    print(f"in all {cases:,} cases in {took:,.0f} s ({cases / took:,.0f}/s), {finds} finds")
    return 1 if finds else 0


def _one(arguments: argparse.Namespace) -> int:
    target = TARGETS[arguments.target[0]]
    case = arguments.input.read_bytes() if arguments.input else target.case(arguments.seed, arguments.case)
    print(f"{target.name}: a case of {len(case)} bytes", flush=True)
    print(try_case(target, case))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
