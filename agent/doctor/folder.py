"""The watched folder: is it there, can it be read, on what does it lie, how large is it, can changes be heard?"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.doctor.finding import Finding
from agent.mounts import file_system_of, is_network
from agent.settings import Settings
from agent.walk import walk

LOW_DISK_BYTES = 1 << 30
SURVEY_S = 2.0
"""Longest look through the folder; a larger one is told as "more than"."""
_IN_CREATE = 0x100
UNSEEN = "nothing that is imaged is seen"


@dataclass
class Survey:
    """What a look through the folder met; names are not kept."""

    folders: int = 0
    files: int = 0
    links: int = 0
    """Symbolic links that are not followed."""
    closed: int = 0
    """Folders and files that could not be looked at."""
    depth: int = 0
    took_s: float = 0.0
    whole: bool = True


def look_at_folder(settings: Settings) -> Iterator[Finding]:
    """Presence, access, mount, free space, contents, events."""
    folder = settings.folder
    if (trouble := _trouble(folder)) is not None:
        yield trouble
        return
    if not os.access(folder, os.R_OK | os.X_OK):
        mend = f"usermod --append --groups $(stat -c %G {folder}) spinextract   (or: chmod o+rx {folder})"
        yield Finding("folder", "fail", f"{folder} cannot be read by this user", UNSEEN, mend)
        return
    yield _presence(settings)
    yield from _mount(settings)
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        why = "the imager stops in mid-scan when its disk is full"
        yield Finding("folder_disk", "warn", f"{free / 2**20:.0f} MiB free", why, f"make room: df -h {folder}")
    else:
        yield Finding("folder_disk", "ok", f"{free / 2**30:.1f} GiB free")
    survey = survey_folder(folder, settings.watch.follow_symlinks)
    yield from judge_survey(survey, settings)
    if settings.watch.mode != "scan" and not is_network(file_system_of(folder)):
        limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
        yield judge_events(try_events(folder), survey.folders, limit)


def _trouble(folder: Path) -> Finding | None:
    """Why the folder cannot even be looked at: not there, forbidden, or a mount that has lost its server."""
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except PermissionError:
        mend = f"namei -l {folder}   shows which folder above it keeps this user out; chmod o+x that one"
        return Finding("folder", "fail", f"{folder} cannot be reached by this user", UNSEEN, mend)
    except OSError as error:
        mend = f"umount --force --lazy {folder} && mount {folder}"
        return Finding("folder", "fail", f"{folder}: {error.strerror}", UNSEEN, mend)
    if is_folder:
        return None
    mend = f"mount the imager's share (`mount {folder}`), or correct `folder` in the settings"
    return Finding("folder", "fail", f"{folder} is not a folder", UNSEEN, mend)


def _presence(settings: Settings) -> Finding:
    may_write = os.access(settings.folder, os.W_OK)
    note = "; this user could write there, which the agent never does" if may_write else "; read-only for this user"
    return Finding("folder", "ok", f"{settings.folder}{note}")


def _mount(settings: Settings) -> Iterator[Finding]:
    kind = file_system_of(settings.folder) or "unknown file system"
    scanned = is_network(kind) or settings.watch.mode == "scan"
    how = f"scanned every {settings.watch.scan_interval_s:g} s" if scanned else "watched by events and scan"
    if is_network(kind) and settings.watch.mode == "events":
        why = "what another host writes raises no event: files would be found by the scan alone"
        found = f"{kind} is a network mount, but watch.mode is events"
        yield Finding("mount", "warn", found, why, "set watch.mode to auto")
    else:
        yield Finding("mount", "ok", f"{kind}, {how}")


def survey_folder(folder: Path, link_targets: Iterable[Path] = (), limit_s: float = SURVEY_S) -> Survey:
    """Walk through the folder as the agent's scan does, for at most `limit_s` seconds."""
    begun = time.monotonic()
    try:
        found = walk(folder, link_targets, limit_s=limit_s)
    except OSError:
        return Survey(closed=1)
    survey = Survey(found.folders, len(found.files), found.links_left, len(found.closed), found.depth)
    survey.took_s, survey.whole = time.monotonic() - begun, found.is_whole
    return survey


def judge_survey(survey: Survey, settings: Settings) -> Iterator[Finding]:
    """Size, closed folders, links that lead nowhere useful, and whether a scan keeps up."""
    more = "" if survey.whole else "more than "
    found = (
        f"{more}{survey.files} files in {survey.folders} folders, {survey.depth} deep, {survey.took_s:.2f} s a look"
    )
    interval_s = settings.watch.scan_interval_s
    if survey.took_s > interval_s or not survey.whole:
        why = f"a scan every {interval_s:g} s cannot keep up, and results come later"
        mend = f"set watch.scan_interval_s to {max(10, round(5 * survey.took_s))}, or archive old slides elsewhere"
        yield Finding("folder_contents", "warn", found, why, mend)
    else:
        yield Finding("folder_contents", "ok", found)
    if survey.closed:
        why = "slides in them are never seen"
        mend = f"chmod -R g+rX {settings.folder} as its owner"
        yield Finding("folder_contents", "warn", f"{survey.closed} folders inside cannot be read", why, mend)
    if survey.links:
        why = "slides behind them are never seen; what lies in the folder itself is seen under its own name"
        mend = (
            f"list where slides lie in watch.follow_symlinks: find {settings.folder} -type l -exec readlink -f {{}} +"
        )
        yield Finding("symlinks", "warn", f"{survey.links} symbolic links are not followed", why, mend)


def try_events(folder: Path) -> int:
    """Ask the kernel for one inotify instance and one watch; returns 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return ctypes.get_errno()
    try:
        return 0 if libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_CREATE) >= 0 else ctypes.get_errno()
    finally:
        os.close(descriptor)


def judge_events(error: int, folders: int, limit: int) -> Finding:
    """Whether there are inotify instances and watches enough for so many folders."""
    why = "without events changes are only found by the scan: every result comes up to one interval later"
    if error == errno.EMFILE:
        mend = "sysctl -w fs.inotify.max_user_instances=1024   (and in /etc/sysctl.d/ to keep it)"
        return Finding("inotify", "warn", "no inotify instance is left for this user", why, mend)
    wanted = max(65_536, 4 * folders)
    mend = f"sysctl -w fs.inotify.max_user_watches={wanted}   (and in /etc/sysctl.d/ to keep it)"
    if error == errno.ENOSPC:
        return Finding("inotify", "warn", "no inotify watch is left for this user", why, mend)
    if error:
        return Finding(
            "inotify", "warn", f"inotify cannot be used: {os.strerror(error)}", why, "set watch.mode to scan"
        )
    if folders * 2 > limit:
        return Finding("inotify", "warn", f"{folders} folders for {limit} inotify watches", why, mend)
    return Finding("inotify", "ok", f"{folders} folders, {limit} watches allowed")
