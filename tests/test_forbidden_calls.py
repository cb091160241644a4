"""What no file of the packages may do, whoever reviews it: unpickle, evaluate, load unsafely, ask a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("agent", "models", "train") for path in (ROOT / folder).rglob("*.py"))

MODULES = {
    "pickle": "runs what its input says", "cPickle": "is pickle", "_pickle": "is pickle", "dill": "is pickle",
    "cloudpickle": "is pickle", "joblib": "is pickle", "shelve": "is pickle", "marshal": "crashes on hostile input",
    "pty": "is a shell", "telnetlib": "speaks in the clear", "ftplib": "speaks in the clear", "imp": "runs files",
    "runpy": "runs files", "code": "evaluates", "codeop": "evaluates", "xml.etree": "expands entities",
    "xml.dom": "expands entities", "xml.sax": "expands entities",
}  # fmt: skip
"""Module → why it is not imported."""
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.jit.load",
    "torch.hub.load", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "numpy.fromregex",
    "tempfile.mktemp", "subprocess.getoutput", "subprocess.getstatusoutput", "ssl._create_unverified_context",
}  # fmt: skip
"""Calls by their full name that are never made; torch.load has an exception below."""
CHECKPOINTS = "train/checkpoint.py"
"""The one place that may read a published checkpoint, with weights_only=True."""


def aliases(tree: ast.AST) -> dict[str, str]:
    """Name in this file → what it was imported as."""
    found: dict[str, str] = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                found[item.asname or item.name.split(".")[0]] = item.name if item.asname else item.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for item in node.names:
                found[item.asname or item.name] = f"{node.module}.{item.name}"
    return found


def full_name(node: ast.expr, known: dict[str, str]) -> str:
    """`np.load` → `numpy.load`; empty for what is not a plain name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := full_name(node.value, known)):
        return f"{owner}.{node.attr}"
    return ""


def offences(text: str, place: str = "") -> Iterator[str]:
    """Everything in a source text that is forbidden."""
    tree = ast.parse(text)
    known = aliases(tree)
    for node in ast.walk(tree):
        for module in _imported(node):
            if why := next((why for name, why in MODULES.items() if f"{module}.".startswith(f"{name}.")), None):
                yield f"imports {module}, which {why}"
        if isinstance(node, ast.Call):
            yield from _of_call(node, full_name(node.func, known), place)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [item.name for item in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
    return []


def _of_call(node: ast.Call, name: str, place: str) -> Iterator[str]:
    words = {word.arg: ast.unparse(word.value) for word in node.keywords}
    weights_only = name == "torch.load" and place == CHECKPOINTS and words.get("weights_only") == "True"
    if name in CALLS and not weights_only:
        yield f"calls {name}"
    if words.get("shell", "False") != "False":
        yield f"{name} with shell={words['shell']}"
    if words.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle={words['allow_pickle']}"
    if name in ("numpy.load", "numpy.savez", "numpy.save") and words.get("allow_pickle") != "False":
        yield f"{name} without allow_pickle=False"
    if words.get("verify", "True") == "False" or "CERT_NONE" in words.values():
        yield f"{name} without looking at the certificate"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_forbidden_is_done(path: Path) -> None:
    """No unpickling, evaluation, unsafe YAML, shell or unchecked certificate in any file of the packages."""
    place = path.relative_to(ROOT).as_posix()
    assert list(offences(path.read_text(encoding="utf-8"), place)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "from xml import etree",
        "import xml.etree.ElementTree as E",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load as l\nl('x')",
        "import yaml\nyaml.load(t, Loader=yaml.SafeLoader)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy\nnumpy.load(f)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "eval('1')",
        "import os\nos.system('ls')",
        "import httpx\nhttpx.get(u, verify=False)",
    ],
)
def test_the_ban_sees(text: str) -> None:
    """Each of these is an offence, under whatever name it was imported."""
    assert list(offences(text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "import yaml\nyaml.safe_load(t)",
        "import re\nre.compile('x')",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls'])",
        "from safetensors.numpy import load\nload(b)",
        "network.eval()",
    ],
)
def test_the_ban_sees_no_ghosts(text: str) -> None:
    """What only looks similar is none."""
    assert list(offences(text)) == []
