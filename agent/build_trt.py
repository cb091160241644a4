"""`python -m agent.build_trt`: compile a profile for this machine, prove it against eager, put it in place.

Arguments, settings and signals only; building is agent.engine.build, and what people see is agent.build_report.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from agent.build_arguments import build_parser
from agent.build_progress import progress
from agent.build_report import Terms, check, listed, report, show
from agent.calibrate_on import inputs_of
from agent.engine.build import MEASURED_RANGES, Plan, build_engine
from agent.engine.gates import GateFailedError
from agent.engine.manifest import MANIFEST, Manifest, json_schema
from agent.engine.signature import SIGNATURE, sign
from agent.engine.signature import check as check_signature
from agent.engine.targets import device_kind, usable_backend, usable_precisions
from agent.errors import AgentError, EngineError, SettingsError
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Errors are one line on stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.action == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    if args.profile is None and args.config is None:
        parser.error("--profile or --config is required")
    try:
        with _stoppable():
            result = _run(args)
    except AgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-built is left, an engine in place is whole", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(result, indent=2))
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    terms = Terms.read(args.config)
    terms = replace(
        terms,
        profile=args.profile or terms.profile,
        threads=terms.threads if args.threads is None else args.threads,
    )
    assert terms.profile is not None
    profile = load_profile_folder(terms.profile)
    if args.action == "report":
        return report(terms.profile, profile, terms, quiet=args.json)
    if args.action == "check":
        return check(terms.profile, profile, terms, args.engine, quiet=args.json)
    return _build(args, terms.profile, profile, terms)


def _build(args: argparse.Namespace, profile_dir: Path, profile: LoadedProfile, terms: Terms) -> dict[str, Any]:
    device = device_kind(args.backend, args.device)
    backend = usable_backend(args.backend, device)
    precisions = usable_precisions(backend, args.precision, device)
    _check_keys(args.sign_with, terms.public_key)
    plan = Plan(
        profile_dir=profile_dir,
        profile=profile,
        backend=backend.name,
        precision="",
        batch_size=args.batch or backend.default_batch(device),
        threads=terms.threads,
        patches=args.patches,
        slides=args.slides,
        device=device,
        limits=terms.limits,
        sign_with=args.sign_with,
    )
    if args.calibrate_on:
        if not set(precisions) & set(MEASURED_RANGES):
            found = " and ".join(MEASURED_RANGES)
            raise SettingsError(f"--calibrate-on is for {found}; this would build {', '.join(precisions)}")
        with progress(plan.backend, quiet=args.json) as announce:
            plan = replace(plan, calibration=inputs_of(args.calibrate_on, profile, terms.naming, announce))
    folder, manifest, passed_over = _first_that_passes(plan, precisions, args.json)
    if not args.json:
        show([engine for engine in listed(profile_dir, profile, terms) if engine.folder == folder])
    if terms.public_key and not args.sign_with:
        print(
            f"not signed yet, so the agent will refuse it: openssl pkeyutl -sign -rawin -inkey KEY.pem"
            f" -in {folder / MANIFEST} -out {folder / SIGNATURE}",
            file=sys.stderr,
        )
    return {"engine": str(folder), "manifest": manifest.model_dump(mode="json"), "passed_over": passed_over}


def _check_keys(private: Path | None, public: Path | None) -> None:
    """Raise EngineError for a key that cannot sign, or whose signature the agent would refuse."""
    if private is None:
        return
    probe = b"engine"
    signature = sign(probe, private)
    if public is not None:
        try:
            check_signature(probe, signature, public)
        except ValueError as error:
            raise EngineError(f"{private} is not the private half of engine.public_key ({public})") from error


def _first_that_passes(plan: Plan, precisions: Sequence[str], quiet: bool) -> tuple[Path, Manifest, dict[str, str]]:
    """Build in the first precision that passes every gate; each that fails is told, and the last failure raised."""
    passed_over: dict[str, str] = {}
    expected = plan.expected()
    for precision in precisions:
        try:
            with progress(f"{plan.backend} {precision}", quiet=quiet) as announce:
                folder, manifest = build_engine(replace(plan, precision=precision), announce, expected)
        except GateFailedError as error:
            if precision == precisions[-1]:
                raise
            passed_over[precision] = str(error)
            print(f"{precision} cannot be used for this profile: {error}", file=sys.stderr)
        else:
            return folder, manifest, passed_over
    raise SettingsError(f"{plan.backend} has no precision on this machine")


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM end the work once, cleanly: a second one does not disturb the cleaning."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
