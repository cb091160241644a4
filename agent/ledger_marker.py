"""The file beside a ledger that says that it is damaged, so that the next start does not trust it either.

While it is there, the ledger is being set aside or that has not been told yet (agent.ledger_rescue). Knows no SQLite.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from agent.errors import LedgerError


def marker_of(path: Path) -> Path:
    """Where the marker of this ledger lies."""
    return path.with_name(f"{path.name}.damaged")


def mark_damaged(path: Path, why: str) -> None:
    """Note why the ledger must not be trusted, and the name under which it is to be set aside."""
    aside = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    why = why.splitlines()[0]
    try:
        write_marker(path, {"aside": aside, "why": why})
    except OSError as error:
        raise LedgerError(
            f"ledger {path} is damaged ({why}), and that cannot be noted beside it: {error.strerror or error}."
            " Free some space, check the disk, and start again"
        ) from error


def write_marker(path: Path, content: dict[str, str]) -> None:
    """Replace what the marker says: whole or not at all, also over a power failure. Raises OSError."""
    marker = marker_of(path)
    fresh = marker.with_name(f"{marker.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(marker)
    sync_folder(path.parent)


def read_marker(path: Path) -> dict[str, str] | None:
    """What the marker says; None when there is none, or when it is damaged itself."""
    try:
        content = json.loads(marker_of(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("aside"), str) else None


def remove_marker(path: Path) -> None:
    """What the marker says has been dealt with."""
    marker_of(path).unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Names in a folder are on the disk only when the folder itself was synced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
