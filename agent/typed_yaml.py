"""How a YAML file becomes a typed model, and how it says what is wrong: file, line, field, value, suggestion.

Knows no setting: any pydantic model can be read here, and any model with documented fields can be written out as
a commented example.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticUndefined

from agent.errors import SettingsError
from models.bounded_yaml import YamlInvalid, read_yaml

Model = TypeVar("Model", bound=BaseModel)

MAX_ERRORS = 8
MAX_VALUE_CHARS = 60


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, field docstrings kept for the example file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        # A section whose every line is commented out reads as null in YAML.
        return {} if value is None else value


def read_typed(path: Path, model: type[Model], context: Mapping[str, Any] | None = None) -> Model:
    """Read a YAML file into `model`; `context` reaches the model's validators.

    Raises SettingsError, one line per problem: `file:line: field.path: what is wrong (got value)`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {_reason(error)}") from error
    try:
        root, document = read_yaml(text)
    except YamlInvalid as error:
        raise SettingsError(f"{path}:{error.line or 1}: not YAML: {error}") from error
    if root is None:
        root, document = yaml.MappingNode("tag:yaml.org,2002:map", []), {}
    problems = _repeated_keys(path, root, ())
    if not isinstance(document, dict):
        problems = [f"{path}:1: must be a mapping of field names to values"]
    if problems:
        raise SettingsError("\n".join(problems[:MAX_ERRORS]))
    try:
        return model.model_validate(document, context=dict(context or {}))
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [_explain(path, root, model, detail) for detail in details[:MAX_ERRORS]]
        if len(details) > MAX_ERRORS:
            lines.append(f"{path}: and {len(details) - MAX_ERRORS} more")
        raise SettingsError("\n".join(lines)) from error


def example_of(model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """A commented YAML example of `model`: every field with its documentation and its default.

    `values` gives the required fields, which have no default. Fields whose default is None are commented out.
    """
    return "\n".join(_example_lines(model, values, "")).strip() + "\n"


def _example_lines(model: type[BaseModel], values: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        value = values.get(name, field.get_default(call_default_factory=True))
        if value is PydanticUndefined:
            raise AssertionError(f"the example needs a value for {name}")
        nested = field.annotation
        is_section = isinstance(nested, type) and issubclass(nested, BaseModel)
        if not indent or field.is_required():
            lines.append("")
        if field.description:
            width = 100 - len(indent)
            lines += [f"{indent}# {part}" for part in textwrap.wrap(field.description, width)]
        if is_section and isinstance(nested, type):
            lines.append(f"{indent}{name}:")
            lines += _example_lines(nested, values.get(name, {}), indent + "  ")
        else:
            prefix = "# " if value is None else ""
            lines.append(f"{indent}{prefix}{name}: {_flow(value)}".rstrip())
    return lines


def _flow(value: Any) -> str:
    if value is None:
        return ""
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _explain(path: Path, root: yaml.Node, model: type[BaseModel], detail: ErrorDetails) -> str:
    loc = detail["loc"]
    unknown = detail["type"] == "extra_forbidden"
    where = f"{path}:{_line_of(root, loc)}: {_dotted(loc)}"
    if unknown:
        # The value is not shown: an unknown key may be a password that belongs into a file.
        return f"{where}: unknown setting{_suggestion(model, loc)}"
    if detail["type"] == "missing":
        return f"{where}: is required"
    message = detail["msg"].removeprefix("Value error, ")
    got = "" if isinstance(detail["input"], (dict, BaseModel)) else f" (got {_shown(detail['input'])})"
    return f"{where}: {message[:1].lower()}{message[1:]}{got}"


def _suggestion(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    key = str(loc[-1])
    section = _model_at(model, loc[:-1])
    known = list(section.model_fields) if section else []
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    elsewhere = [path for path in _all_fields(model) if path.rpartition(".")[2] == key]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _all_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _all_fields(field.annotation, f"{prefix}{name}.")
    return found


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The model that describes the mapping at `loc` (through nested models and tuples of models)."""
    here: type[BaseModel] | None = model
    for step in loc:
        if here is None or isinstance(step, int):
            continue
        field = here.model_fields.get(step)
        candidates = (field.annotation, *get_args(field.annotation)) if field else ()
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        here = models[0] if models else None
    return here


def _line_of(root: yaml.Node, loc: Sequence[int | str]) -> int:
    """Line (from 1) of the deepest node on the way of `loc`; keys are preferred to their values."""
    node, line = root, root.start_mark.line + 1 if root.start_mark else 1
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(step)), None)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _repeated_keys(path: Path, node: yaml.Node, loc: tuple[str, ...]) -> list[str]:
    # YAML keeps the last of two equal keys without a word: the first one would be lost silently.
    if isinstance(node, yaml.SequenceNode):
        return [p for i, item in enumerate(node.value) for p in _repeated_keys(path, item, (*loc, str(i)))]
    if not isinstance(node, yaml.MappingNode):
        return []
    problems: list[str] = []
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            problems.append(f"{path}:{line}: {_dotted((*loc, name))}: stated before on line {lines[name]}")
        lines.setdefault(name, line)
        problems += _repeated_keys(path, value, (*loc, name))
    return problems


def _dotted(loc: Sequence[int | str]) -> str:
    return ".".join(str(step) for step in loc) or "settings"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
