"""`python -m tests.supply sbom|audit`: the bill of materials of a release, and whether it may be released."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.supply.audit import NOT_AUDITED, SERVICES, Answer, ask, offences, pins, verdict
from tests.supply.closure import EXTRAS, ClosureError, closure, in_wheels, installed
from tests.supply.sbom import sbom

HELP = f"""sbom writes what a release is made of as CycloneDX 1.6 JSON: every distribution that the services need at
run time ({", ".join(EXTRAS)}), with version, licence, dependencies and, of a folder of wheels, hashes.

audit checks that each is pinned, from an index, and under an allowed licence; then it asks a vulnerability service.
exit code 0: in order; 1: something must be mended; {NOT_AUDITED}: in order as far as can be told without a service.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one of the two; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.supply", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("sbom", "audit"))
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take these wheels, not what is installed here")
    parser.add_argument(
        "--extras", default=",".join(EXTRAS), metavar="A,B", help="parts of the project (%(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="sbom: write there instead of to stdout")
    parser.add_argument("--offline", action="store_true", help="audit: ask no service")
    args = parser.parse_args(argv)
    try:
        found = closure(in_wheels(args.wheels) if args.wheels else installed, args.extras.split(","))
    except ClosureError as error:
        print(f"error: {error}: make setup", file=sys.stderr)
        return 1
    if args.command == "sbom":
        text = sbom(found)
        args.out.write_text(text, encoding="utf-8") if args.out else print(text, end="")
        return 0
    answers: list[Answer | str] = ["no service was asked (--offline)"] if args.offline else []
    with tempfile.TemporaryDirectory() as folder:
        for service in () if args.offline else SERVICES:
            answers.append(ask(service, found, Path(folder)))
            if isinstance(answers[-1], Answer):
                break
    code, lines = verdict(list(offences(found, pins())), answers)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
