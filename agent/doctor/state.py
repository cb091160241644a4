"""What must survive a restart and stay private: the state folder, its disk, the pseudonyms' key, secrets."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from agent.credentials import located
from agent.doctor.finding import Finding, Verdict, is_there
from agent.errors import SettingsError
from agent.identity import KEY_BYTES
from agent.mounts import file_system_of, is_network
from agent.settings import Settings

LOW_DISK_BYTES = 1 << 30
SLOW_SYNC_S = 0.1
_TEMPORARY = {"tmpfs", "ramfs"}


def look_at_state(settings: Settings) -> Iterator[Finding]:
    """The state folder: writable, private, on a local disk with room, and quick enough."""
    state = settings.state_dir
    if not is_there(state):
        yield _not_yet(state)
        return
    try:
        sync_s = _write_probe(state)
    except OSError as error:
        why = "the ledger lies there: without it the agent does not start"
        mend = f"install -d -m 700 -o spinextract -g spinextract {state}"
        yield Finding("state_dir", "fail", f"{state}: {error.strerror or error}", why, mend)
        return
    yield _private(state)
    yield from _disk(state, sync_s)


def _not_yet(state: Path) -> Finding:
    parent = next(path for path in state.parents if is_there(path))
    if os.access(parent, os.W_OK | os.X_OK):
        return Finding("state_dir", "ok", f"{state} will be made at the first start")
    why = "the ledger lies there: without it the agent does not start"
    mend = f"install -d -m 700 -o spinextract -g spinextract {state}"
    return Finding("state_dir", "fail", f"{state} is not there, and this user cannot make it", why, mend)


def _write_probe(state: Path) -> float:
    """Write a file without a name, and return the seconds that the disk took to have it."""
    with tempfile.TemporaryFile(dir=state) as file:
        file.write(b"\0" * 4096)
        file.flush()
        begun = time.monotonic()
        os.fsync(file.fileno())
        return time.monotonic() - begun


def _private(state: Path) -> Finding:
    status = state.stat()
    mode = stat.S_IMODE(status.st_mode)
    owner = _name_of(status.st_uid)
    if mode & 0o077:
        why = "it holds the key that leads from pseudonyms back to patients"
        return Finding("state_dir", "warn", f"{state} is open to others (mode {mode:04o})", why, f"chmod 700 {state}")
    return Finding("state_dir", "ok", f"{state} (mode {mode:04o}, owner {owner})")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _disk(state: Path, sync_s: float) -> Iterator[Finding]:
    kind, free = file_system_of(state), shutil.disk_usage(state).free
    found = f"{free / 2**30:.1f} GiB free ({kind or 'unknown file system'}), {1e3 * sync_s:.0f} ms to sync"
    if is_network(kind):
        why = "SQLite's locks and its log are not safe on a network mount: a ledger can be damaged there"
        yield Finding("disk", "fail", found, why, "set state_dir to a folder on a local disk")
    elif kind in _TEMPORARY:
        why = "it is gone after a reboot: finals would be said again and pseudonyms change"
        yield Finding(
            "disk", "warn", found, why, "set state_dir to a folder on a disk, e.g. /var/lib/spinextract-agent"
        )
    elif free < LOW_DISK_BYTES:
        why = "the agent stops when the ledger cannot grow"
        yield Finding("disk", "warn", found, why, f"make room: du -xh --max-depth=2 {state.anchor} | sort -h | tail")
    elif sync_s > SLOW_SYNC_S:
        why = "every result waits for a sync before it is sent"
        yield Finding("disk", "warn", found, why, "put state_dir on a faster disk; see what else writes: iostat -x 1")
    else:
        yield Finding("disk", "ok", found)


def look_at_secrets(settings: Settings) -> Iterator[Finding]:
    """Files that others must not read: the pseudonyms' key, the lookup file, passwords and private keys."""
    key = settings.identity.key_file or settings.state_dir / "identity.key"
    yield _key(key)
    lookup = settings.identity.lookup_file
    if lookup is not None and is_there(lookup):
        why = "it maps pseudonyms to names of patients; the agent refuses to start with it open to others"
        yield _secret("lookup_file", lookup, why, "fail")
    for name, path in (
        ("mqtt.password_file", settings.mqtt.password_file),
        ("mqtt.key_file", settings.mqtt.key_file),
        ("dicom_out.stow_token_file", settings.dicom_out.stow_token_file),
    ):
        if path is None:
            continue
        try:
            where = located(name.removeprefix("mqtt."), path)
        except SettingsError:
            yield Finding(name, "ok", f"{path}: systemd gives it to the service alone, it cannot be looked at here")
        else:
            yield _secret(name, where, "whoever reads it can speak as the agent", "warn")


def _key(path: Path) -> Finding:
    if not is_there(path):
        return Finding("identity_key", "ok", f"{path} will be made at the first start")
    finding = _secret("identity_key", path, "whoever has it can lead pseudonyms back to patients", "fail")
    digits = len(path.read_text(encoding="ascii", errors="replace").strip()) if finding.verdict == "ok" else 0
    if finding.verdict == "ok" and digits != 2 * KEY_BYTES:
        why = "the agent refuses a damaged key, since other pseudonyms would come of it"
        mend = f"restore {path} from a backup; or remove it, and start with new pseudonyms"
        return Finding("identity_key", "fail", f"{path} is damaged", why, mend)
    return finding


def _secret(check: str, path: Path, why: str, open_to_others: Verdict) -> Finding:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb"):
            pass
    except OSError as error:
        mend = f"chown spinextract {path} && chmod 600 {path}, or correct the path in the settings"
        return Finding(check, "fail", f"{path}: {error.strerror or error}", "the agent needs it to start", mend)
    if mode & 0o077:
        return Finding(
            check, open_to_others, f"{path} can be read by others (mode {mode:04o})", why, f"chmod 600 {path}"
        )
    return Finding(check, "ok", str(path))
