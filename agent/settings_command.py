"""`python -m agent settings`: the example file, its JSON Schema, or what is wrong with a file.

Knows no room of the daemon: only what may be set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from agent.settings import example_yaml, json_schema, load_settings

HELP = """Prints every setting with its meaning, unit and default, or the JSON Schema by which an editor completes and
checks them; or checks a settings file and says what is wrong, line by line.

example:
  python -m agent settings --example > agent.yaml           then set folder, state_dir and profile
  python -m agent settings --schema > agent.schema.json     and as the first line of agent.yaml:
                                                            # yaml-language-server: $schema=agent.schema.json
  python -m agent settings --check agent.yaml               exit code 2 when something is wrong
  systemctl reload spinextract-agent                        the running agent takes the file over where it safely can
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent settings`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--example", action="store_true", help="print a complete settings file with comments")
    which.add_argument("--schema", action="store_true", help="print the JSON Schema of the settings file")
    which.add_argument("--check", type=Path, metavar="FILE", help="check a settings file")


def main(args: argparse.Namespace) -> int:
    """Run `agent settings`; returns the exit code. Raises SettingsError."""
    if args.example:
        print(example_yaml(), end="")
    elif args.schema:
        print(json.dumps(json_schema(), indent=2))
    else:
        load_settings(args.check)
        print(f"{args.check}: no mistake found; `python -m agent doctor --config {args.check}` looks at the machine")
    return 0
