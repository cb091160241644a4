"""Kinds of values that settings share: paths that start at the settings file, credentials, seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo


def _from_settings_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(Path(folder, path.expanduser())))


def _file_or_credential(path: Path, info: ValidationInfo) -> Path:
    return path if str(path).startswith(CREDENTIAL) else _from_settings_folder(path, info)


CREDENTIAL = "credential:"
"""What a path starts with that names a systemd credential of the service instead of a file."""
AnyPath = Annotated[Path, AfterValidator(_from_settings_folder)]
"""A path; a relative one starts at the settings file's folder."""
SecretPath = Annotated[Path, AfterValidator(_file_or_credential)]
"""Like AnyPath, or `credential:NAME`."""
Seconds = Annotated[float, Field(gt=0)]
