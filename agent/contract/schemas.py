"""JSON Schema (2020-12) of everything that is said and heard, from the payload types and their docstrings."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from agent.commands import COMMANDS
from agent.topics import ROUTES, SCHEMA_VERSION

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class _AsWritten(GenerateJsonSchema):
    """A payload of ours always has all of its fields, null where there is nothing to say."""

    def field_is_required(
        self, field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField, total: bool
    ) -> bool:
        return True


def payload_schemas() -> dict[str, Schema]:
    """The schema of every payload as the agent writes it, by kind."""
    schemas = {}
    for kind, route in ROUTES.items():
        schema = route.payload.model_json_schema(mode="serialization", schema_generator=_AsWritten)
        schema["properties"]["kind"]["description"] = f"Always `{kind}`."
        _forget(schema, "default")
        schemas[kind] = _headed(schema, kind)
    return schemas


def command_schemas() -> dict[str, Schema]:
    """The schema of every command's body, by `cmd.<verb>`; its fields may be left out."""
    return {f"cmd.{verb}": _headed(body.model_json_schema(), f"cmd.{verb}") for verb, body in COMMANDS.items()}


def all_schemas() -> dict[str, Schema]:
    """Both, by the name of their files."""
    return {**payload_schemas(), **command_schemas()}


def _headed(schema: Schema, name: str) -> Schema:
    body = {key: value for key, value in schema.items() if key not in ("title", "description", "$defs")}
    for part in (body, *schema.get("$defs", {}).values()):
        # pydantic's titles repeat the names of the fields.
        for field in part.get("properties", {}).values():
            field.pop("title", None)
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {
        "$schema": DIALECT,
        "$id": f"urn:spinextract:{name}:v{SCHEMA_VERSION}",
        "title": name,
        "description": _unwrapped(schema["description"]),
        **body,
        **definitions,
    }


def _forget(schema: Schema, word: str) -> None:
    for part in (schema, *schema.get("$defs", {}).values()):
        for field in part.get("properties", {}).values():
            field.pop(word, None)


def _unwrapped(text: str) -> str:
    """A docstring's paragraphs without the line breaks inside them."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
