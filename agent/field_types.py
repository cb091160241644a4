"""Kinds of values that settings share: paths that start at the settings file, seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo


def _from_settings_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(Path(folder, path.expanduser())))


AnyPath = Annotated[Path, AfterValidator(_from_settings_folder)]
"""A path; a relative one starts at the settings file's folder."""
Seconds = Annotated[float, Field(gt=0)]
