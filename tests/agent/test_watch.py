"""Promises of the watch, on real folders with real events: a scan decides, events only make it look sooner."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from agent.mounts import file_system_of, is_network
from agent.watch import Changes, Watch
from tests.brokers import wait_until

FAR_S = 1e9
"""A scan interval that never comes round: only events can tell."""


class Sight:
    """A watch on a folder, with a clock of its own and everything that it told so far."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["auto", "events", "scan"] = "events",
        scan_interval_s: float = FAR_S,
        follow_symlinks: tuple[Path, ...] = (),
    ) -> None:
        self.woken = threading.Event()
        self.now = 0.0
        self.touched: list[str] = []
        self.removed: list[str] = []
        self.scan_only = 0
        self.watch = Watch(
            folder,
            mode=mode,
            scan_interval_s=scan_interval_s,
            follow_symlinks=follow_symlinks,
            wake=self.woken.set,
        )

    def poll(self, seconds: float = 0.0) -> Changes:
        """Let time pass, poll once and keep what was told."""
        self.now += seconds
        self.woken.clear()
        changes = self.watch.poll(self.now)
        self.touched += changes.touched
        self.removed += changes.removed
        self.scan_only += changes.scan_only
        return changes

    def sees(self, touched: set[str] = frozenset(), removed: set[str] = frozenset()) -> bool:  # type: ignore[assignment]
        """Whether, with one more poll, at least these have been told."""
        self.poll()
        return touched <= set(self.touched) and removed <= set(self.removed)

    def forget(self) -> None:
        """Begin a new list of what is told."""
        self.touched, self.removed, self.scan_only = [], [], 0


Open = Callable[..., Sight]


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Open]:
    """Opens watches on the folder `imager`; their observers end with the test."""
    folder = tmp_path / "imager"
    folder.mkdir()
    opened: list[Sight] = []

    def opener(*, start: bool = True, **options: object) -> Sight:
        sight = Sight(folder, **options)  # type: ignore[arg-type]
        opened.append(sight)
        if start:
            sight.watch.start()
        return sight

    yield opener
    for sight in opened:
        sight.watch.stop()


@pytest.fixture
def folder(tmp_path: Path, look: Open) -> Path:
    """The watched folder."""
    return tmp_path / "imager"


