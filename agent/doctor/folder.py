"""The watched folder: is it there, can it be read, on what does it lie, how large is it, can changes be heard?"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.doctor.finding import Finding
from agent.mounts import file_system_of, is_network
from agent.settings import Settings

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
    loops: int = 0
    closed: int = 0
    """Folders that could not be read."""
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


def survey_folder(folder: Path, follow: bool, limit_s: float = SURVEY_S) -> Survey:
    """Walk through the folder as the agent's scan does, for at most `limit_s` seconds."""
    survey, begun = Survey(), time.monotonic()
    waiting: list[tuple[Path, int, frozenset[tuple[int, int]]]] = [(folder, 0, frozenset())]
    while waiting:
        if time.monotonic() - begun > limit_s:
            survey.whole = False
            break
        path, depth, above = waiting.pop()
        try:
            status = path.stat()
        except OSError:
            continue  # it went while we looked
        place = (status.st_dev, status.st_ino)
        if place in above:
            survey.loops += 1
            continue
        survey.folders += 1
        survey.depth = max(survey.depth, depth)
        waiting += [(inside, depth + 1, above | {place}) for inside in _inside(path, follow, survey)]
    survey.took_s = time.monotonic() - begun
    return survey


def _inside(path: Path, follow: bool, survey: Survey) -> list[Path]:
    """The folders in a folder; everything else is counted."""
    folders: list[Path] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                survey.links += entry.is_symlink()
                if entry.is_dir(follow_symlinks=follow):
                    folders.append(path / entry.name)
                else:
                    survey.files += entry.is_file(follow_symlinks=follow)
    except FileNotFoundError:
        return folders  # it went while we looked
    except OSError:
        survey.closed += 1
    return folders


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
    if survey.loops:
        why = "the scan goes round and round"
        mend = f"remove the link, or set watch.follow_symlinks to false: find {settings.folder} -type l"
        yield Finding("symlinks", "fail", f"{survey.loops} links lead back to a folder above them", why, mend)
    elif survey.links and not settings.watch.follow_symlinks:
        why = "slides behind them are never seen"
        mend = "set watch.follow_symlinks to true if slides lie behind them"
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
