"""Pseudonyms: keyed names for patients, slides and files, so that no identity leaves this machine.

Decides how an identity becomes a name and how the key is kept; knows no file format, log or message.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Literal, Protocol

from agent.errors import SettingsError

Kind = Literal["patient", "slide", "file"]

KEY_BYTES = 32
NAME_CHARS = 16
"""80 bits: a site with a million slides meets two equal names with a chance of 4e-13."""


class Naming(Protocol):
    """Gives every identity its one name."""

    def of(self, kind: Kind, *identity: str) -> str:
        """Return the name of an identity, e.g. of("slide", patient, slide)."""
        ...


class Pseudonyms:
    """HMAC-SHA256 names: the same identity and key give the same name, and nobody without the key goes back.

    With `lookup`, each new name is appended to that local file (0600) as one JSON line
    {"pseudonym", "kind", "original"}; such a file is identity and must stay on the machine.
    """

    def __init__(self, key: bytes, lookup: Path | None = None) -> None:
        if len(key) < KEY_BYTES:
            raise SettingsError(f"the pseudonyms' key has {len(key)} bytes, {KEY_BYTES} are needed")
        self._key = key
        self._lookup = lookup
        self._written: set[str] = set()
        if lookup is not None:
            self._written = _known(lookup)

    def of(self, kind: Kind, *identity: str) -> str:
        """16 characters of a-z and 2-7. The kind and every part are length-prefixed, so none can imitate another.

        Raises SettingsError when the lookup file cannot be written.
        """
        parts = [part.encode("utf-8", "surrogateescape") for part in (kind, *identity)]
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        digest = hmac.digest(self._key, message, "sha256")
        name = base64.b32encode(digest).decode("ascii").lower()[:NAME_CHARS]
        if self._lookup is not None and name not in self._written:
            _append(self._lookup, {"pseudonym": name, "kind": kind, "original": list(identity)})
            self._written.add(name)
        return name


class Plain:
    """The identity itself, for data that the user already holds in the hand (`score`, `replay`)."""

    def of(self, kind: Kind, *identity: str) -> str:
        """Return the last part: the patient's, slide's or file's own name."""
        return identity[-1]


def load_or_create_key(path: Path) -> bytes:
    """Return the key (32 bytes, kept as hex with mode 0600), making it at the first start.

    Raises SettingsError for a key that others could read, that is damaged, or that cannot be made.
    """
    try:
        if not path.exists():
            _create_key(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * KEY_BYTES)
    except OSError as error:
        raise SettingsError(f"the pseudonyms' key {path}: {error.strerror or error}") from error
    _refuse_if_shared(path, mode, "the pseudonyms' key")
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"the pseudonyms' key {path} is damaged ({2 * KEY_BYTES} hex digits expected): restore it from a "
            "backup, or remove it to start with new pseudonyms"
        )
    return key


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    _write_private(fresh, secrets.token_hex(KEY_BYTES) + "\n", os.O_CREAT | os.O_EXCL)
    try:
        # A link appears whole or not at all and never replaces a key that another process made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _append(path: Path, record: dict[str, object]) -> None:
    # ASCII JSON: a file name that is no UTF-8 comes back from its surrogate escapes.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_private(path, json.dumps(record) + "\n", os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise SettingsError(f"the lookup file {path}: {error.strerror or error}") from error


def _write_private(path: Path, text: str, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _known(path: Path) -> set[str]:
    try:
        if not path.exists():
            return set()
        _refuse_if_shared(path, path.stat().st_mode, "the lookup file")
        text = path.read_text(encoding="ascii")
        if text and not text.endswith("\n"):
            # A power failure cut the last line: end it, and its identity is written again when it comes.
            _write_private(path, "\n", os.O_APPEND)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the lookup file {path} cannot be used: {error}") from error
    names: set[str] = set()
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            names.add(str(json.loads(line)["pseudonym"]))
    return names


def _refuse_if_shared(path: Path, mode: int, what: str) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(
            f"{what} {path} can be read by others (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`"
        )
