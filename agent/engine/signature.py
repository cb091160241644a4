"""ed25519 signatures of an engine's manifest: the exact bytes of engine.json, signed in engine.json.sig beside it.

The manifest holds the sha256 of every other file, so one signature covers the engine. 64 raw bytes, as
`openssl pkeyutl -sign -rawin` writes and `openssl pkeyutl -verify -rawin` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.errors import EngineError

SIGNATURE = "engine.json.sig"


class SignatureRefused(ValueError):
    """The manifest is not signed, or not by this key; the text says which."""


def sign(text: bytes, private_key: Path) -> bytes:
    """The signature of a manifest by a private key (PEM, ed25519); raises EngineError for an unusable key."""
    serialization, keys = _cryptography()
    key = _key(private_key, lambda pem: serialization.load_pem_private_key(pem, password=None))
    if not isinstance(key, keys.Ed25519PrivateKey):
        raise EngineError(f"{private_key} is no ed25519 private key; make one: {_GENERATE} -out {private_key}")
    signature: bytes = key.sign(text)
    return signature


def check(text: bytes, signature: bytes | None, public_key: Path) -> None:
    """Raise SignatureRefused unless `signature` is that of the manifest by this key's private half.

    Raises EngineError for an unusable public key.
    """
    key = load_public_key(public_key)
    from cryptography.exceptions import InvalidSignature

    if signature is None:
        raise SignatureRefused(f"not signed, and engine.public_key ({public_key}) asks for a signature")
    try:
        key.verify(signature, text)
    except InvalidSignature as error:
        raise SignatureRefused(f"{SIGNATURE} is no signature of this engine by the owner of {public_key}") from error


def load_public_key(path: Path) -> Any:
    """An ed25519 public key (PEM); raises EngineError with what to do for anything else."""
    serialization, keys = _cryptography()
    key = _key(path, serialization.load_pem_public_key)
    if not isinstance(key, keys.Ed25519PublicKey):
        raise EngineError(
            f"{path} is no ed25519 public key; write it: openssl pkey -in PRIVATE.pem -pubout -out {path}"
        )
    return key


_GENERATE = "openssl genpkey -algorithm ed25519"


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise EngineError(
            "signatures of engines need a package that is not installed: pip install 'spinextract-agent[sign]'"
        ) from error
    return serialization, ed25519


def _key(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot read the key {path}: {error.strerror}") from error
    except TypeError as error:
        raise EngineError(f"{path} is protected by a passphrase; give one that is not") from error
    except ValueError as error:
        raise EngineError(f"{path} is not a PEM key") from error
