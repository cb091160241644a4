"""`python -m tests.fuzz.guided`: cases that atheris chooses by the code that they reach, on the same targets.

An optional tool (`pip install atheris`), which CI never needs. A second opinion: the seeded cases know the formats,
this one knows the code.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_SEEDS = 400
"""Cases of our own making that it starts from."""
_MEASURED = ["agent.formats", "agent.naming", "agent.layouts", "agent.pattern_cost", "models.bounded_yaml"]


def main() -> None:
    """Run libFuzzer's loop in this process, which it ends: with a code other than 0 at the first find."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("--target", required=True, help="one of those that `python -m tests.fuzz --help` lists")
    parser.add_argument("--seconds", type=int, default=60, help="for how long (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the whole run (default 1)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where corpus and failing inputs go")
    arguments = parser.parse_args()
    try:
        atheris: Any = import_module("atheris")
    except ImportError:
        sys.exit("this needs atheris: python -m pip install atheris (CPython on Linux)")
    with atheris.instrument_imports(include=_MEASURED):
        cage, targets = import_module("tests.fuzz.cage"), import_module("tests.fuzz.targets")
    target = targets.TARGETS[arguments.target]
    corpus = arguments.out / f"{target.name}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for index in range(_SEEDS):
        (corpus / f"seed-{index}").write_bytes(target.case(arguments.seed, index))

    def one(case: bytes) -> None:
        with cage.watched():
            target.check(case)
        assert not cage.escapes, cage.escapes

    options = [f"-max_total_time={arguments.seconds}", f"-timeout={cage.HANG_S:.0f}", "-max_len=65536"]
    options += [f"-seed={arguments.seed}", f"-artifact_prefix={arguments.out}/{target.name}-guided-", str(corpus)]
    atheris.Setup([sys.argv[0], "-rss_limit_mb=1024", *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
