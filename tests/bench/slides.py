"""The same few slides under ever new names: rendered once, then copied or linked into the watched folder at once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.imager import plan
from models.srh.phantom import PhantomSlide, strip

SMALL = PhantomSlide(41_004, 1, 2000)
"""Two scan strips of 2000 rows: 42 patches, 16 MB in four files."""


@dataclass(frozen=True)
class Original:
    """A slide in files, to be sent many times."""

    folder: Path
    """Below it the files lie as below a patient's folder."""
    files: tuple[Path, ...]
    """Relative to it."""
    groups: tuple[tuple[Path, ...], ...]
    """The same, those together that the imager writes together."""
    patches: int

    @classmethod
    def write(cls, folder: Path, strips: Sequence[NDArray[np.uint16]], patches: int) -> Original:
        """Write the files of a slide."""
        groups: dict[int, list[Path]] = {}
        for file in plan(strips, "strips-b", "once", "1"):
            path = Path(*file.relative.parts[1:])
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(file.content)
            groups.setdefault(file.group, []).append(path)
        return cls(
            folder,
            tuple(path for group in groups.values() for path in group),
            tuple(map(tuple, groups.values())),
            patches,
        )

    @classmethod
    def phantom(cls, folder: Path, source: PhantomSlide = SMALL) -> Original:
        """The synthetic phantom's slide."""
        per_strip = {2000: 21, 4000: 42, 6000: 60, 10_000: 102}[source.height_px]
        return cls.write(folder, [strip(source, index) for index in range(source.strips)], per_strip * source.strips)

    def lay(self, target: Path, *, linked: bool = False) -> None:
        """Put the files below a patient's folder. Linked, they take no room; but each link changes the times of all
        that there are, so that nothing may be linked or removed once the agent has seen one of them.
        """
        for path in self.files:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            if linked:
                (target / path).hardlink_to(self.folder / path)
            else:
                shutil.copyfile(self.folder / path, target / path)

    def send(self, staging: Path, watched: Path, patient: str) -> None:
        """Let a whole slide appear at once: laid beside the watched folder, then renamed into it."""
        self.lay(staging / patient)
        (staging / patient).rename(watched / patient)
