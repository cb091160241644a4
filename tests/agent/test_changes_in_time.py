"""Files that change, go and come back at awkward moments: the answer is that of the files as they stand then."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from agent.backlog import Backlog
from agent.imager import tiff_two_pages
from tests.agent.test_corrections import QUIET_S, SLIDE, Bed, _scan, changed
from tests.reading import at_once, slide_files

MOSAIC = PurePosixPath("PAT/1/mosaic.tif")
LONG_AGO_S = (1_700_000_000, 1_700_000_000)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    """An empty watched folder."""
    return Bed(tmp_path / "watched")


def mosaic(height: int, width: int, seed: int) -> bytes:
    """A small one of noise."""
    pixels = np.random.default_rng(seed).integers(3_000, 20_000, (2, height, width)).astype("<u2")
    return tiff_two_pages(pixels)


def pass_time(bed: Bed) -> None:
    """Until every file has settled and every patient has ended."""
    for seconds in (0.01, 2, 2, 40, 200, QUIET_S, QUIET_S):
        bed.turn(seconds=seconds)


def write_quietly(bed: Bed, name: PurePosixPath, content: bytes) -> None:
    """Write in place; size and time say nothing of it, as on a share that rounds times."""
    path = bed.folder.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
    os.utime(path, LONG_AGO_S)


@pytest.mark.parametrize(("before", "after"), [(1000, 1900), (1900, 1000)])
def test_a_rescan_of_a_slide_of_which_only_sums_are_left(bed: Bed, tmp_path: Path, before: int, after: int) -> None:
    """Long after its patient ended: the answer is the new one, also after a restart when the file is gone."""
    bed.put(MOSAIC, mosaic(before, 900, 1))
    pass_time(bed)
    bed.reducer.freeze("PAT")
    bed.put(MOSAIC, mosaic(after, 900, 2))
    pass_time(bed)
    whole = at_once(tmp_path / "whole", {MOSAIC: mosaic(after, 900, 2)})[SLIDE].posterior
    assert bed.outcomes()[SLIDE].posterior == whole
    (bed.folder.folder / MOSAIC).unlink()
    bed.restart()
    pass_time(bed)
    for scope in (("slide", "PAT", "1"), ("patient", "PAT", "")):
        assert bed.said[scope]["probabilities"] == list(whole.probabilities)
        assert bed.said[scope]["counts"]["seen"] == whole.counts.seen == len(bed.ledger)


@pytest.mark.parametrize("has_more", [False, True])
def test_a_refused_file_that_is_filled_under_the_same_stamp_is_told(bed: Bed, has_more: bool) -> None:
    """Preallocated with rubbish, then filled without another size or time: its patches count, and finals say so."""
    if has_more:
        bed.put_all(slide_files("strips-b", "1"))
    scan = dict(zip(("CH2/IMG00016.dcm", "CH3/IMG00017.dcm"), _scan(2000, 5).values(), strict=True))
    files = {PurePosixPath("PAT/1/strips", name): content for name, content in scan.items()}
    for name, content in files.items():
        write_quietly(bed, name, b"\1" * len(content))
    bed.turn(*map(str, files))
    for name, content in files.items():
        write_quietly(bed, name, content)
    bed.turn(*map(str, files))
    pass_time(bed)
    seen = 21 + 42 * has_more
    assert len(bed.ledger) == seen
    assert bed.said["slide", "PAT", "1"]["counts"]["seen"] == bed.said["patient", "PAT", ""]["counts"]["seen"] == seen
    assert {problem.reason for problem in bed.problems} <= {"not_an_image", "stalled"}


def test_a_large_file_that_goes_in_mid_reading_and_comes_back_is_complete(bed: Bed, tmp_path: Path) -> None:
    """Moved away between two turns, and back: abandoned, then complete."""
    bed.folder.busy = True
    path, content = bed.folder.folder / MOSAIC, mosaic(3000, 3000, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    bed.folder.touched.append(str(MOSAIC))
    bed.take(bed.reader.poll(0.0))
    assert bed.reader.behind
    path.rename(tmp_path / "aside")
    bed.folder.removed.append(str(MOSAIC))
    bed.take(bed.reader.poll(0.1))
    (tmp_path / "aside").rename(path)
    bed.folder.touched.append(str(MOSAIC))
    bed.folder.busy = False
    pass_time(bed)
    assert bed.outcomes()[SLIDE] == at_once(tmp_path / "whole", {MOSAIC: content})[SLIDE]
    assert bed.said["slide", "PAT", "1"]["state"] == bed.said["patient", "PAT", ""]["state"] == "complete"


@pytest.mark.parametrize("side", [1200, 1700, 2000])
def test_a_file_read_to_its_end_is_done_at_once(bed: Bed, side: int) -> None:
    """In whatever turn its last bytes come: an imager that clears its folder then takes nothing away."""
    bed.folder.busy = True
    path = bed.folder.folder / MOSAIC
    path.parent.mkdir(parents=True)
    path.write_bytes(mosaic(side, side, 0))
    bed.folder.touched.append(str(MOSAIC))
    patches = (-(-side // 300)) ** 2
    while len(bed.ledger) < patches:
        bed.take(bed.reader.poll(bed.now))
    bed.folder.busy = False
    path.unlink()
    bed.folder.removed.append(str(MOSAIC))
    pass_time(bed)
    assert bed.said["slide", "PAT", "1"]["state"] == "complete" and not bed.problems


def test_one_part_in_three_files_is_read_once(bed: Bed) -> None:
    """A two-channel file beside both one-channel files of the same strip: one form counts, and reading ends."""
    pixels = np.random.default_rng(1).integers(3_000, 20_000, (2, 2000, 1000)).astype("<u2")
    for name, content in {**_scan(2000, 1), PurePosixPath("PAT/1/strip_6.tif"): tiff_two_pages(pixels)}.items():
        path = bed.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        bed.folder.touched.append(str(name))
    pass_time(bed)
    assert len(bed.ledger) == 21 and bed.reader.wait_s(bed.now) > 1


def test_a_refused_file_that_cannot_be_asked_is_asked_again_in_a_while(bed: Bed, tmp_path: Path) -> None:
    """A share that answers with an error: no busy loop."""
    bed.put(PurePosixPath("PAT/1/strips/CH2/IMG00006.dcm"), b"GIF89a" * 1000)
    folder = bed.folder.folder / "PAT"
    folder.rename(tmp_path / "aside")
    folder.symlink_to(folder.name)  # every call for the file fails: too many levels of links
    at_once_s = 0
    for _ in range(500):
        bed.turn(seconds=0.02)
        at_once_s += bed.reader.wait_s(bed.now) == 0
    assert at_once_s <= 5


def test_a_copy_serves_when_the_original_goes_in_a_second_reading(bed: Bed, tmp_path: Path) -> None:
    """The original is being written anew, is given up and removed; its copy stays."""
    files = slide_files("strips-b", "1")
    name = next(iter(files))
    copy = name.with_name("IMG6.dcm")
    bed.put_all(files)
    bed.put(copy, files[name])
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    bed.put(name, changed(files[name], 0.1, 3_500_000)[:2_500_000])
    (bed.folder.folder / name).unlink()
    bed.folder.removed.append(str(name))
    pass_time(bed)
    rest = {**{each: content for each, content in files.items() if each != name}, copy: files[name]}
    assert bed.outcomes()[SLIDE] == at_once(tmp_path / "whole", rest)[SLIDE]


def test_no_file_of_a_slide_starves_behind_another() -> None:
    """One that changes all the time and comes first by name does not keep the other waiting."""
    backlog, taken = Backlog(), []
    backlog.add("CH3/IMG7.dcm", SLIDE, 1)
    for _ in range(50):
        backlog.add("CH2/IMG6.dcm", SLIDE, 1)
        taken.append(backlog.take())
    assert "CH3/IMG7.dcm" in taken


def test_an_old_file_that_cannot_be_opened_at_first_is_not_on_the_table(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lay there at the start: that it opens at a later look does not make it new."""
    for name, content in slide_files("strips-b", "1").items():
        path = bed.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, LONG_AGO_S)
    bed.restart()
    opens = os.open

    def fails(path: Path, flags: int) -> int:
        if "PAT" in str(path):
            raise PermissionError(13, "Permission denied")
        return opens(path, flags)

    monkeypatch.setattr(os, "open", fails)
    bed.turn()
    monkeypatch.undo()
    pass_time(bed)
    assert len(bed.ledger) == 42
    assert not any(progress.live for progress in bed.progress)


