"""The commands. Errors a user can act on end as one line: exit code 1, or 2 for bad arguments and settings."""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

from agent.errors import AgentError, SettingsError

HELP = """Diagnoses stimulated Raman histology slides while the imager is still writing them. Research use only.

first steps:
  python -m agent demo                       everything on this machine: broker, imager, agent, live view
  python -m agent doctor --config FILE       checks settings, folder, profile, engine, broker and disk
  python -m agent run --config FILE          the daemon
  python -m agent COMMAND --help             more about each command
"""


class Command(NamedTuple):
    """A command and the module that declares (`add_arguments`) and runs (`main`) it."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("run", "agent.run_command", "the daemon: watch a folder, publish posteriors"),
    Command("demo", "agent.demo", "everything on this machine, with a synthetic imager"),
    Command("replay", "agent.replay", "play finished slides into a folder at the imager's pace"),
    Command("score", "agent.score", "score finished slides"),
    Command("phantom", "agent.phantom_command", "write synthetic slides and their truth"),
    Command("doctor", "agent.doctor", "check this machine and say what to do"),
    Command("dashboard", "agent.dashboard.command", "serve the screen for the theatre: one web page"),
    Command("dicom-out", "agent.dicom_out.command", "write results as DICOM: structured report and heat map"),
    Command("quarantine", "agent.quarantine", "list the files that were refused, and what to do about them"),
    Command("verify", "agent.verify", "check the audit log, and show what a result rests on"),
    Command("settings", "agent.settings_command", "print the example settings, their JSON Schema, or check a file"),
    Command("contract", "agent.contract_command", "write the wire contract: AsyncAPI, schemas, broker access rules"),
)


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The argument parser; only the chosen command's module is imported, so that --help and --version are quick."""
    parser = argparse.ArgumentParser(
        prog="python -m agent", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"spinextract-agent {version('spinextract-agent')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help)
        if command.name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        args = build_parser(chosen).parse_args(words)
        return int(args.main(args))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except AgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
