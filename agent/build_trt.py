"""`python -m agent.build_trt`: compile a profile for this machine, prove it against eager, put it in place.

Arguments, progress and tables only; building is agent.engine.build.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from agent.engine import BACKENDS, built_engines, load_built
from agent.engine.backend import PRECISIONS
from agent.engine.build import PARITY_PATCHES, Plan, build_engine, golden_digest
from agent.engine.gates import GateFailedError
from agent.engine.manifest import Manifest, verify
from agent.engine.table import engine_table
from agent.engine.targets import device_kind, not_usable, usable_backend, usable_precisions
from agent.errors import AgentError, EngineError, SettingsError
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile

_DESCRIPTION = """\
Compile a profile's network for this machine and prove that the answers stay the same.

The new engine is built beside the old one and must pass every gate: the golden pair, agreement with eager
fp32 on inputs of which half blend two classes, the same bits whatever else is in the batch, and a reload in a
fresh process. Only then does it replace the old one; the daemon picks it up at its next start. If a gate fails,
the old one stays."""
_EPILOG = """\
examples:
  python -m agent.build_trt --profile configs/profiles/phantom
  python -m agent.build_trt --profile DIR --backend openvino --precision fp32
  python -m agent.build_trt --profile DIR --device cuda --batch 32
  python -m agent.build_trt report --profile DIR     what is built, and whether it may be used here
  python -m agent.build_trt check --profile DIR      load the newest engine as the daemon would
exit codes: 0 done, 1 failed (the gate is named), 2 bad arguments"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Errors are one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        profile = load_profile_folder(args.profile)
        result = {"build": _build, "report": _report, "check": _check}[args.action](args, profile)
    except AgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    if args.json:
        print(json.dumps(result, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agent.build_trt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=("build", "report", "check"), default="build")
    parser.add_argument("--profile", type=Path, required=True, metavar="DIR", help="folder with profile.yaml")
    parser.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="auto: openvino on the cpu; tensorrt, else inductor, on a card",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="default: the best that the device has and that passes every gate, fp32 at last",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (default: cpu where the backend has it)")
    parser.add_argument("--batch", type=_positive, metavar="N", help="the one batch shape (default: best measured)")
    parser.add_argument("--threads", type=_natural, default=0, metavar="N", help="0 (default): every core")
    parser.add_argument(
        "--patches", type=_positive, default=PARITY_PATCHES, metavar="N", help="parity inputs (%(default)s)"
    )
    parser.add_argument("--engine", type=Path, metavar="DIR", help="check: this engine folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, no progress")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _build(args: argparse.Namespace, profile: LoadedProfile) -> dict[str, Any]:
    device = device_kind(args.backend, args.device)
    backend = usable_backend(args.backend, device)
    plan = Plan(
        profile_dir=args.profile,
        profile=profile,
        backend=backend.name,
        precision="",
        batch_size=args.batch or backend.default_batch(device),
        threads=args.threads,
        patches=args.patches,
        device=device,
    )
    precisions = usable_precisions(backend, args.precision, device)
    folder, manifest, passed_over = _first_that_passes(plan, precisions, args.json)
    if not args.json:
        Console().print(engine_table([(folder, manifest, "usable")]))
    return {"engine": str(folder), "manifest": manifest.model_dump(mode="json"), "passed_over": passed_over}


def _first_that_passes(plan: Plan, precisions: Sequence[str], quiet: bool) -> tuple[Path, Manifest, dict[str, str]]:
    """Build in the first precision that passes every gate; each that fails is told, and the last failure raised."""
    passed_over: dict[str, str] = {}
    for precision in precisions:
        try:
            with _progress(f"{plan.backend} {precision}", quiet=quiet) as announce:
                folder, manifest = build_engine(replace(plan, precision=precision), announce)
        except GateFailedError as error:
            if precision == precisions[-1]:
                raise
            passed_over[precision] = str(error)
            print(f"{precision} cannot be used for this profile: {error}", file=sys.stderr)
        else:
            return folder, manifest, passed_over
    raise SettingsError(f"{plan.backend} has no precision on this machine")


def _report(args: argparse.Namespace, profile: LoadedProfile) -> dict[str, Any]:
    rows = []
    for folder, manifest in built_engines(args.profile):
        try:
            verify(folder, profile.sha256)
            state = "usable"
        except EngineError as error:
            state = str(error)
        rows.append((folder, manifest, state))
    not_run = not_usable()
    if not args.json:
        Console().print(
            engine_table(rows) if rows else f"nothing built; run: python -m agent.build_trt --profile {args.profile}"
        )
        for name, reason in not_run.items():
            print(f"{name}: not run: {reason}")
    return {
        "engines": [
            {
                "engine": str(folder),
                "state": state,
                "manifest": manifest.model_dump(mode="json") if manifest else None,
            }
            for folder, manifest, state in rows
        ],
        "not_run": not_run,
    }


def _check(args: argparse.Namespace, profile: LoadedProfile) -> dict[str, Any]:
    folders = [args.engine] if args.engine else [folder for folder, _ in built_engines(args.profile)][:1]
    if not folders:
        raise EngineError(f"nothing built; run: python -m agent.build_trt --profile {args.profile}")
    engine = load_built(profile, folders[0], args.threads)
    if not args.json:
        print(f"{folders[0].name}: {engine.name} {engine.precision}, batch {engine.batch_size}, golden pair agrees")
    return {
        "engine": str(folders[0]),
        "backend": engine.name,
        "precision": engine.precision,
        "golden_digest": golden_digest(engine, profile),
        "torch_loaded": "torch" in sys.modules,
    }


@contextmanager
def _progress(title: str, *, quiet: bool) -> Iterator[Any]:
    """Gives a function that names the step now running; each finished step stays on screen with its time."""
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:

        def announce(step: str) -> None:
            finish()
            progress.add_task(f"{title}: {step}", total=1)

        def finish() -> None:
            for task in progress.tasks:
                progress.update(task.id, completed=1)

        yield announce
        finish()


if __name__ == "__main__":
    sys.exit(main())
