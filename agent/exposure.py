"""Which of the files that the settings name are exposed, and whether the agent may start with that.

The daemon asks at its start, doctor whenever somebody asks: both tell the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from agent.engine.manifest import ENGINES
from agent.errors import SettingsError
from agent.field_types import CREDENTIAL
from agent.permissions import Kind, Weakness, judge
from agent.settings import Settings
from agent.spool import FOLDER

log = structlog.get_logger("agent")
_SYSTEMDS = (CREDENTIAL, "/run/credentials/")
Exposed = tuple[str, Weakness]
"""Doctor's word for what is exposed, and how."""


def key_file(settings: Settings) -> Path:
    """Where the pseudonyms' key lies."""
    return settings.identity.key_file or settings.state_dir / "identity.key"


def exposed_settings(config: Path) -> Iterator[Exposed]:
    """The settings file itself."""
    yield from _look("settings", config, "answers")


def exposed_profile(settings: Settings) -> Iterator[Exposed]:
    """The profile's folder, its engines, and every file in them: checksums find damage, no intent."""
    folder = settings.profile
    engines = [folder / ENGINES, *_inside(folder / ENGINES)]
    places = [folder, *_inside(folder), *(path for engine in engines for path in _inside(engine))]
    yield from _worst("profile_files", places, "answers", f"chmod -R go-w {folder}")
    if settings.engine.public_key is not None:
        yield from _look("engine.public_key", settings.engine.public_key, "answers")


def exposed_state(settings: Settings) -> Iterator[Exposed]:
    """The state folder, and what lies in it: the ledger and results that wait."""
    state, spool = settings.state_dir, settings.state_dir / FOLDER
    yield from _look("state_dir", state, "state")
    apart = {key_file(settings), settings.identity.lookup_file}
    places = [path for path in (*_inside(state), *_inside(spool)) if path not in apart]
    yield from _worst("state_files", places, "kept", f"ls -lA {state}   and remove what is not the agent's")


def exposed_secrets(settings: Settings) -> Iterator[Exposed]:
    """Key and lookup file of the pseudonyms, then passwords and private keys."""
    yield from _look("identity_key", key_file(settings), "identity")
    if settings.identity.lookup_file is not None:
        yield from _look("lookup_file", settings.identity.lookup_file, "identity")
    for name, path in secrets_of(settings).items():
        yield from _look(name, path, "secret")


def secrets_of(settings: Settings) -> dict[str, Path]:
    """Setting → file, of passwords and private keys; what systemd gives to the service alone is left out."""
    mqtt = settings.mqtt
    named = {
        "mqtt.password_file": mqtt.password_file,
        "mqtt.key_file": mqtt.key_file,
        "dashboard.password_file": settings.dashboard.password_file,
        "dicom_out.stow_token_file": settings.dicom_out.stow_token_file,
    }
    return {name: path for name, path in named.items() if path is not None and not str(path).startswith(_SYSTEMDS)}


def refuse_exposed(settings: Settings, config: Path) -> None:
    """Log what should be mended; raises SettingsError, a line each, for what the agent does not start with."""
    looks = exposed_settings(config), exposed_profile(settings), exposed_state(settings), exposed_secrets(settings)
    refused = []
    for word, weakness in (exposed for look in looks for exposed in look):
        if weakness.refused:
            refused.append(f"{word}: {weakness.found}; {weakness.why}: run `{weakness.mend}`")
        elif not word.startswith("mqtt."):  # the session with the broker says these itself
            log.warning("exposed", what=word, detail=weakness.found, why=weakness.why, mend=weakness.mend)
    if refused:
        raise SettingsError("\n".join(refused))


def _look(word: str, path: Path, kind: Kind) -> Iterator[Exposed]:
    with suppress(OSError):  # what cannot be looked at cannot be used either: whoever needs it will say so
        found = judge(path, kind)
        if found is not None:
            yield word, found


def _worst(word: str, places: list[Path], kind: Kind, mend_all: str) -> Iterator[Exposed]:
    """One for all of these: the worst, and how many more there are."""
    found = [item for path in places for _, item in _look(word, path, kind)]
    found.sort(key=lambda item: not item.refused)
    if len(found) == 1:
        yield word, found[0]
    elif found:
        yield word, replace(found[0], found=f"{found[0].found}, and {len(found) - 1} more", mend=mend_all)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