def write(path: Path, content: bytes = b"x") -> Path:
    """Write a file, its folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# What a scan decides


def test_files_already_there_are_found_at_the_first_poll(folder: Path, look: Open) -> None:
    """Everything below the folder is told once, sorted, with POSIX paths; then nothing until it changes."""
    for name in ("b.dcm", "a/deep/er.tif", "a/c.dcm"):
        write(folder / name)
    sight = look(mode="scan")
    assert sight.poll() == Changes(["a/c.dcm", "a/deep/er.tif", "b.dcm"])
    assert sight.poll(2 * FAR_S) == Changes()


def test_scan_mode_finds_growth_rewrites_and_removals(folder: Path, look: Open) -> None:
    """Without events each due scan tells what is new, grown, replaced or gone since the one before."""
    grows, stays, goes = (write(folder / name) for name in ("grows", "stays", "goes"))
    sight = look(mode="scan", scan_interval_s=2.0)
    sight.poll()
    write(grows, b"more bytes")
    goes.unlink()
    write(folder / "new" / "file")
    assert sight.poll(1.9) == Changes(), "the scan is not due"
    assert sight.poll(0.1) == Changes(["grows", "new/file"], ["goes"])
    os.utime(stays, ns=(1, 1))
    assert sight.poll(2.0) == Changes(["stays"])
    write(folder / "other").rename(stays)
    assert sight.poll(2.0) == Changes(["stays"])


def test_scan_mode_has_no_observer_and_counts_no_scan_only_finds(folder: Path, look: Open) -> None:
    """Where there are no events nothing can have been missed by them."""
    before = set(threading.enumerate())
    sight = look(mode="scan", scan_interval_s=1.0)
    assert set(threading.enumerate()) <= before
    sight.poll()
    write(folder / "found")
    assert sight.poll(1.0).scan_only == 0
    assert sight.watch.scan_only_finds == 0


def test_wait_s_is_the_time_to_the_next_scan(folder: Path, look: Open) -> None:
    """The wait counts down to the next scan and never below zero; before the first it is zero."""
    sight = look(mode="scan", scan_interval_s=2.0)
    assert sight.watch.wait_s(0.0) == 0.0
    sight.poll(10.0)
    assert sight.watch.wait_s(10.5) == 1.5
    assert sight.watch.wait_s(99.0) == 0.0


def test_only_regular_files_are_told(folder: Path, look: Open) -> None:
    """Pipes, sockets and empty folders are no files of an imager."""
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    write(folder / "file")
    assert look(mode="scan").poll() == Changes(["file"])


@pytest.mark.parametrize("follow", [False, True])
def test_symlinks_are_followed_only_where_allowed(folder: Path, look: Open, tmp_path: Path, follow: bool) -> None:
    """A link to a file or folder elsewhere is not followed by default, and is when it leads into an allowed one."""
    write(tmp_path / "elsewhere" / "secret.dcm")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "file.dcm").symlink_to(tmp_path / "elsewhere" / "secret.dcm")
    (folder / "broken.dcm").symlink_to(tmp_path / "nowhere")
    expected = ["file.dcm", "link/secret.dcm"] if follow else []
    allowed = (tmp_path / "elsewhere",) if follow else ()
    assert look(mode="scan", follow_symlinks=allowed).poll() == Changes(expected)


# An unavailable folder


def test_an_unavailable_folder_is_not_everything_removed(folder: Path, look: Open, tmp_path: Path) -> None:
    """While the folder is away only the reason is told; back again, only what has changed."""
    write(folder / "a")
    write(folder / "b")
    sight = look(mode="scan", scan_interval_s=1.0)
    sight.poll()
    folder.rename(tmp_path / "away")
    for _ in range(3):
        assert sight.poll(1.0) == Changes(unavailable="No such file or directory")
    assert sight.watch.unavailable == "No such file or directory"
    (tmp_path / "away").rename(folder)
    (folder / "b").unlink()
    write(folder / "c")
    assert sight.poll(1.0) == Changes(["c"], ["b"])
    assert sight.watch.unavailable is None


def test_a_file_in_place_of_the_folder_is_unavailable(folder: Path, look: Open) -> None:
    """A share that was unmounted and whose place holds a file is unavailable, not empty."""
    write(folder / "a")
    sight = look(mode="scan", scan_interval_s=1.0)
    sight.poll()
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    assert sight.poll(1.0) == Changes(unavailable="Not a directory")


@pytest.mark.parametrize("away", ["deleted", "moved"])
def test_a_folder_that_is_replaced_is_listened_to_again(folder: Path, look: Open, tmp_path: Path, away: str) -> None:
    """Another folder under the name (a share mounted anew): told once, its events are heard, nothing was removed."""
    write(folder / "old")
    sight = look(scan_interval_s=1.0)
    sight.poll()
    shutil.rmtree(folder) if away == "deleted" else folder.rename(tmp_path / "away")
    assert sight.poll(1.0).unavailable
    folder.mkdir()
    write(folder / "new")
    wait_until(lambda: sight.poll(1.0) and "new" in sight.touched, "the new folder is scanned")
    if away == "moved":
        assert "old" not in sight.removed
    # A deleted folder's inode may be given to the new one: then it is the same folder, as far as anybody can tell.
    assert sight.poll(1.0).unavailable is None

    def heard() -> bool:
        sight.poll(1.0)
        sight.woken.wait(0.01)
        write(folder / "marker", str(sight.now).encode())
        return sight.woken.wait(0.02)

    wait_until(heard, "events come from the new folder")


def test_a_folder_that_comes_later_is_found(folder: Path, look: Open) -> None:
    """A watch on a folder that is not there yet starts without error and sees it as soon as it comes."""
    folder.rmdir()
    with capture_logs() as logs:
        sight = look(scan_interval_s=1.0)
    assert not logs
    assert sight.poll() == Changes(unavailable="No such file or directory")
    write(folder / "a")
    assert sight.poll(1.0).touched == ["a"]
    sight.poll(1.0)
    write(folder / "b")
    wait_until(lambda: sight.sees({"b"}), "events work, too, once there is a folder")


# Events as hints


def test_an_event_wakes_and_tells_without_a_scan(folder: Path, look: Open) -> None:
    """A new file, its growth and its removal are told from hints alone, long before the next scan."""
    sight = look()
    sight.poll()
    path = write(folder / "strip.dcm", b"1")
    assert sight.woken.wait(10), "the watch wakes the reader"
    wait_until(lambda: sight.sees({"strip.dcm"}), "the new file is told")
    sight.forget()
    with path.open("ab") as file:
        file.write(b"2")
    wait_until(lambda: sight.sees({"strip.dcm"}), "its growth is told")
    path.unlink()
    wait_until(lambda: sight.sees(removed={"strip.dcm"}), "its removal is told")
    assert sight.watch.scan_only_finds == 0


def test_a_hint_makes_the_wait_zero(folder: Path, look: Open) -> None:
    """While a hint waits nobody sleeps; after the poll the wait is that for the next scan."""
    sight = look(scan_interval_s=50.0)
    sight.poll()
    write(folder / "file")
    wait_until(lambda: sight.watch.wait_s(0.0) == 0.0, "the hint counts")
    wait_until(lambda: sight.sees({"file"}) and sight.watch.wait_s(0.0) == 50.0, "all hints are used up")


def test_a_hint_without_a_change_tells_nothing(folder: Path, look: Open) -> None:
    """The scan decides: an event about a file that is as it was known gives no change."""
    path = write(folder / "file")
    sight = look()
    sight.poll()
    sight.forget()
    with path.open("r+b"):
        pass
    write(folder / "marker")
    wait_until(lambda: sight.sees({"marker"}), "all events before the marker's have come")
    assert sight.touched == ["marker"]


def test_reading_a_file_wakes_nobody(folder: Path, look: Open) -> None:
    """Our own reads raise events, too: they neither wake nor leave a hint."""
    path = write(folder / "file")
    sight = look()
    sight.poll()
    for _ in range(20):
        path.read_bytes()
    assert not sight.woken.wait(0.2)
    assert sight.watch.wait_s(sight.now) > 0


def test_files_in_a_new_tree_are_found(folder: Path, look: Open, tmp_path: Path) -> None:
    """A tree moved into the folder raises no event per file: all of them are told all the same."""
    names = {"study/1/strips/CH2/IMG00006.dcm", "study/1/strips/CH3/IMG00007.dcm"}
    for name in names:
        write(tmp_path / "outside" / name)
    sight = look()
    sight.poll()
    (tmp_path / "outside" / "study").rename(folder / "study")
    wait_until(lambda: sight.sees(names), "every file of the moved tree is told")
    write(folder / "study" / "1" / "strips" / "CH2" / "IMG00011.dcm")
    wait_until(lambda: sight.sees({"study/1/strips/CH2/IMG00011.dcm"}), "events come from inside it")


def test_files_written_into_new_folders_at_once_are_found(folder: Path, look: Open) -> None:
    """Folders made and filled faster than watches can be set: nothing is missed."""
    sight = look()
    sight.poll()
    names = {f"patient{p}/slide{s}/strip_{n}.tif" for p in range(3) for s in range(3) for n in range(4)}
    for name in sorted(names):
        write(folder / name)
    wait_until(lambda: sight.sees(names), "every file is told")


def test_a_rename_tells_both_names(folder: Path, look: Open) -> None:
    """A temporary name that becomes the real one: the old is removed, the new is touched."""
    sight = look()
    sight.poll()
    path = write(folder / "strip.dcm.part")
    wait_until(lambda: sight.sees({"strip.dcm.part"}), "the temporary name is told")
    path.rename(folder / "strip.dcm")
    wait_until(lambda: sight.sees({"strip.dcm"}, {"strip.dcm.part"}), "both names are told")


def test_a_removed_tree_tells_every_file(folder: Path, look: Open) -> None:
    """A whole study deleted, or renamed, removes each of its files by name."""
    names = {"study/1/a.dcm", "study/1/b.dcm", "study/2/c.dcm"}
    for name in names:
        write(folder / name)
    sight = look()
    sight.poll()
    (folder / "study").rename(folder / "renamed")
    new_names = {name.replace("study", "renamed") for name in names}
    wait_until(lambda: sight.sees(new_names, names), "a renamed tree is told by its old and new names")
    shutil.rmtree(folder / "renamed")
    wait_until(lambda: sight.sees(removed=new_names), "a deleted tree is told")


def test_a_tree_moved_away_tells_every_file(folder: Path, look: Open, tmp_path: Path) -> None:
    """A study moved out of the folder raises one event for all of it: each of its files is removed by name."""
    names = {"study/1/a.dcm", "study/1/b.dcm", "study/2/c.dcm"}
    for name in names:
        write(folder / name)
    sight = look()
    sight.poll()
    (folder / "study").rename(tmp_path / "elsewhere")
    wait_until(lambda: sight.sees(removed=names), "the whole tree is told")


def test_what_only_the_scan_finds_is_counted(folder: Path, look: Open) -> None:
    """A change that no event announced is found by the scan and counted; announced ones are not."""
    sight = look(scan_interval_s=1.0)
    write(folder / "there before")
    sight.poll()
    assert sight.watch.scan_only_finds == 0, "the first scan is no miss"
    observer = sight.watch._hints._observer
    assert observer is not None
    observer.unschedule_all()  # a watch that is lost without an error: nothing tells of it
    write(folder / "unheard")
    changes = sight.poll(1.0)
    assert (changes.touched, changes.scan_only) == (["unheard"], 1)
    assert sight.watch.scan_only_finds == 1
    assert sight.poll(1.0) == Changes()
    assert sight.watch.scan_only_finds == 1


def test_a_deaf_thread_is_noticed_by_what_scans_find(folder: Path, look: Open) -> None:
    """watchdog's reading thread dies while those that can be seen live: after some scans listening begins anew."""
    sight = look(scan_interval_s=0.01)
    sight.poll()
    observer: Any = sight.watch._hints._observer
    observer._inotify_fd.stop()
    observer._inotify_fd.join()
    assert observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)

    def is_noticed() -> bool:
        write(folder / f"unheard {sight.now}")
        sight.poll(1.0)
        return sight.watch.events_lost > 0

    with capture_logs() as logs:
        wait_until(is_noticed, "lost events are noticed")
        sight.poll(1.0)
    assert [line["event"] for line in logs] == ["events_lost", "watching"]
    assert sight.watch.scan_only_finds >= 3
    write(folder / "after")
    sight.watch.scan_interval_s = FAR_S
    sight.poll(1.0)
    write(folder / "heard")
    wait_until(lambda: sight.sees({"heard"}), "the new threads give events")


