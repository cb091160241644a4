"""Promises of the tail: what a visit says about a real file that grows, shrinks, is replaced or goes away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.tail import Change, OpenWindow, Tail


def look(tail: Tail, now: float = 0.0) -> tuple[Change, bytes]:
    """One visit: what changed, and every byte that the window shows."""
    with tail.visit(now) as (change, window):
        return change, b"" if window is None else window.read(0, window.size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of five bytes."""
    path = tmp_path / "strip.dcm"
    path.write_bytes(b"first")
    return path


def test_a_growing_file_shows_every_new_byte(path: Path) -> None:
    """Each visit after an append says GREW and shows the file up to its size at that moment."""
    tail = Tail(path, 0.0)
    assert look(tail) == (Change.GREW, b"first")
    with path.open("ab", buffering=0) as file:
        for piece in (b" second", b" third"):
            file.write(piece)
            assert look(tail) == (Change.GREW, path.read_bytes())
    assert tail.size == len(b"first second third")


def test_an_untouched_file_is_the_same(path: Path) -> None:
    """A second visit without a change says SAME, and the time of the last change stays."""
    tail = Tail(path, 0.0)
    look(tail, 5.0)
    assert look(tail, 9.0) == (Change.SAME, b"first")
    assert tail.quiet_s(9.5) == 4.5


def test_an_empty_new_file_counts_as_a_change(tmp_path: Path) -> None:
    """A file without a byte is new at its first visit and the same at its second."""
    (tmp_path / "empty").touch()
    tail = Tail(tmp_path / "empty", 0.0)
    assert [look(tail)[0], look(tail)[0]] == [Change.GREW, Change.SAME]


def test_bytes_changed_in_place_are_a_change(path: Path) -> None:
    """A write that leaves the size as it was (a preallocated file being filled) says GREW by its mtime."""
    tail = Tail(path, 0.0)
    look(tail)
    path.write_bytes(b"FIRST")
    os.utime(path, ns=(1, 1))
    assert look(tail, 3.0) == (Change.GREW, b"FIRST")
    assert tail.changed_at == 3.0


def test_a_truncated_file_is_rewritten(path: Path) -> None:
    """Fewer bytes than before say REWRITTEN, even when more were written since the cut."""
    tail = Tail(path, 0.0)
    look(tail)
    path.write_bytes(b"new")
    assert look(tail, 2.0) == (Change.REWRITTEN, b"new")
    assert tail.changed_at == 2.0
    assert look(tail, 3.0)[0] is Change.SAME


def test_another_inode_under_the_name_is_rewritten(path: Path) -> None:
    """A file renamed over this one says REWRITTEN, although it is longer; then it is followed as usual."""
    tail = Tail(path, 0.0)
    look(tail)
    other = path.with_name("other")
    other.write_bytes(b"first and more")
    other.rename(path)
    assert look(tail) == (Change.REWRITTEN, b"first and more")
    with path.open("ab") as file:
        file.write(b"!")
    assert look(tail) == (Change.GREW, b"first and more!")


def test_a_file_that_vanished_is_gone_and_may_come_back(path: Path) -> None:
    """Without the file a visit says GONE and gives no window; another file under the name is REWRITTEN."""
    tail = Tail(path, 0.0)
    look(tail)
    kept = path.rename(path.with_name("kept"))
    assert look(tail) == (Change.GONE, b"")
    path.write_bytes(b"again!")
    assert look(tail) == (Change.REWRITTEN, b"again!")
    assert kept.exists()


def test_a_folder_that_became_a_file_is_gone(tmp_path: Path) -> None:
    """A path whose folder is a file now is a missing file, not an error."""
    (tmp_path / "folder").write_bytes(b"")
    assert look(Tail(tmp_path / "folder" / "file", 0.0))[0] is Change.GONE


@pytest.mark.timeout(10)
def test_a_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    """A FIFO without a writer, put where a file is expected, is opened without waiting and shows no byte."""
    os.mkfifo(tmp_path / "pipe")
    with Tail(tmp_path / "pipe", 0.0).visit(0.0) as (_, window):
        assert window is not None
        assert window.size == 0


def test_reading_beyond_the_end_raises(path: Path) -> None:
    """A file that shrinks while a visit reads it raises OSError naming the byte where it ended."""
    with Tail(path, 0.0).visit(0.0) as (_, window):
        assert window is not None
        os.truncate(path, 2)
        assert window.read(0, 2) == b"fi"
        with pytest.raises(OSError, match="ended at byte 2"):
            window.read(0, 5)
        with pytest.raises(OSError, match="ended at byte 4"):
            window.read(4, 1)


def test_the_window_keeps_the_size_of_its_visit(path: Path) -> None:
    """Bytes that come during a visit belong to the next one; the descriptor is closed behind the block."""
    tail = Tail(path, 0.0)
    with tail.visit(0.0) as (_, window):
        assert window is not None
        with path.open("ab") as file:
            file.write(b"late")
        assert window.size == 5
        descriptor = window.descriptor
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert look(tail) == (Change.GREW, b"firstlate")


def test_a_visit_that_fails_closes_its_descriptor(path: Path) -> None:
    """An error inside the block passes through, and no descriptor is left open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RuntimeError, match="ours"), Tail(path, 0.0).visit(0.0):
        raise RuntimeError("ours")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_any_range_equals_the_same_slice(path: Path) -> None:
    """Every offset and length inside the file gives the slice of its bytes."""
    content = bytes(range(40))
    path.write_bytes(content)
    with Tail(path, 0.0).visit(0.0) as (_, window):
        assert isinstance(window, OpenWindow)
        for offset in range(41):
            for length in range(41 - offset):
                assert window.read(offset, length) == content[offset : offset + length]
