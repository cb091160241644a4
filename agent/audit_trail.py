"""What the daemon says of itself in the audit log: with which profile, engine, settings and versions it computes.

Belongs to the SENDER room, whose thread owns the ledger. Decides what of the settings is written down: nothing that
leads to a secret.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from agent.audit import LedgerAudit
from agent.engine import BACKENDS, Choice
from agent.engine.device import this_cpu
from agent.engine.manifest import distribution_version
from agent.reload import LiveSettings
from agent.settings import Settings
from agent.speech import DISTRIBUTION, Speech

LIBRARIES = ("numpy", "imagecodecs", "pydicom", "safetensors", "tifffile", "xxhash")
"""What stands between a file's bytes and the engine; the engine's own are added."""


class AuditTrail:
    """Enters start, changed settings, engines that take over, and end; writes what waits into the log's files."""

    def __init__(self, audit: LedgerAudit, live: LiveSettings, speech: Speech) -> None:
        """Enters the start. Raises LedgerError."""
        self._audit = audit
        self._live = live
        self._settings = live.now
        self._speech, self._choice = speech, speech.choice
        self._session_id = speech.speaker.session_id
        audit.add("start", {**_of_start(speech), **of_settings(self._settings)})
        audit.export()

    def look(self) -> None:
        """Call it often. Raises LedgerError."""
        if self._live.now is not self._settings:
            self._settings = self._live.now
            self._audit.add("settings", of_settings(self._settings))
        if self._speech.choice is not self._choice:
            self._choice = self._speech.choice
            said = {"session_id": self._session_id, "passed_over": self._choice.passed_over}
            self._audit.add("engine", {**said, **_of_engine(self._choice)})
        self._audit.export()

    def end(self) -> None:
        """Enter the clean end of the agent; a start without one before it followed a crash. Raises LedgerError."""
        self._audit.add("stop", {"session_id": self._session_id})
        self._audit.export()


def of_settings(settings: Settings) -> dict[str, Any]:
    """The hash of all effective settings, and those that are not the defaults, by their dotted names."""
    required = {name: getattr(settings, name) for name, f in Settings.model_fields.items() if f.is_required()}
    usual = dict(_flat(Settings(**required)))
    effective = dict(_flat(settings))
    text = json.dumps(effective, sort_keys=True, separators=(",", ":"))
    own = {name: value for name, value in effective.items() if name in required or usual[name] != value}
    return {"settings_sha256": hashlib.sha256(text.encode()).hexdigest(), "settings": own}


def _flat(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting but the files in which secrets lie; a password in an address is left out."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        elif not name.endswith("_file"):
            plain = section.model_dump(mode="json", include={name})[name]
            yield prefix + name, re.sub(r"//[^/@]*@", "//", plain) if isinstance(plain, str) else plain


def _of_start(speech: Speech) -> dict[str, Any]:
    speaker = speech.speaker
    return {
        "version": version(DISTRIBUTION),
        "boot_seq": speech.boot_seq,
        "session_id": speaker.session_id,
        "profile": speaker.profile_ref.model_dump(),
        **_of_engine(speech.choice),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _of_engine(choice: Choice) -> dict[str, Any]:
    """The engine in service, and the versions of what it runs on."""
    engine, manifest, backend = choice.engine, choice.manifest, BACKENDS.get(choice.engine.name)
    libraries = (*LIBRARIES, *(backend.requires if backend else ()))
    return {
        "engine": {
            "name": engine.name,
            "precision": engine.precision,
            "batch": engine.batch_size,
            "device": this_cpu().model,
            "manifest_sha256": manifest.sha256 if manifest else None,
            "files": manifest.files if manifest else {},
        },
        "libraries": {**{name: distribution_version(name) for name in libraries}, "sqlite": sqlite3.sqlite_version},
    }