def test_events_that_come_late_are_not_lost(folder: Path, look: Open) -> None:
    """A scan that is faster than the event finds the file alone, and says so; the listening is not blamed for it."""
    sight = look(scan_interval_s=0.01)
    sight.poll()
    for number in range(300):
        write(folder / str(number % 7), str(number).encode())
        sight.poll(1.0)
    wait_until(lambda: not sight.poll(1.0).touched and not sight.woken.wait(0.1), "every event has come")
    assert set(sight.touched) == {str(number) for number in range(7)}
    assert sight.watch.events_lost == 0


def test_a_folder_that_never_gives_events_is_tried_rarely(folder: Path, look: Open) -> None:
    """Where listening anew does not help (another host writes), it is tried once at once, then once in a while."""
    sight = look(scan_interval_s=0.01)
    sight.poll()

    def goes_deaf_again() -> bool:
        observer = sight.watch._hints._observer
        if observer is not None:
            observer.unschedule_all()
        write(folder / f"unheard {sight.now}")
        sight.poll(1.0)
        return sight.watch.events_lost == 2

    wait_until(goes_deaf_again, "it is lost twice")
    with capture_logs() as logs:
        for _ in range(20):
            write(folder / f"unheard {sight.now}")
            assert sight.poll(1.0).touched
    assert not logs and sight.watch._hints._observer is None


