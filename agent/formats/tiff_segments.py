"""Raw bytes of one TIFF segment to uint16 planes: decompression, byte order, predictor, samples.

Knows nothing of files or of readiness. The output of every decoder is bounded by the segment's declared size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import FormatError
from agent.formats.tiff_layout import BYTES_PER_SAMPLE, Layout

_OUT_OF_SPACE = ("INSUFFICIENT_SPACE", "too small")
"""How libdeflate and libzstd say that a stream is longer than its output buffer."""


def decompress(raw: bytes, layout: Layout) -> bytes:
    """Undo a segment's compression; at most `layout.segment_bytes` bytes come out.

    Raises FormatError: `limits` when the stream expands beyond its segment, `malformed` when it is broken.
    """
    if layout.compression == "none":
        return raw
    try:
        # One byte more than needed, because the LZW decoder stops silently at the end of its output.
        decoded: bytes = _codec(f"{layout.compression}_decode")(raw, out=layout.segment_bytes + 1)
    except (RuntimeError, ValueError) as error:
        reason = "limits" if any(words in str(error) for words in _OUT_OF_SPACE) else "malformed"
        raise FormatError(reason, f"a {layout.compression} segment: {error}") from error
    if len(decoded) > layout.segment_bytes:
        raise FormatError("limits", f"a {layout.compression} segment expands beyond {layout.segment_bytes} bytes")
    return decoded


def _codec(name: str) -> Callable[..., Any]:
    import imagecodecs  # 70 ms and some memory that a reader of uncompressed files need not spend

    function: Callable[..., Any] = getattr(imagecodecs, name)
    return function


def to_planes(decoded: bytes, layout: Layout, height: int, width: int) -> list[NDArray[np.uint16]]:
    """The upper left [height, width] of a decoded segment, one uint16 array in native order per sample.

    `decoded` holds whole rows of `layout.row_bytes`, at least `height` of them, else FormatError (malformed).
    Source: TIFF 6.0, sections 7 (samples) and 14 (horizontal differencing).
    """
    if len(decoded) < height * layout.row_bytes:
        raise FormatError("malformed", f"a segment of {len(decoded)} bytes, {height * layout.row_bytes} expected")
    shape = (height, layout.segment_width, layout.interleaved)
    stored = np.frombuffer(decoded, f"{layout.order}u{BYTES_PER_SAMPLE}", int(np.prod(shape))).reshape(shape)
    pixels: NDArray[np.uint16] = stored[:, :width].astype(np.uint16, copy=False)
    if layout.predictor == 2:
        pixels = _codec("delta_decode")(np.ascontiguousarray(pixels), axis=1)
    return [np.ascontiguousarray(pixels[..., sample]) for sample in range(layout.interleaved)]
