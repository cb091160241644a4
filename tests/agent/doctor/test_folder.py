"""Promises of doctor about the watched folder: access, mount, size, links, events."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.doctor.folder import Survey, judge_events, judge_survey, look_at_folder, survey_folder, try_events
from tests.agent.doctor.site import Site, by_check, only


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine."""
    return Site(tmp_path)


def test_a_missing_folder_fails(site: Site) -> None:
    """Without the imager's folder nothing can be watched, and nothing else is said of it."""
    site.folder.rmdir()
    found = site.look(look_at_folder)
    assert list(found) == ["folder"]
    assert only(found, "folder").verdict == "fail"
    assert "mount" in only(found, "folder").mend


def test_a_scanned_folder_needs_no_inotify(site: Site) -> None:
    """In scan mode the finding says how often, and inotify is not looked at."""
    found = site.look(look_at_folder, watch={"mode": "scan", "scan_interval_s": 7.5})
    assert "scanned every 7.5 s" in only(found, "mount").found
    assert "inotify" not in found


def test_inotify_counts_the_folders(site: Site) -> None:
    """Each folder needs a watch: their number is told beside the limit, and depth and files are told."""
    for number in range(4):
        (site.folder / str(number) / "deep").mkdir(parents=True)
        (site.folder / str(number) / "deep" / "file").touch()
    found = site.look(look_at_folder)
    assert only(found, "inotify").found.startswith("9 folders, ")
    assert only(found, "folder_contents").found.startswith("4 files in 9 folders, 2 deep")


def test_links_that_are_not_followed_are_told(site: Site) -> None:
    """A link to slides elsewhere is a warning unless links may lead there."""
    (site.home / "elsewhere").mkdir()
    (site.folder / "link").symlink_to(site.home / "elsewhere")
    assert only(site.look(look_at_folder), "symlinks").verdict == "warn"
    assert "symlinks" not in site.look(look_at_folder, watch={"follow_symlinks": [str(site.home / "elsewhere")]})
    assert "symlinks" in site.look(look_at_folder, watch={"follow_symlinks": [str(site.home / "nowhere")]})


def test_a_link_to_a_folder_above_is_never_followed(site: Site) -> None:
    """Wherever links may lead: doctor's look ends, as the scan does, and says that the link is not followed."""
    (site.folder / "a").mkdir()
    (site.folder / "a" / "up").symlink_to(site.folder)
    found = site.look(look_at_folder, watch={"follow_symlinks": [str(site.home / "elsewhere")]})
    assert only(found, "symlinks").found == "1 symbolic links are not followed"
    assert only(found, "folder_contents").found.startswith("0 files in 2 folders, 1 deep")


def test_a_look_that_takes_too_long_ends(site: Site) -> None:
    """A folder of any size is told as "more than": the look through it is limited."""
    for number in range(50):
        (site.folder / str(number)).mkdir()
    survey = survey_folder(site.folder, limit_s=0.0)
    assert not survey.whole
    found = by_check(judge_survey(survey, site.settings()))
    assert only(found, "folder_contents").verdict == "warn"
    assert "more than" in only(found, "folder_contents").found


@pytest.mark.parametrize(
    ("survey", "check", "told"),
    [
        (Survey(folders=9, took_s=5.0), "folder_contents", "5.00 s a look"),
        (Survey(folders=9, links=3), "symlinks", "3 symbolic links are not followed"),
    ],
)
def test_what_a_look_may_show(site: Site, survey: Survey, check: str, told: str) -> None:
    """A scan that cannot keep up and links in a circle are told with what to do."""
    finding = only(by_check(judge_survey(survey, site.settings())), check)
    assert finding.verdict != "ok"
    assert told in finding.found


def test_folders_that_cannot_be_read_are_counted(site: Site) -> None:
    """How many are closed is told, not which."""
    *_, finding = judge_survey(Survey(folders=9, closed=2), site.settings())
    assert (finding.verdict, finding.found) == ("warn", "2 folders inside cannot be read")


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that any user can reach, looked at by one who is not root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "closed").mkdir(mode=0)
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_a_closed_folder_is_met(nobody: Path) -> None:
    """A real folder without permission is counted, and the look goes on."""
    survey = survey_folder(nobody)
    assert (survey.closed, survey.folders, survey.whole) == (1, 2, True)


@pytest.mark.parametrize(
    ("error", "folders", "limit", "verdict", "told"),
    [
        (0, 10, 8192, "ok", "10 folders, 8192 watches allowed"),
        (0, 5000, 8192, "warn", "max_user_watches=65536"),
        (0, 50_000, 8192, "warn", "max_user_watches=200000"),
        (errno.EMFILE, 10, 8192, "warn", "max_user_instances"),
        (errno.ENOSPC, 10, 8192, "warn", "max_user_watches"),
        (errno.EACCES, 10, 8192, "warn", "watch.mode to scan"),
    ],
)
def test_too_few_watches_warn(error: int, folders: int, limit: int, verdict: str, told: str) -> None:
    """Each way in which the kernel refuses events has its own remedy."""
    finding = judge_events(error, folders, limit)
    assert finding.verdict == verdict
    assert told in finding.found + finding.mend


def test_the_kernel_itself_is_asked_for_a_watch(tmp_path: Path) -> None:
    """A folder that is there can be watched, one that is not gives its errno."""
    assert try_events(tmp_path) == 0
    assert try_events(tmp_path / "nowhere") == errno.ENOENT