@pytest.mark.parametrize("dies", ["dispatcher", "emitter"])
def test_a_dead_event_thread_is_started_again(folder: Path, look: Open, dies: str) -> None:
    """When one of watchdog's threads has died the next scan says so, starts others, and events work again."""
    sight = look(scan_interval_s=1.0)
    sight.poll()
    observer = sight.watch._hints._observer
    assert observer is not None
    for thread in [observer] if dies == "dispatcher" else list(observer.emitters):
        thread.stop()
        thread.join()
    write(folder / "meanwhile")
    with capture_logs() as logs:
        assert sight.poll(1.0).touched == ["meanwhile"]
    assert [line["event"] for line in logs] == ["events_lost", "watching"]
    assert sight.watch._hints._observer is not observer
    assert not observer.is_alive(), "the old thread does not linger"
    write(folder / "after")
    wait_until(lambda: sight.sees({"after"}), "the new threads give events")


def test_a_changed_permission_is_heard(folder: Path, look: Open) -> None:
    """A file that may be read at last is told without a scan: only its ctime shows it."""
    path = write(folder / "file")
    sight = look()
    sight.poll()
    sight.forget()
    path.chmod(0o640)
    wait_until(lambda: sight.sees({"file"}), "the file is told again")


def test_a_link_in_place_of_the_folder_is_looked_through(folder: Path, look: Open, tmp_path: Path) -> None:
    """A folder that is a symbolic link, or becomes one, is read and listened to where it leads."""
    write(folder / "a")
    sight = look(scan_interval_s=1.0)
    sight.poll()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert sight.poll(1.0) == Changes(), "the same folder under another name"
    (tmp_path / "third").mkdir()
    write(tmp_path / "third" / "b")
    folder.unlink()
    folder.symlink_to(tmp_path / "third")
    assert sight.poll(1.0).unavailable == "another folder has taken its place (was a share unmounted?)"
    assert sight.touched == ["a", "b"] and not sight.removed
    sight.watch.scan_interval_s = FAR_S
    sight.poll(1.0)
    write(tmp_path / "third" / "c")
    wait_until(lambda: sight.sees({"c"}), "events come from where the link leads")


