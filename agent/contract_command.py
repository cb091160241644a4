"""`python -m agent contract`: writes the wire contract from its one source in code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from agent.contract.asyncapi import asyncapi_yaml
from agent.contract.mosquitto import access_rules, configuration
from agent.contract.place import Place, place_of
from agent.contract.reference import reference
from agent.contract.schemas import all_schemas
from agent.errors import AgentError
from agent.settings import load_settings

HELP = """Everything that somebody needs who receives the agent's messages or runs the broker, made from the same code
as the messages. Without --out the topics and every field are printed; with --out DIR these files are written:

  reference.md      topics and fields, for people
  asyncapi.yaml     the same as AsyncAPI 3.0, for generators and viewers
  schemas/*.json    JSON Schema (2020-12) of each payload and command, for validators
  mosquitto.acl     access rules: who may read results, who may send commands
  mosquitto.conf    example of a broker's configuration that uses them

Topics, user name and ports are those of the settings file, or the defaults of a new one. Nothing secret is written.

example:
  python -m agent contract | less
  python -m agent contract --config agent.yaml --out contract
  python -m agent contract --config agent.yaml --out new && diff -r contract new     after an update of the agent
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent contract`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings whose topics and broker are meant")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the files into this folder")


def main(args: argparse.Namespace) -> int:
    """Run `agent contract`; returns the exit code. Raises SettingsError and AgentError."""
    place = Place() if args.config is None else place_of(load_settings(args.config))
    if args.out is None:
        print(reference(place), end="")
        return 0
    files = contract_files(place)
    try:
        for name, text in files.items():
            path = args.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AgentError(f"contract into {args.out}: {error}") from error
    print(f"{args.out}: {len(files)} files for {place.topics.base}")
    return 0


def contract_files(place: Place) -> dict[str, str]:
    """Every file of the contract, by its name below the folder; the same code makes the same bytes."""
    schemas = {f"schemas/{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in all_schemas().items()}
    return {
        "reference.md": reference(place),
        "asyncapi.yaml": asyncapi_yaml(place),
        "mosquitto.acl": access_rules(place),
        "mosquitto.conf": configuration(place),
        **schemas,
    }
