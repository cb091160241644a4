"""Promises of the walk: everything below a folder is found, and nothing in it can stop, trap or lead it away."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.walk import stamp_of, walk


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder to walk through."""
    folder = tmp_path / "imager"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)  # shutil is not up to the depth


def write(path: Path) -> Path:
    """Write a file, its folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def dig(folder: Path, name: str, levels: int) -> None:
    """Folders in folders, deeper than a path may be long, with a file in the deepest."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        deeper = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("deepest.tif", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_files_are_found_with_what_shows_that_they_changed(folder: Path) -> None:
    """Each file of each folder, by its path with slashes, with inode, size and times."""
    files = {name: write(folder / name) for name in ("a", "b/c", "b/d/e")}
    found = walk(folder)
    assert found.files == {name: stamp_of(path.stat()) for name, path in files.items()}
    assert (found.folders, found.depth, found.closed, found.is_whole) == (3, 2, {}, True)


def test_a_tree_may_be_deeper_than_the_stack(folder: Path) -> None:
    """A thousand folders in each other, more than the interpreter's recursion limit bears, are walked to the end."""
    dig(folder, "d", 1500)
    found = walk(folder)
    assert list(found.files) == ["d/" * 1500 + "deepest.tif"]
    assert (found.depth, found.closed) == (1500, {})


def test_paths_that_are_too_long_are_told_and_the_rest_is_found(folder: Path) -> None:
    """What no path can name is closed, with its reason; nothing else is lost for it."""
    write(folder / "a.tif")
    dig(folder, "n" * 250, 20)
    found = walk(folder)
    assert list(found.files) == ["a.tif"]
    assert list(found.closed.values()) == [os.strerror(errno.ENAMETOOLONG)]
    ((closed, _),) = found.closed.items()
    assert found.is_closed(f"{closed}/anything/below") and not found.is_closed("a.tif")


def test_names_may_be_any_bytes(folder: Path) -> None:
    """A name that is no UTF-8 (latin-1 from an old share, a line break) is a name."""
    raw = os.fsencode(folder)
    names = [b"m\xfcller.tif", b"two\nlines.tif", b"\xff\xfe", "日本".encode()]
    for name in names:
        os.close(os.open(raw + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert {os.fsencode(path) for path in walk(folder).files} == set(names)


def test_what_is_no_regular_file_is_not_touched(folder: Path) -> None:
    """Pipes, sockets and devices are neither told nor opened."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        if os.geteuid() == 0:
            os.mknod(folder / "device", 0o600 | 0o020000, os.makedev(1, 3))
        assert walk(folder).files == {}


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that any user can reach, looked at by one who is not root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        write(Path(folder) / "seen")
        write(Path(folder) / "closed" / "inside")
        write(Path(folder) / "names only" / "inside")
        (Path(folder) / "closed").chmod(0)
        (Path(folder) / "names only").chmod(0o744)
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_what_may_not_be_seen_is_closed_not_gone(nobody: Path) -> None:
    """A folder that cannot be listed, and a file whose folder cannot be searched: told, and the rest is found."""
    found = walk(nobody)
    assert list(found.files) == ["seen"]
    assert set(found.closed) == {"closed", "names only/inside"}
    assert found.is_closed("closed/inside") and not found.is_closed("seen")


def test_a_folder_that_cannot_be_listed_itself_raises(nobody: Path) -> None:
    """Only the folder's own trouble is an error: nothing is known then."""
    with pytest.raises(PermissionError):
        walk(nobody / "closed")
    with pytest.raises(FileNotFoundError):
        walk(nobody / "nowhere")


def test_files_that_come_and_go_meanwhile_do_no_harm(folder: Path) -> None:
    """Walks while files, folders and both under one name appear and vanish: what stays is always found."""
    write(folder / "z" / "stays")
    leave = threading.Event()

    def churn() -> None:
        while not leave.is_set():
            for number in range(40):
                write(folder / "a" / str(number) / "file")
            shutil.rmtree(folder / "a")
            (folder / "a").write_bytes(b"a file now")
            (folder / "a").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            found = walk(folder)
            assert "z/stays" in found.files and found.closed == {}
    finally:
        leave.set()
        thread.join()


# Symbolic links


def test_links_that_go_in_circles_end(folder: Path, tmp_path: Path) -> None:
    """To itself, each other, the folder, from an allowed folder back: the walk ends, and tells nothing twice."""
    outside = tmp_path / "outside"
    write(folder / "inside" / "a.tif")
    write(outside / "sub" / "b.tif")
    for link, target in (
        (folder / "self", folder / "self"),
        (folder / "one", folder / "two"),
        (folder / "two", folder / "one"),
        (folder / "inside" / "up", folder),
        (folder / "link", outside),
        (outside / "back", folder),
        (outside / "sub" / "again", outside),
    ):
        link.symlink_to(target)
    assert set(walk(folder, [outside]).files) == {"inside/a.tif", "link/sub/b.tif"}
    assert walk(folder, [outside]).behind_links == {"link/sub/b.tif"}
    assert set(walk(folder, [tmp_path]).files) == {"inside/a.tif", "link/sub/b.tif"}


def test_links_lead_only_where_they_may(folder: Path, tmp_path: Path) -> None:
    """The place itself counts, not what it is called: no way out by another link, by dots or by a similar name."""
    for name in ("allowed", "allowed-not", "secret"):
        write(tmp_path / name / "a.tif")
    (tmp_path / "allowed" / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to(tmp_path / "allowed")
    (folder / "similar").symlink_to(tmp_path / "allowed-not")
    (folder / "dots").symlink_to(tmp_path / "allowed" / ".." / "secret")
    (folder / "file.tif").symlink_to(tmp_path / "secret" / "a.tif")
    (folder / "nowhere").symlink_to(tmp_path / "allowed" / "nothing")
    found = walk(folder, [tmp_path / "allowed"])
    assert set(found.files) == {"in/a.tif"}
    assert found.links_left == 4
    assert walk(folder).files == {} and walk(folder).links_left == 5


def test_a_look_may_be_limited(folder: Path) -> None:
    """When the time is over the walk ends and says so."""
    (folder / "a").mkdir()
    assert not walk(folder, limit_s=-1.0).is_whole
