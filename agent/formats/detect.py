"""Decides by magic bytes alone which parser reads a file; it must not know names, extensions or pixels."""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import FormatError
from agent.formats import Limits, Parser, Window, dicom, tiff

Sniff = Callable[[bytes], bool | None]
"""The first bytes that are written, at most SNIFF_BYTES → ours, not ours, or None for too few."""

FORMATS: tuple[tuple[Sniff, Callable[[Limits, int | None], Parser]], ...] = (
    # DICOM first: its preamble is free and may pose as a TIFF (PS3.10, section 7.1).
    (dicom.sniff, dicom.DicomParser),
    (tiff.sniff, tiff.TiffParser),
)
"""One line per file format, the more specific first."""

SNIFF_BYTES = 132
_LOOK_BYTES = 4096
"""Zeros at the very end of this many bytes may be those of a preallocated file."""


def open_parser(window: Window, limits: Limits, planes: int | None) -> Parser | None:
    """A parser for this file, or None while its first bytes do not tell.

    `planes`: how many planes the file must hold, None for 1 or 2. Raises FormatError `not_an_image` when no
    format claims the bytes.
    """
    written = window.read(0, min(_LOOK_BYTES, window.size)).rstrip(b"\0")
    verdicts = [sniff(written[:SNIFF_BYTES]) for sniff, _ in FORMATS]
    if window.size >= SNIFF_BYTES and True in verdicts:
        return FORMATS[verdicts.index(True)][1](limits, planes)
    if True in verdicts or None in verdicts:
        return None
    # A text may begin with somebody's name: only bytes that no text has are quoted.
    binary = any(byte < 9 or byte == 0xFF for byte in written[:4])
    quoted = f" ({written[:4].hex(' ')})" if binary else ""
    raise FormatError("not_an_image", f"the first bytes{quoted} are neither DICOM nor TIFF")
