"""Finished slides in a folder: which files they have, in the imager's order, and their pixels.

For replay and conversion only. The daemon reads files while they grow, through agent.formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array

from agent.errors import AgentError
from agent.identity import Plain
from agent.layouts import Layouts, Placed, is_temporary, natural
from agent.naming import NamingSettings, rules_of
from models.contract import SlideKey

Pixels = NDArray[np.uint16]
FIELD_OF_VIEW_PX = 1000


@dataclass(frozen=True)
class Finished:
    """One file of a slide."""

    relative: PurePosixPath
    placed: Placed

    @property
    def slide(self) -> SlideKey:
        """The slide, under its own names."""
        return self.placed.part.slide


@dataclass(frozen=True)
class Survey:
    """The files of a folder."""

    placed: list[Finished]
    """Files of slides, in the order of the imager: slide by slide, strip by strip, CH2 before CH3."""
    others: list[PurePosixPath]
    """Files that no naming rule places, in natural order; hidden and temporary ones are left out."""

    def slides(self) -> dict[SlideKey, list[Finished]]:
        """The placed files by slide."""
        groups: dict[SlideKey, list[Finished]] = {}
        for file in self.placed:
            groups.setdefault(file.slide, []).append(file)
        return groups


def survey(source: Path) -> Survey:
    """Place every file below `source` by the built-in naming rules."""
    names = [PurePosixPath(p.relative_to(source).as_posix()) for p in source.rglob("*") if p.is_file()]
    names = sorted((name for name in names if not is_temporary(name)), key=lambda n: natural(str(n)))
    layouts = Layouts(rules_of(NamingSettings()), Plain(), by_tags=False)
    for name in names:
        layouts.place(name)  # shows every first number, so that nothing waits below
    placed, others = [], []
    for name in names:
        place = layouts.place(name)
        if isinstance(place, Placed):
            placed.append(Finished(name, place))
        else:
            others.append(name)
    return Survey(sorted(placed, key=_imager_order), others)


def strips_of(source: Path, files: Sequence[Finished]) -> Iterator[Pixels]:
    """The scan strips of one slide in order, uint16 [2, H, W], read one by one.

    Raises AgentError for a strip that lacks a channel and for a file that is no image of the expected kind.
    """
    channels: dict[int, dict[int | None, Finished]] = {}
    for file in files:
        channels.setdefault(file.placed.part.strip, {})[file.placed.channel] = file
    for number in sorted(channels):
        pair = channels[number]
        both = pair.get(None)
        if both is not None:
            yield read_planes(source / both.relative, 2)
            continue
        if set(pair) != {0, 1}:
            lacking = "CH3" if 0 in pair else "CH2"
            raise AgentError(f"{files[0].slide.patient}/{files[0].slide.slide}: strip {number} has no {lacking}")
        ch2_HW, ch3_HW = (read_planes(source / pair[channel].relative, 1)[0] for channel in (0, 1))
        if ch2_HW.shape != ch3_HW.shape:
            raise AgentError(f"{pair[1].relative}: {ch3_HW.shape} differs from its CH2's {ch2_HW.shape}")
        yield np.stack((ch2_HW, ch3_HW))


def read_planes(path: Path, planes: int) -> Pixels:
    """All pixels of a finished DICOM or TIFF file, uint16 [planes, H, W].

    Raises AgentError for anything else.
    """
    try:
        x = _read_dicom(path) if path.suffix.lower() == ".dcm" else _read_tiff(path)
    except (OSError, ValueError, AttributeError, RuntimeError, InvalidDicomError) as error:
        raise AgentError(f"{path}: cannot be read as an image: {error}") from error
    if x.dtype.newbyteorder("=") != np.uint16 or x.ndim != 3 or len(x) != planes:
        raise AgentError(f"{path}: holds {x.dtype} {x.shape}, expected uint16 with {planes} plane(s)")
    return x.astype(np.uint16, copy=False)


def _read_dicom(path: Path) -> NDArray[np.generic]:
    x: NDArray[np.generic] = pixel_array(dcmread(path), raw=True)
    return x[np.newaxis] if x.ndim == 2 else x


def _read_tiff(path: Path) -> NDArray[np.generic]:
    with tifffile.TiffFile(path) as tif:
        pages = [page.asarray() for page in tif.pages]
        if len(pages) == 1 and pages[0].ndim == 3:
            # Two samples per pixel: interleaved ones come as [H, W, 2], separate ones as [2, H, W].
            first = tif.pages.first
            return np.moveaxis(pages[0], -1, 0) if first.planarconfig == 1 else pages[0]
    return np.stack(pages)


def _imager_order(file: Finished) -> tuple[object, ...]:
    part = file.placed.part
    x, y = part.origin
    return (
        natural(part.slide.patient),
        natural(part.slide.slide),
        part.strip,
        x // FIELD_OF_VIEW_PX,
        y,
        x,
        file.placed.channel or 0,
        natural(str(file.relative)),
    )
