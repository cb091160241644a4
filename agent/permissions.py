"""Who else may read or change a file, and how bad that is for its kind.

Decides by owner, mode, links and the folders above; knows no setting. Refused is what would let somebody else change
answers or undo pseudonyms; what can be renewed or might be meant (a group of administrators) is warned of.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["answers", "state", "kept", "secret", "identity"]
"""`answers`: decides what is answered (settings, profile, engine); `state`: the folder of what the agent keeps;
`kept`: what lies in it, which the folder protects from readers; `secret`: a password or private key, which can be
renewed; `identity`: leads from pseudonyms back to people, for ever."""
_OTHERS = stat.S_IRWXO
_UNMAPPED = 65_534
"""Owner of what a user namespace does not know (PrivateUsers=yes of a service): says nothing."""


@dataclass(frozen=True)
class Weakness:
    """What is wrong with a file's protection. `refused`: the agent does not start with it."""

    refused: bool
    found: str
    why: str
    mend: str


WHY: dict[Kind, str] = {
    "answers": "whoever can change it decides what is answered",
    "state": "whoever can change it changes results; whoever reads it knows when who was examined, by pseudonym",
    "kept": "the agent writes there, and would write wherever somebody else makes it lead",
    "secret": "whoever reads it can speak as the agent",
    "identity": "whoever has it can lead pseudonyms back to patients",
}


def judge(path: Path, kind: Kind) -> Weakness | None:
    """The worst that is wrong with this file or folder; None when it is well or not there.

    Raises OSError for one that cannot be looked at.
    """
    try:
        link, status = path.lstat(), path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = [
        *_of_a_link(path, link),
        *_of_mode(path, kind, stat.S_IMODE(status.st_mode)),
        *_of_owner(path, kind, status),
        *_of_folders_above(path),
    ]
    worst = sorted(found, key=lambda item: not item[0])[:1]
    return next((Weakness(refused, text, WHY[kind], mend) for refused, text, mend in worst), None)


_Found = list[tuple[bool, str, str]]
"""Refused or not, what is there, what mends it."""


def _of_mode(path: Path, kind: Kind, mode: int) -> _Found:
    private = f"chmod {'700' if path.is_dir() else '600'} {path}"
    text = f"(mode {mode:04o})"
    if mode & stat.S_IWOTH:
        mend = f"chmod go-w {path}" if kind == "answers" else private
        return [(True, f"{path} can be changed by every user {text}", mend)]
    if mode & stat.S_IWGRP and kind == "answers":
        return [(False, f"{path} can be changed by its group {text}", f"chmod g-w {path}")]
    if kind not in ("answers", "kept") and mode & (stat.S_IRWXG | _OTHERS):
        who = "open to others" if path.is_dir() else "can be read by others"
        return [(kind == "identity", f"{path} {'is ' * path.is_dir()}{who} {text}", private)]
    return []


def _of_owner(path: Path, kind: Kind, status: os.stat_result) -> _Found:
    found: _Found = []
    if _is_strange(status.st_uid):
        # Root looks at a service's files as well: there the owner is right, and root is the guest.
        refused = kind == "identity" and os.geteuid() != 0
        mend = f"chown {_name(os.geteuid())} {path}"
        found.append((refused, f"{path} belongs to {_name(status.st_uid)}, who can change it", mend))
    if kind in ("kept", "identity") and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        mend = f"find {path.parent} / -xdev -samefile {path}   shows the others: remove those"
        found.append((False, f"{path} has {status.st_nlink} names (hard links)", mend))
    return found


def _of_a_link(path: Path, link: os.stat_result) -> _Found:
    if stat.S_ISLNK(link.st_mode) and _is_strange(link.st_uid):
        owner = _name(link.st_uid)
        return [(True, f"{path} is a symbolic link of {owner}, who can make it lead anywhere", f"rm {path}")]
    return []


def _of_folders_above(path: Path) -> _Found:
    """Who can write a folder can put another file in this one's place, unless the folder is sticky."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return [(False, f"{path} can be replaced: every user may write {folder}", f"chmod o-w {folder}")]
    return []


def _is_strange(uid: int) -> bool:
    return uid not in (0, os.geteuid(), _UNMAPPED)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
