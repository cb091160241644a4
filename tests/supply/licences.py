"""The licence of a distribution as an SPDX expression, and which licences a release may contain."""

from __future__ import annotations

import re
from email.message import Message

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "EPL-2.0", "HPND", "ISC", "MIT",
    "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip
"""Permissive ones, and those whose conditions a copy of unchanged files keeps. Others need a person's look."""
EXCEPTIONS = {"LLVM-exception"}
_NAMES = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "OSI Approved :: Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
}
"""What older metadata says → SPDX. "BSD" alone is the three-clause licence for all that we use."""


def licence_of(metadata: Message) -> str | None:
    """The SPDX expression; None when the metadata does not tell."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    for said in (str(metadata.get("License") or "").strip(), *classifiers):
        if said in ALLOWED:
            return said
        if known := _NAMES.get(said):
            return known
    return None


def is_allowed(expression: str) -> bool:
    """Whether a choice that the expression offers is allowed as a whole."""
    words = re.findall(r"\(|\)|[A-Za-z0-9.+-]+", expression)
    text = " ".join(_word(word) for word in words)
    return _holds(text)


def _word(word: str) -> str:
    if word in ("(", ")"):
        return word
    if word in ("AND", "OR", "WITH"):
        return {"AND": "&", "OR": "|", "WITH": "&"}[word]
    return "1" if word in ALLOWED | EXCEPTIONS else "0"


def _holds(text: str) -> bool:
    """Value of an expression of 1, 0, & (binds first), | and brackets."""
    while True:
        simpler = re.sub(r"\( ([01]) \)", r"\1", text)
        simpler = re.sub(r"([01]) & ([01])", lambda m: str(int(m[1]) & int(m[2])), simpler, count=1)
        if simpler == text:
            simpler = re.sub(r"([01]) \| ([01])(?! &)", lambda m: str(int(m[1]) | int(m[2])), text, count=1)
        if simpler == text:
            return text == "1"
        text = simpler
