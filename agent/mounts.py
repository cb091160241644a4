"""On what kind of file system a folder lies, and whether another host may write there."""

from __future__ import annotations

from pathlib import Path

from agent.calls import asking

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ncpfs", "afs", "ceph", "glusterfs", "virtiofs"}


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds `path`, e.g. "ext4" (proc(5), /proc/self/mountinfo); "" when unknown."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
    best, kind = "", ""
    with asking():
        real = str(path.resolve())
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether a file system may be written by another host without an event here."""
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse")