def test_a_tree_too_deep_to_listen_to_is_scanned(folder: Path, look: Open) -> None:
    """watchdog cannot watch a thousand folders in each other: that is told, and the scan finds everything."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    with capture_logs() as logs:
        sight = look(scan_interval_s=1.0)
        write(folder / "file")
        assert sight.poll().touched == ["file"]
    subprocess.run(["rm", "-rf", str(folder / "d")], check=True)  # shutil is not up to the depth
    assert [(line["event"], line["detail"]) for line in logs] == [("no_events", "the folders are nested too deep")]


def test_the_time_of_a_file_is_known(folder: Path, look: Open) -> None:
    """The modification time of what the last look saw, without another look."""
    path = write(folder / "file")
    sight = look(mode="scan", scan_interval_s=1.0)
    assert sight.watch.modified_ns("file") is None
    sight.poll()
    seen = path.stat().st_mtime_ns
    assert sight.watch.modified_ns("file") == seen
    os.utime(path, ns=(1, 1))
    assert sight.watch.modified_ns("file") == seen
    sight.poll(1.0)
    assert sight.watch.modified_ns("file") == 1


def test_a_large_folder_is_not_scanned_without_rest(folder: Path, look: Open) -> None:
    """New folders ask for a scan each: while they come one after the other, most of the time is left for reading."""
    for number in range(3000):
        (folder / str(number)).touch()
    sight = look()
    sight.poll()
    polls = scans = 0
    begun = time.monotonic()
    while time.monotonic() < begun + 1.0:
        (folder / f"new {polls}").mkdir()
        sight.woken.wait(0.05)
        before = sight.watch._rests_until
        sight.poll()
        polls += 1
        scans += sight.watch._rests_until != before
    assert 0 < scans < polls / 2, "each scan is followed by four times its own length without one"
    write(folder / f"new {polls - 1}" / "file")
    wait_until(lambda: sight.sees({f"new {polls - 1}/file"}), "and what is in the last of them is found")


# Shares that come and go


@pytest.fixture
def share(folder: Path, tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """A real file system, which is mounted over the folder (True) or unmounted (False). It keeps its files."""
    home = tmp_path / "share"
    home.mkdir()
    words = ["mount", "-t", "tmpfs", "none", str(home)]
    if subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode:
        message = "a share cannot be mounted: this test needs root"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)

    def mount(on: bool) -> None:
        words = ["mount", "--bind", str(home), str(folder)] if on else ["umount", str(folder)]
        subprocess.run(words, check=True)

    yield mount
    for place in (folder, home):
        subprocess.run(["umount", "--lazy", str(place)], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("mode", ["events", "scan"])
def test_an_unmounted_share_is_no_empty_folder(
    folder: Path, share: Callable[[bool], None], look: Open, tmp_path: Path, mode: str
) -> None:
    """However long it is away: unavailable, nothing removed; mounted again, only what is new is told, and heard."""
    share(True)
    write(folder / "a")
    write(folder / "b")
    sight = look(mode=mode, scan_interval_s=1.0)
    sight.poll()
    share(False)
    sight.forget()
    for _ in range(3):
        assert (sight.poll(1.0).unavailable or "").startswith("it is empty and on another file system")
    (tmp_path / "share" / "b").unlink()
    write(tmp_path / "share" / "c")
    share(True)
    assert sight.poll(1.0) == Changes(["c"], ["b"])
    assert sight.watch.unavailable is None
    sight.poll(1.0)
    if mode == "events":
        sight.watch.scan_interval_s = FAR_S
        sight.poll(1.0)
        write(folder / "d")
        wait_until(lambda: sight.sees({"d"}), "the share is listened to again")


def test_a_share_that_comes_after_the_start_is_no_alarm(
    folder: Path, share: Callable[[bool], None], look: Open
) -> None:
    """An empty mount point at the start: nothing was there before, so nothing is wrong when the share comes."""
    sight = look(scan_interval_s=1.0)
    sight.poll()
    share(True)
    write(folder / "a")
    assert sight.poll(1.0) == Changes(["a"])


def test_another_share_with_files_is_taken(folder: Path, share: Callable[[bool], None], look: Open) -> None:
    """Files under another file system's root: that is told once, and they are read."""
    write(folder / "local")
    sight = look(scan_interval_s=1.0)
    sight.poll()
    share(True)
    assert sight.poll(1.0).unavailable, "an empty share over a folder with files"
    write(folder / "theirs")
    assert sight.poll(1.0) == Changes(
        ["theirs"], unavailable="another folder has taken its place (was a share unmounted?)"
    )
    assert sight.poll(1.0) == Changes()


