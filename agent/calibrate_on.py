"""Inputs of finished data for measuring the ranges of an int8 engine: `build_trt --calibrate-on PATH...`.

Read, cut and judged as `agent score` does it; nothing of it is kept but pixels in memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine.expected import CALIBRATION_PATCHES, Announce
from agent.errors import AgentError
from agent.naming import NamingSettings
from agent.score import everything, finished_folders, reader_of
from models.contract import ModelInput
from models.profile import LoadedProfile


def inputs_of(
    paths: list[Path],
    profile: LoadedProfile,
    naming: NamingSettings,
    announce: Announce,
    most: int = CALIBRATION_PATCHES,
) -> NDArray[np.uint16]:
    """At most `most` raw inputs that the tissue gate lets pass, drawn evenly from all: the same for the same files.

    Raises SettingsError for a path that is not there, AgentError where no patch can be used.
    """
    rng = np.random.default_rng(300)
    kept: list[NDArray[np.uint16]] = []
    seen = 0
    for folder in finished_folders(paths, naming):
        for told in everything(reader_of(folder, profile.spec, naming)):
            if not isinstance(told, ModelInput) or told.rejected is not None:
                continue
            seen += 1
            announce("read patches to calibrate on", min(seen, most), most)
            if len(kept) < most:
                kept.append(told.pixels.copy())
            elif (place := int(rng.integers(seen))) < most:
                kept[place] = told.pixels.copy()
    if not kept:
        raise AgentError("no patch to calibrate on: no slide was found, or none has tissue")
    return np.stack(kept)