def test_junk_under_a_name_of_a_complete_slide_is_told_once(bed: Bed) -> None:
    """The next patient begins before it has settled: the slide is not read again for it."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=5)
    bed.put(PurePosixPath("PAT/1/strips/CH2/IMG00016.dcm"), b"GIF89a" * 1000)
    bed.put(PurePosixPath("NEXT/2/strips/CH2/IMG00006.dcm"), next(iter(files.values())))
    for seconds in (0.5, 0.6, 1, 1, 2, 40):
        bed.turn(seconds=seconds)
    assert bed.reopened == [] and [problem.reason for problem in bed.problems] == ["not_an_image"]


def test_files_archived_while_the_agent_was_off_make_no_other_final(bed: Bed) -> None:
    """One strip of two is whole and goes: what was counted of it still counts, so nothing else is said."""
    files = slide_files("strips-b", "1")
    last = list(files)[-1]
    for name, content in files.items():
        bed.put(name, content[:3_000_000] if name == last else content)
    pass_time(bed)
    before = dict(bed.said)
    for name in list(files)[:2]:
        (bed.folder.folder / name).unlink()
    bed.restart()
    pass_time(bed)
    assert bed.said == before


def test_a_file_that_is_put_back_after_another_had_its_name_counts(bed: Bed, tmp_path: Path) -> None:
    """A is read, B takes its name and counts, A is put back with its old time, and the agent restarts: A counts."""
    path, first = bed.folder.folder / MOSAIC, mosaic(900, 900, 1)
    bed.put(MOSAIC, first)
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    path.rename(tmp_path / "aside")
    bed.folder.removed.append(str(MOSAIC))
    bed.turn()
    bed.put(MOSAIC, mosaic(900, 900, 2))
    (tmp_path / "aside").replace(path)
    bed.restart()
    pass_time(bed)
    assert bed.outcomes()[SLIDE].posterior == at_once(tmp_path / "first", {MOSAIC: first})[SLIDE].posterior
