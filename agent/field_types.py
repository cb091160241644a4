"""Kinds of values that settings share: paths that start at the settings file, credentials, seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo


def _from_settings_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    try:
        return Path(os.path.normpath(Path(folder, path.expanduser())))
    except RuntimeError as error:
        raise ValueError("starts with the home folder of a user whom this machine does not know") from error


def _file_or_credential(path: Path, info: ValidationInfo) -> Path:
    return path if str(path).startswith(CREDENTIAL) else _from_settings_folder(path, info)


def _folders(value: object) -> object:
    if value is True:
        raise ValueError("list the folders that are meant, e.g. [/mnt/archive]")
    return () if value is False else value


CREDENTIAL = "credential:"
"""What a path starts with that names a systemd credential of the service instead of a file."""
AnyPath = Annotated[Path, AfterValidator(_from_settings_folder)]
"""A path; a relative one starts at the settings file's folder."""
SecretPath = Annotated[Path, AfterValidator(_file_or_credential)]
"""Like AnyPath, or `credential:NAME`."""
Folders = Annotated[tuple[AnyPath, ...], BeforeValidator(_folders)]
"""Any number of folders; `false` says none."""
Seconds = Annotated[float, Field(gt=0)]
