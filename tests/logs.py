"""Commands configure the logging of their process: this undoes it, so that one test leaves nothing to the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def logging_undone() -> Iterator[None]:
    """Whatever is configured inside the block is as before behind it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    config = structlog.get_config()
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.configure(**config)
        logging.captureWarnings(False)