def test_time_away_is_told(folder: Path, look: Open, tmp_path: Path) -> None:
    """While the folder is away nobody is silent: the seconds are told with the first poll that sees it again."""
    sight = look(mode="scan", scan_interval_s=1.0)
    assert sight.poll().away_s == 0.0
    folder.rename(tmp_path / "away")
    sight.poll(1.0)
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 2.0, "some time passes")
    assert sight.poll(1.0).away_s == 0.0
    (tmp_path / "away").rename(folder)
    assert 2.0 <= sight.poll(1.0).away_s < 60
    assert sight.poll(1.0).away_s < 2.0


def test_stop_ends_the_event_thread(folder: Path, look: Open) -> None:
    """After stop no thread is left, and a second stop does nothing."""
    before = set(threading.enumerate())
    sight = look()
    own = set(threading.enumerate()) - before
    assert own
    sight.watch.stop()
    wait_until(lambda: not any(thread.is_alive() for thread in own), "its threads end")
    sight.watch.stop()


# Which file systems raise events

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /srv/imager rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
31 22 0:41 / /srv/imager/local rw - xfs /dev/sdb1 rw
32 22 0:42 / /mnt/share rw master:3 propagate_from:2 - cifs //server/share rw
33 22 0:43 / /mnt/with\040space rw - fuse.sshfs user@host:/ rw
34 22 0:44 / /mnt/host rw - 9p host rw
35 22 0:45 / /mnt/share rw - smb3 //server/over rw
36 22 0:46 / /tmp rw - tmpfs tmpfs rw
37 22 0:47 / /mnt/v rw - virtiofs v rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/", "ext4", False),
        ("/srv", "ext4", False),
        ("/srv/imager", "nfs4", True),
        ("/srv/imager/2026/slide", "nfs4", True),
        ("/srv/imagery", "ext4", False),
        ("/srv/imager/local/deep", "xfs", False),
        ("/mnt/share/x", "smb3", True),
        ("/mnt/with space/x", "fuse.sshfs", True),
        ("/mnt/host", "9p", True),
        ("/mnt/v", "virtiofs", True),
        ("/tmp/x", "tmpfs", False),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str, network: bool) -> None:
    """The deepest and latest mount that holds the path tells its type, and whether others may write there."""
    assert file_system_of(Path(path), MOUNTS) == kind
    assert is_network(kind) is network


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse", "fuseblk", "fuse.sshfs", "9p", "ceph"])
def test_network_file_systems_are_polled(kind: str) -> None:
    """Everything that another host may write without an event here counts as network."""
    assert is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", ""])
def test_local_file_systems_have_events(kind: str) -> None:
    """Local file systems, and unknown ones, are watched by events and scan."""
    assert not is_network(kind)


def test_this_machine_is_known(tmp_path: Path) -> None:
    """The real /proc/self/mountinfo gives the type that stat(1)'s mount table gives for a local folder."""
    kind = file_system_of(tmp_path)
    listed = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert kind in listed
    assert file_system_of(tmp_path, "") == ""


def test_auto_uses_events_on_a_local_folder(folder: Path, look: Open) -> None:
    """On a local file system `auto` listens for events."""
    if is_network(file_system_of(folder)):
        pytest.skip("the temporary folder lies on a network mount")
    sight = look(mode="auto")
    sight.poll()
    write(folder / "file")
    wait_until(lambda: sight.sees({"file"}), "the event is heard")
