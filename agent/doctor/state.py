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

from agent.doctor.finding import Finding, is_there
from agent.exposure import Exposed, exposed_profile, exposed_secrets, exposed_state, key_file, secrets_of
from agent.identity import KEY_BYTES
from agent.mounts import file_system_of, is_network
from agent.permissions import Weakness
from agent.settings import Settings

LOW_DISK_BYTES = 1 << 30
SLOW_SYNC_S = 0.1
_TEMPORARY = {"tmpfs", "ramfs"}
SECRETS = ("mqtt.password_file", "mqtt.key_file", "dashboard.password_file", "dicom_out.stow_token_file")


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
    yield from _private(settings)
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


def _private(settings: Settings) -> Iterator[Finding]:
    state = settings.state_dir
    found = [exposed_finding(exposed) for exposed in exposed_state(settings)]
    yield from found
    if all(finding.check != "state_dir" for finding in found):
        status = state.stat()
        mode, owner = stat.S_IMODE(status.st_mode), _name_of(status.st_uid)
        yield Finding("state_dir", "ok", f"{state} (mode {mode:04o}, owner {owner})")


def exposed_finding(exposed: Exposed) -> Finding:
    """A finding of what the daemon itself refuses or warns of at its start."""
    word, weakness = exposed
    return Finding(word, "fail" if weakness.refused else "warn", weakness.found, weakness.why, weakness.mend)


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
    """Files that others must not read (key, lookup file, passwords, private keys) or not change (the profile)."""
    exposed = dict(exposed_secrets(settings))
    lookup, plain = settings.identity.lookup_file, secrets_of(settings)
    yield _key(key_file(settings), exposed.get("identity_key"))
    if lookup is not None and is_there(lookup):
        yield _secret("lookup_file", lookup, exposed.get("lookup_file"))
    for name in SECRETS:
        section, _, field = name.partition(".")
        path: Path | None = getattr(getattr(settings, section), field)
        if name in plain:
            yield _secret(name, plain[name], exposed.get(name))
        elif path is not None:
            yield Finding(name, "ok", f"{path}: systemd gives it to the service alone, it cannot be looked at here")
    yield from map(exposed_finding, exposed_profile(settings))


def _key(path: Path, weakness: Weakness | None) -> Finding:
    if not is_there(path):
        return Finding("identity_key", "ok", f"{path} will be made at the first start")
    finding = _secret("identity_key", path, weakness)
    digits = len(path.read_text(encoding="ascii", errors="replace").strip()) if finding.verdict == "ok" else 0
    if finding.verdict == "ok" and digits != 2 * KEY_BYTES:
        why = "the agent refuses a damaged key, since other pseudonyms would come of it"
        mend = f"restore {path} from a backup; or remove it, and start with new pseudonyms"
        return Finding("identity_key", "fail", f"{path} is damaged", why, mend)
    return finding


def _secret(check: str, path: Path, weakness: Weakness | None) -> Finding:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        mend = f"chown spinextract {path} && chmod 600 {path}, or correct the path in the settings"
        return Finding(check, "fail", f"{path}: {error.strerror or error}", "the agent needs it to start", mend)
    return Finding(check, "ok", str(path)) if weakness is None else exposed_finding((check, weakness))
