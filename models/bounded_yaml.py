"""YAML text → plain data, or one error: bounded in size, depth and in what its aliases expand to.

A few hundred bytes of aliases stand for more data than any machine holds, and PyYAML's constructors raise whatever a
malformed date or number makes them raise. Pure; knows no field.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARS = 1 << 16
"""PyYAML, which is slow, may take seconds for more."""
MAX_DEPTH = 32
"""Lists and mappings within each other."""
MAX_NODES = 20_000
"""Keys, values, lists and mappings; those behind an alias count each time that they are meant."""

# What PyYAML's SafeConstructor raises, by its source and by fuzzing, for values that are not what their form or tag
# promises: dates, numbers, !!bool, !!timestamp.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class YamlInvalid(ValueError):
    """The text must not be used; `line` (from 1) is where, if that is known."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line


class _Loader(yaml.SafeLoader):
    """SafeLoader that goes down so far and no further."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One level; `index` is its place in the one above."""
        if self.depth == MAX_DEPTH:
            raise YamlInvalid(f"it is nested deeper than {MAX_DEPTH} levels", self.line + 1)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The tree with its line numbers (None for an empty text), and the data. Raises YamlInvalid."""
    if len(text) > MAX_CHARS:
        raise YamlInvalid(f"it is longer than {MAX_CHARS} characters")
    try:
        root = _Loader(text).get_single_node()
        if root is not None and _size(root, {}) > MAX_NODES:
            raise YamlInvalid(f"it holds more than {MAX_NODES} values, aliases counted each time")
        return root, _Loader(text).get_single_data()  # which rewrites its own tree where keys are merged
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise YamlInvalid(error.problem or "broken", line) from error
    except yaml.reader.ReaderError as error:
        raise YamlInvalid("a character that YAML does not allow", text.count("\n", 0, error.position) + 1) from error
    except YamlInvalid:
        raise
    except _UNREADABLE as error:
        raise YamlInvalid("a date, number or tagged value that cannot be read") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes at and below this one; `known` holds those of nodes that were met, 0 while they are being counted."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise YamlInvalid("an alias that contains itself", node.start_mark.line + 1 if node.start_mark else None)
        return known[id(node)]
    known[id(node)] = 0
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    known[id(node)] = 1 + sum(_size(part, known) for part in below)
    return known[id(node)]
