"""Promises of agent.permissions: what somebody else may do with a file is found, by the file's kind."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.permissions import Kind, judge

STRANGER = 12_345

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """Files are made as on most machines."""
    old = os.umask(0o022)
    yield
    os.umask(old)


def made(folder: Path, mode: int) -> Path:
    """A file with these bits."""
    path = folder / "file"
    path.write_text("content")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("kind", "mode", "verdict"),
    [
        ("answers", 0o644, None),
        ("answers", 0o664, "warned"),
        ("answers", 0o666, "refused"),
        ("kept", 0o644, None),
        ("kept", 0o602, "refused"),
        ("secret", 0o600, None),
        ("secret", 0o640, "warned"),
        ("secret", 0o644, "warned"),
        ("secret", 0o606, "refused"),
        ("identity", 0o400, None),
        ("identity", 0o640, "refused"),
        ("identity", 0o604, "refused"),
    ],
)
def test_a_files_mode_is_judged_by_its_kind(tmp_path: Path, kind: Kind, mode: int, verdict: str | None) -> None:
    """What others may change is refused, what they may read is warned of, and identity is nobody else's at all; the
    command that is told mends it."""
    path = made(tmp_path, mode)
    found = judge(path, kind)
    assert (None if found is None else "refused" if found.refused else "warned") == verdict
    if found is not None:
        assert str(path) in found.found and f"{mode:04o}" in found.found and found.why
        subprocess.run(shlex.split(found.mend), check=True)
        assert judge(path, kind) is None


@pytest.mark.parametrize(("mode", "verdict"), [(0o700, None), (0o750, False), (0o755, False), (0o777, True)])
def test_the_state_folder_is_closed_to_others(tmp_path: Path, mode: int, verdict: bool | None) -> None:
    """A folder that others enter is told with chmod 700; one that they write in is refused."""
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    found = judge(folder, "state")
    assert (None if found is None else found.refused) is verdict
    assert found is None or found.mend == f"chmod 700 {folder}"


def test_what_is_not_there_is_well(tmp_path: Path) -> None:
    """A key before the first start, and a path below a file."""
    assert judge(tmp_path / "nowhere", "identity") is None
    assert judge(made(tmp_path, 0o600) / "below", "identity") is None


def test_a_second_name_of_a_kept_file_is_told(tmp_path: Path) -> None:
    """A hard link would let somebody keep or feed what the agent writes."""
    path = made(tmp_path, 0o600)
    os.link(path, tmp_path / "other")
    found = judge(path, "kept")
    assert found is not None and "2 names" in found.found and not found.refused
    assert judge(path, "answers") is None


def test_a_folder_above_that_everybody_writes_is_told(tmp_path: Path) -> None:
    """Whoever may rename in a folder above puts his own file there; a sticky folder such as /tmp forbids that."""
    above = tmp_path / "above"
    above.mkdir()
    path = made(above, 0o600)
    above.chmod(0o777)
    found = judge(path, "identity")
    assert found is not None and found.mend == f"chmod o-w {above}"
    above.chmod(0o1777)
    assert judge(path, "identity") is None


@root_only
def test_a_link_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A symbolic link is its owner's to redirect; our own may lead to another disk."""
    path, link = made(tmp_path, 0o600), tmp_path / "link"
    link.symlink_to(path)
    assert judge(link, "kept") is None
    os.lchown(link, STRANGER, STRANGER)
    found = judge(link, "kept")
    assert found is not None and found.refused and str(STRANGER) in found.found


@root_only
def test_a_file_of_somebody_else_is_told(tmp_path: Path) -> None:
    """The owner can change it whatever its mode says; root, who looks at a service's files, is only warned."""
    path = made(tmp_path, 0o600)
    os.chown(path, STRANGER, STRANGER)
    for kind in ("answers", "kept", "identity"):
        found = judge(path, kind)
        assert found is not None and not found.refused
        assert f"belongs to {STRANGER}" in found.found and found.mend == f"chown root {path}"


@root_only
def test_a_key_of_somebody_else_is_refused_by_a_service(tmp_path: Path) -> None:
    """Whoever made the key knows it: a process that is not root does not take it."""
    path = made(tmp_path, 0o600)
    os.chown(path, STRANGER, STRANGER)
    nobody = pwd.getpwnam("daemon").pw_uid
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    os.seteuid(nobody)
    try:
        found = judge(path, "identity")
    finally:
        os.seteuid(0)
    assert found is not None and found.refused
