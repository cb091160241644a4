"""How a folder with a new engine takes the place of the old one: in one step, and what killed builds left goes.

Must not know what is in the folders.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def scratch_for(target: Path) -> Path:
    """Where this process builds what shall be put at `target`.

    The name starts as the target's does (the backend is read from it) after a dot: it is never picked up.
    """
    return target.with_name(f".{target.name}.{os.getpid()}")


def put_in_place(target: Path, scratch: Path) -> None:
    """Put `scratch` at `target` in one step, so that a reader finds the old folder or the new one, never none.

    Everything is on the disk before: a power failure leaves the old folder or the whole new one.
    """
    for path in (*scratch.iterdir(), scratch):
        _sync(path)
    if not target.exists():
        scratch.rename(target)
    elif not _exchange(target, scratch):  # a file system that cannot exchange: the old one steps aside first
        aside = target.with_name(f".{target.name}.old")
        target.rename(aside)
        scratch.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def remove_leftovers(target: Path) -> None:
    """Delete what interrupted builds of this target left, but nothing of a build that still runs."""
    for path in target.parent.glob(f".{target.name}.*"):
        owner = path.suffix[1:]
        if not (owner.isdigit() and int(owner) != os.getpid() and _runs(int(owner))):
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where libc or the file system has none."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    status: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return status == 0


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
