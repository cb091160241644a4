"""`python -m agent dicom-out`: a process of its own, so that nothing of it can disturb the daemon."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent import discretion, host
from agent.errors import AgentError, SettingsError
from agent.settings import Settings, load_settings
from agent.spool import FOLDER, Spool

if TYPE_CHECKING:
    from agent.dicom_out.export import Exporter, Outcome

HELP = """Writes each final answer as DICOM: a Structured Report (TID 1500) and, for a slide, a heat map as Parametric
Map and as Secondary Capture picture. With dicom_out.stow_url each object is sent to a DICOMweb service as well.

The agent puts its finals into state_dir/results as soon as dicom_out.folder is set; this command takes them from
there, so the two may be started, stopped and killed in any order: nothing is lost, and nothing is told twice under
another UID. Objects bear pseudonyms, unless dicom_out.identity is true. Research use only; with the phantom profile
the objects say that they are of a synthetic phantom and not of tissue. docs/dicom-results.md explains the objects.

example:
  python -m agent dicom-out --config /etc/spinextract-agent/agent.yaml          until SIGTERM
  python -m agent dicom-out --config /etc/spinextract-agent/agent.yaml --once   what waits now; exit code 1 when
                                                                                something still waits or is refused
"""
POLL_S = 2.0
LOCK = ".lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent dicom-out`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the agent's settings (YAML)")
    parser.add_argument("--once", action="store_true", help="deal with what waits now, and end")
    parser.add_argument("--json", action="store_true", help="print one JSON line per result")


# 0o027: the archive's collector reads the objects by its group.
@discretion.discreet(umask=0o027)
def main(args: argparse.Namespace) -> int:
    """Run `agent dicom-out`; returns the exit code. Raises AgentError when it cannot start."""
    settings = load_settings(args.config)
    host.configure_logging(settings.log.level, settings.log.format)
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # it tells each step, and quotes what it doubts
    spool = Spool(settings.state_dir / FOLDER)
    exporter = exporter_of(settings, spool)
    with _alone(spool.folder):
        if args.once:
            return _once(exporter, args.json)
        return _until_stopped(exporter, args.json)


def exporter_of(settings: Settings, spool: Spool) -> Exporter:
    """The exporter that the settings describe. Raises SettingsError, or AgentError without highdicom."""
    wanted = settings.dicom_out
    if wanted.folder is None:
        raise SettingsError("dicom_out.folder is not set: say where the DICOM objects go")
    try:
        from agent.dicom_out.export import Exporter
        from agent.dicom_out.naming import NameBook
        from agent.dicom_out.stow import StowClient
    except ModuleNotFoundError as error:
        raise AgentError(f"{error.name} is not installed: pip install 'spinextract-agent[dicom-out]'") from error
    stow = None
    if wanted.stow_url is not None:
        stow = StowClient(wanted.stow_url, wanted.stow_ca_file, wanted.stow_token_file)
    book = NameBook(settings.identity.lookup_file if wanted.identity else None)
    return Exporter(spool, wanted.folder, book, pixel_um=wanted.pixel_um, stow=stow)


def _once(exporter: Exporter, as_json: bool) -> int:
    outcomes = []
    for outcome in exporter.turn():
        outcomes.append(outcome)
        _print(outcome, as_json)
    left = [outcome for outcome in outcomes if outcome.state != "done"]
    if not as_json:
        print(f"{len(outcomes) - len(left)} results written, {len(left)} not")
    if left:
        raise AgentError(f"{len(left)} of {len(outcomes)} results are not done; the first: {left[0].reason}")
    return 0


def _until_stopped(exporter: Exporter, as_json: bool) -> int:
    stop = threading.Event()
    with host.on_signals({signal.SIGTERM: stop.set, signal.SIGINT: stop.set}):
        host.notify("READY=1")
        while not stop.is_set():
            for outcome in exporter.turn():
                if outcome.state != "waiting":
                    _print(outcome, as_json)
                if stop.is_set():
                    break
            stop.wait(POLL_S)
    return 0


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(outcome)), flush=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock however it ends."""
    with ExitStack() as resources:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch(0o600)
            lock = resources.enter_context((folder / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AgentError(f"{folder} is in use by another process: is dicom-out already running?") from error
        except OSError as error:
            raise AgentError(f"{folder}: {error.strerror or error}: run this as the user of the agent") from error
        yield
