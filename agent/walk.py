"""Every file below a folder, as it is now: one look at each, however deep, broken or hostile the tree is.

It never enters what lies outside the folder, except behind symbolic links into folders that are allowed, and never
fails for anything but the folder itself. It knows nothing of what was there before.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agent.calls import asking

Stamp = tuple[int, int, int, int]
"""(inode, size, mtime and ctime in ns): what a scan compares. A mended permission shows in ctime only."""


@dataclass
class Found:
    """What a walk met. Paths are relative to the folder, POSIX style."""

    files: dict[str, Stamp] = field(default_factory=dict)
    """Regular files; pipes, sockets and devices are no files of an imager."""
    closed: dict[str, str] = field(default_factory=dict)
    """Files and folders that could not be looked at → why. What is in them is not gone, it cannot be seen."""
    behind_links: set[str] = field(default_factory=set)
    """Those of the files that were reached through a symbolic link: no event tells of them."""
    links_left: int = 0
    """Symbolic links that were not followed."""
    folders: int = 0
    depth: int = 0
    """Levels of folders below the folder itself."""
    is_whole: bool = True
    """False when the time was over before everything had been looked at."""

    def is_closed(self, path: str) -> bool:
        """Whether nothing can be said of a path, since it, or a folder above it, could not be looked at."""
        while path and path not in self.closed:
            path = path.rpartition("/")[0]
        return bool(path)


def stamp_of(status: os.stat_result) -> Stamp:
    """What shows that a file has changed."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def walk(folder: Path, link_targets: Iterable[Path] = (), *, limit_s: float = math.inf) -> Found:
    """Look at everything below `folder`; raises OSError only when the folder itself cannot be listed.

    A symbolic link is followed when it leads into one of `link_targets` (or is one). One that leads back into the
    folder never is, since what it leads to is seen under its own name; so no loop can keep the walk.
    """
    ends_s = time.monotonic() + limit_s
    with asking() as again:
        walker = _Walker(again, os.path.realpath(folder), [os.path.realpath(target) for target in link_targets])
        walker.enter(str(folder), "", is_behind_link=False)
        while walker.waiting:
            if time.monotonic() > ends_s:
                walker.found.is_whole = False
                break
            path, prefix, is_behind_link = walker.waiting.pop()
            again()
            try:
                walker.enter(path, prefix, is_behind_link=is_behind_link)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it went between listing and looking
            except OSError as error:
                walker.found.closed[prefix.rstrip("/")] = error.strerror or str(error)
    return walker.found


class _Walker:
    """Folders wait in a list of their own: a tree may be deeper than the interpreter's stack."""

    def __init__(self, again: Callable[[], None], root: str, link_targets: list[str]) -> None:
        self.found = Found()
        self.waiting: list[tuple[str, str, bool]] = []
        """Folders to list: where they are, what the names in them begin with, and whether a link led there."""
        self._again = again
        self._root = root
        self._link_targets = link_targets
        self._entered: set[str] = set()
        """Folders behind links that have been entered: each is once, whatever links lead there."""

    def enter(self, path: str, prefix: str, *, is_behind_link: bool) -> None:
        """Look at each entry of one folder."""
        self.found.folders += 1
        self.found.depth = max(self.found.depth, prefix.count("/"))
        with os.scandir(path) as entries:
            for entry in entries:
                self._again()
                name = f"{prefix}{entry.name}"
                try:
                    self._look(entry, name, is_behind_link)
                except FileNotFoundError:
                    continue  # it went between listing and looking
                except OSError as error:
                    self.found.closed[name] = error.strerror or str(error)

    def _look(self, entry: os.DirEntry[str], name: str, is_behind_link: bool) -> None:
        if entry.is_symlink():
            self._follow(entry, name)
        elif entry.is_dir(follow_symlinks=False):
            self.waiting.append((entry.path, f"{name}/", is_behind_link))
        elif entry.is_file(follow_symlinks=False):
            self._keep(name, entry.stat(follow_symlinks=False), is_behind_link)

    def _follow(self, link: os.DirEntry[str], name: str) -> None:
        if not self._link_targets:
            self.found.links_left += 1
            return
        real = os.path.realpath(link.path)
        if _is_in(real, self._root) or not any(_is_in(real, target) for target in self._link_targets):
            self.found.links_left += 1
            return
        try:
            status = Path(real).lstat()
        except OSError:
            return  # it leads nowhere
        if stat.S_ISREG(status.st_mode):
            self._keep(name, status, is_behind_link=True)
        elif stat.S_ISDIR(status.st_mode) and real not in self._entered:
            self._entered.add(real)
            self.waiting.append((real, f"{name}/", True))

    def _keep(self, name: str, status: os.stat_result, is_behind_link: bool) -> None:
        self.found.files[name] = stamp_of(status)
        if is_behind_link:
            self.found.behind_links.add(name)


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
