"""The contract as Markdown for people: the table of topics, and every field of every payload with its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent.contract.place import Place
from agent.contract.schemas import command_schemas, payload_schemas
from agent.topics import ROUTES, Route

HEAD = """# Reference: topics and payloads at `{base}`

Written by `python -m agent contract`, from the code that makes the messages. The guide is
[docs/mqtt.md](../mqtt.md). The same for programs: `asyncapi.yaml`, and a JSON Schema for each payload in `schemas/`.

## Topics

"""
COMMANDS_HEAD = """
Commands (the agent obeys those in `mqtt.commands` of its settings, none by default; `?` marks fields that may be left
out):

"""

Schema = dict[str, Any]


def reference(place: Place) -> str:
    """The text of reference.md."""
    parts = [HEAD.format(base=place.topics.base), topic_table(place), COMMANDS_HEAD, command_table(place)]
    for name, schema in {**payload_schemas(), **command_schemas()}.items():
        parts.append(f"\n## {name}\n\n{schema['description']}\n\n")
        parts.append("\n".join(_fields(schema)) + "\n")
        for part, definition in schema.get("$defs", {}).items():
            parts.append(f"\n**{part}**: {definition['description']}\n\n" + "\n".join(_fields(definition)) + "\n")
    return "".join(parts)


def topic_table(place: Place) -> str:
    """What the agent says: topic, how it travels, what it is."""
    schemas = payload_schemas()
    rows = [(f"`{route.topic}`", *_travel(route), _sentence(schemas[kind])) for kind, route in ROUTES.items()]
    return _table(("topic below the base", "QoS", "retained", "expires after", "what"), rows)


def command_table(place: Place) -> str:
    """What the agent hears."""
    schemas = command_schemas()
    rows = []
    for verb in place.commands():
        meaning = _sentence(schemas[f"cmd.{verb}"]).removeprefix(f"Body of `cmd/{verb}`: ")
        rows.append((f"`cmd/{verb}`", meaning))
    return _table(("topic below the base", "what"), rows)


def _travel(route: Route) -> tuple[str, str, str]:
    return (
        str(route.qos),
        "yes" if route.retain else "no",
        _time(route.expiry_s),
    )


def _sentence(schema: Schema) -> str:
    text: str = schema["description"]
    return text.split("\n\n")[0].split(". ")[0].rstrip(".")


def _fields(schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        optional = "" if name in required else "?"
        meaning = field.get("description", "")
        yield f"- `{name}`{optional} {type_of(field)}" + (f": {meaning}" if meaning else "")


def type_of(field: Schema) -> str:
    """A field's type in a few words."""
    if "const" in field:
        return f'"{field["const"]}"'
    if "enum" in field:
        return " \\| ".join(f'"{value}"' for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(type_of(choice) for choice in field["anyOf"])
    if "$ref" in field:
        return f"**{field['$ref'].rpartition('/')[2]}**"
    if field["type"] == "array":
        return f"[{type_of(field['items'])}, …]" if "items" in field else f"[{_pair(field)}]"
    if field["type"] == "object":
        return f"{{text: {type_of(field['additionalProperties'])}}}"
    return _scalar(field)


def _pair(field: Schema) -> str:
    return ", ".join(type_of(item) for item in field["prefixItems"])


def _scalar(field: Schema) -> str:
    if field.get("format") == "date-time":
        return "time (ISO 8601, UTC)"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "true/false", "null": "null"}
    bounds = [
        f"{sign} {field[word]:g}"
        for word, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if word in field
    ]
    return " ".join([names[field["type"]], *bounds])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _time(expiry_s: int | None) -> str:
    if expiry_s is None:
        return "never"
    days, rest_s = divmod(expiry_s, 86_400)
    return f"{expiry_s} s" if rest_s else f"{days} days"
