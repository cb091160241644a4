"""Files whose pixels change after they were read: the answer follows, and says that it is a correction."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

import agent.reader
from agent.arriving import MOST_AT_REST
from agent.batching import Batch, Batcher
from agent.feeder import Feeder
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.handover import CancelToken, Handover, Wakeup
from agent.identity import Plain
from agent.imager import dicom_strip, tiff_two_pages
from agent.intake import PatientClosed, SlideClosed
from agent.layouts import Layouts
from agent.ledger_records import FileStanding
from agent.naming import NamingSettings, rules_of
from agent.patience import Patience
from agent.reader import MOST_AT_ONCE, Reader
from agent.watch import Watch
from agent.worker import Work
from models.contract import SlideKey
from models.registry import MODALITIES
from tests.fakes import ToldFolder, fake_profile
from tests.parity.test_restarts import Ward
from tests.reading import Bench, at_once, slide_files

SLIDE = SlideKey("PAT", "1")
Files = dict[PurePosixPath, bytes]
QUIET_S = 2000.0


def changed(content: bytes, place: float, amount: int = 2_000) -> bytes:
    """The same file with some pixels (at a fraction of its length) inverted."""
    at = int(len(content) * place) // 2 * 2
    return content[:at] + bytes(255 - byte for byte in content[at : at + amount]) + content[at + amount :]


class Bed(Ward):
    """A ward with a clock and files that are put into its folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.now = 0.0

    def put(self, name: PurePosixPath, content: bytes, *, at: int | None = None) -> None:
        """Write a file (from byte `at` on, in place) and tell the reader."""
        path = self.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if at is None:
            path.write_bytes(content)
        else:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(content)
        self.turn(str(name))

    def put_all(self, files: Files) -> None:
        """Write one file after the other."""
        for name, content in files.items():
            self.put(name, content)

    def turn(self, *touched: str, seconds: float = 0.01) -> None:
        """Let time pass and poll."""
        self.folder.touched += touched
        self.now += seconds
        self.poll(self.now)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    """An empty watched folder."""
    return Bed(tmp_path / "watched")


def expected(tmp_path: Path, files: Files) -> object:
    """The outcome of the finished files, read in one go."""
    return at_once(tmp_path / "whole", files)[SLIDE].posterior


def revision(bed: Bed, scope: str = "slide") -> tuple[int, str | None]:
    """Number of the last final and what it supersedes."""
    final = next(said for key, said in bed.said.items() if key[0] == scope)
    return final["revision"], final["supersedes"]


@pytest.mark.parametrize("place", [0.3, 0.5, 0.98])
@pytest.mark.parametrize("number", [0, 3])
def test_pixels_that_change_after_the_final_are_corrected(
    bed: Bed, tmp_path: Path, place: float, number: int
) -> None:
    """Same size, same name, some pixels written anew: once the file has settled, revision 2 supersedes revision 1 and
    the posterior is that of the file as it stands; nothing else is said, and no patch counts twice."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    assert revision(bed) == (1, None)
    first = bed.said["slide", "PAT", "1"]["event_id"]
    name = list(files)[number]
    bed.put(name, changed(files[name], place))
    assert revision(bed) == (1, None), "it may not be finished yet"
    bed.turn(seconds=2)
    assert revision(bed) == (2, first)
    after = {**files, name: changed(files[name], place)}
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, after)
    for _ in range(3):
        bed.turn(seconds=2)
    assert revision(bed) == (2, first)
    assert len({row.key for row in bed.ledger}) == len(bed.ledger) == 42


def test_the_answer_comes_back_with_the_pixels(bed: Bed, tmp_path: Path) -> None:
    """Changed and changed back: a third revision says what the first one said."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    said = bed.said["slide", "PAT", "1"]["probabilities"]
    name = next(iter(files))
    for content in (changed(files[name], 0.5), files[name]):
        bed.put(name, content)
        bed.turn(seconds=2)
    assert revision(bed)[0] == 3
    assert bed.said["slide", "PAT", "1"]["probabilities"] == said
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, files)


@pytest.mark.parametrize("restart", [False, True])
def test_an_ended_patient_is_corrected_too(bed: Bed, tmp_path: Path, restart: bool) -> None:
    """Long after the end, with a restart in between or not: the slide's and the patient's finals are superseded, the
    change is told, and nobody is on the table because of it."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    assert revision(bed, "patient") == (1, None)
    if restart:
        bed.restart()
        bed.turn()
        assert not bed.reopened, "files as they were need no look"
    name = list(files)[2]
    bed.put(name, changed(files[name], 0.5))
    assert bed.reopened == [SLIDE]
    bed.turn(seconds=2)
    after = {**files, name: changed(files[name], 0.5)}
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, after)
    assert revision(bed)[0] == 2
    if not restart:  # after a restart its patient counts as open until the quiet time is over
        assert revision(bed, "patient")[0] == 2
    bed.let_time_pass(bed.now)
    assert revision(bed, "patient")[0] == 2
    assert [problem.reason for problem in bed.problems] == ["changed_late"]
    bed.now += QUIET_S + 10
    bed.restart()
    bed.turn()
    bed.let_time_pass(bed.now)
    assert revision(bed)[0] == 2 and revision(bed, "patient")[0] == 2


def test_a_change_while_the_agent_was_off_is_corrected(bed: Bed, tmp_path: Path) -> None:
    """A finished slide's file was written anew between two starts."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    name = list(files)[1]
    (bed.folder.folder / name).write_bytes(changed(files[name], 0.6))
    bed.restart()
    bed.turn()
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, {**files, name: changed(files[name], 0.6)})
    assert revision(bed)[0] == 2


def test_a_header_rewritten_at_the_close_changes_nothing(bed: Bed, tmp_path: Path) -> None:
    """The imager goes back and writes the same header again: looked at once more, and no revision."""
    files = slide_files("strips-b", "1")
    for name, content in files.items():
        bed.put(name, content)
        bed.put(name, content[:1000], at=0)
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert revision(bed) == (1, None)
    assert {standing.outcome for standing in bed.files.values()} == {"whole"} and len(bed.files) == 4
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, files)


def test_a_preallocated_file_that_is_filled_later_is_corrected(bed: Bed, tmp_path: Path) -> None:
    """Rows that were taken for pixels and are written once more, last row first."""
    files = slide_files("strips-b", "1")
    name, *others = files
    for other in others:
        bed.put(other, files[other])
    bed.put(name, changed(files[name], 0.2, 3_000_000))
    whole = files[name]
    pieces = range(int(len(whole) * 0.2) // 2 * 2, len(whole), 250_000)
    for start in reversed(pieces):
        bed.put(name, whole[start : start + 250_000], at=start)
        bed.turn(seconds=0.3)
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, files)


def test_cut_and_written_again(bed: Bed, tmp_path: Path) -> None:
    """Truncated to nothing and written with other pixels, in pieces: the last content counts."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    name = next(iter(files))
    new = changed(files[name], 0.4, 900_000)
    bed.put(name, b"")
    for end in (10, 1000, 1_000_000, len(new)):
        bed.put(name, new[:end])
        bed.turn(seconds=0.2)
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, {**files, name: new})
    assert revision(bed)[0] == 2


def test_another_file_under_the_same_name(bed: Bed, tmp_path: Path) -> None:
    """Replaced by a rename, with an older time: the inode tells."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    name = next(iter(files))
    new = changed(files[name], 0.4)
    aside = tmp_path / "aside"
    aside.write_bytes(new)
    os.utime(aside, (1_000_000_000, 1_000_000_000))
    aside.rename(bed.folder.folder / name)
    bed.turn(str(name))
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, {**files, name: new})
    assert revision(bed)[0] == 2


def test_a_correction_that_was_cut_short_is_finished_after_a_restart(bed: Bed, tmp_path: Path) -> None:
    """Killed when some patches were corrected and the final was not said: the next start says it."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    ledger, finals, said = list(bed.ledger), dict(bed.finals), dict(bed.said)
    name = list(files)[1]
    after = {**files, name: changed(files[name], 0.1, 3_500_000)}
    bed.put(name, after[name])
    bed.turn(seconds=2)
    corrected = [row for row in bed.ledger if row not in ledger]
    assert len(corrected) > 2
    # What the ledger would hold after a kill between two of its transactions.
    half = {row.key: row for row in (*ledger, *corrected[: len(corrected) // 2])}
    bed.ledger, bed.finals, bed.said = list(half.values()), finals, said
    bed.files = {}
    bed.restart()
    for _ in range(3):
        bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, after)
    assert revision(bed)[0] == 2


def test_a_refused_file_that_is_mended_counts(tmp_path: Path) -> None:
    """Rubbish under a strip's name, then the strip: read once it has settled."""
    files = slide_files("strips-b", "1")
    bench = Bench(ToldFolder(tmp_path / "watched"))
    for number, (name, content) in enumerate(files.items()):
        path = bench.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GIF89a" * 1000 if number == 0 else content)
        bench.folder.touched.append(str(name))
        bench.poll(number / 10)
    bench.poll(2.0)
    assert [problem.reason for problem in bench.problems] == ["not_an_image"]
    assert [standing.outcome for standing in bench.files.values()].count("refused") == 1
    name, content = next(iter(files.items()))
    (bench.folder.folder / name).write_bytes(content)
    bench.folder.touched.append(str(name))
    for moment in (3.0, 4.5, 6.0):
        bench.poll(moment)
    assert bench.outcomes()[SLIDE] == at_once(tmp_path / "whole", files)[SLIDE]
    assert {standing.outcome for standing in bench.files.values()} == {"whole"}


def test_what_is_whole_is_noted_with_its_hash(bed: Bed) -> None:
    """Each file once, with the sha256 of its bytes, after it has settled; a copy is noted as such."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    copy = PurePosixPath("PAT/1/strips/CH2/IMG6.dcm")
    assert not bed.files
    bed.put(copy, next(iter(files.values())))
    bed.turn(seconds=2)
    whole = {row.file_id: row.sha256 for row in bed.files.values() if row.outcome == "whole"}
    assert whole == {str(name): hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert [row.file_id for row in bed.files.values() if row.outcome == "duplicate"] == [str(copy)]


@pytest.mark.parametrize("at_once", [MOST_AT_ONCE, 2])
def test_the_newest_slide_goes_first(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full folder, also of one too full for one poll, the newest slide is read first; nothing starves."""
    monkeypatch.setattr(agent.reader, "MOST_AT_ONCE", at_once)
    bench = Bench(ToldFolder(tmp_path / "watched"))
    for age, slide in enumerate(("1", "2", "3", "4")):
        for name, content in slide_files("strips-b", "1").items():
            path = bench.folder.folder / PurePosixPath(f"P{slide}", slide, *name.parts[2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (1_700_000_000 - 3600 * age, 1_700_000_000 - 3600 * age))
            bench.folder.touched.append(path.relative_to(bench.folder.folder).as_posix())
    bench.poll(0.0)
    order = list(dict.fromkeys(row.key.slide for row in bench.ledger))
    assert order == ["1", "2", "3", "4"]
    assert {told.slide.slide for told in bench.closed if isinstance(told, SlideClosed)} == {"1", "2", "3", "4"}
    assert not [told for told in bench.closed if isinstance(told, PatientClosed)], "old files end nobody"


def test_a_large_old_file_does_not_hold_up_a_new_slide(bed: Bed) -> None:
    """A mosaic from before is being read when a slide arrives: that one is read first, the rest of the mosaic then,
    and only what arrives is on the table."""
    old, bed.folder.busy = PurePosixPath("OLD/1/mosaic.tif"), True
    path = bed.folder.folder / old
    path.parent.mkdir(parents=True)
    path.write_bytes(tiff_two_pages(np.random.default_rng(0).integers(3_000, 20_000, (2, 3000, 3000)).astype("<u2")))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    bed.folder.touched.append(str(old))
    bed.take(bed.reader.poll(bed.now))
    assert len(bed.ledger) < 100 and bed.reader.behind
    begun = len(bed.ledger)
    for name, content in slide_files("strips-b", "1").items():
        (bed.folder.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (bed.folder.folder / name).write_bytes(content)
    bed.turn(*map(str, slide_files("strips-b", "1")))
    assert [row.key.patient for row in bed.ledger[begun : begun + 42]] == ["PAT"] * 42
    assert Counter(row.key.patient for row in bed.ledger) == {"PAT": 42, "OLD": 100}
    assert {told.slide.patient for told in bed.progress if told.live} == {"PAT"}


def test_a_strip_of_another_height_replaces_its_slide(bed: Bed) -> None:
    """A file of a complete slide replaced by one of another height: the alert says so, the agent goes on."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    name = next(iter(files))
    taller = np.full((4000, 1000), 5_000, np.uint16)
    bed.put(name, dicom_strip(taller, accession="PAT", container="1", instance_number=6))
    bed.turn(seconds=2)
    bed.turn(seconds=200)
    assert {problem.reason for problem in bed.problems} & {"wrong_shape", "stalled"}
    assert len({row.key for row in bed.ledger}) == len(bed.ledger)


def _scan(height: int, seed: int) -> dict[PurePosixPath, bytes]:
    """The pair of files of one strip, so many rows high."""
    names = [PurePosixPath("PAT/1/strips/CH2/IMG00006.dcm"), PurePosixPath("PAT/1/strips/CH3/IMG00007.dcm")]
    pixels = np.random.default_rng(seed).integers(3_000, 20_000, (height, 1000)).astype(np.uint16)
    return {
        name: dicom_strip(pixels, accession="PAT", container="1", instance_number=int(name.stem[3:]))
        for name in names
    }


@pytest.mark.parametrize("between", ["nothing", "seconds", "its patient ends", "a restart"])
@pytest.mark.parametrize("is_in_place", [True, False])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(2000, 4000), (4000, 2000)])
def test_a_rescan_of_another_height_takes_the_strips_place(
    bed: Bed, tmp_path: Path, before: int, after: int, first: int, is_in_place: bool, between: str
) -> None:
    """One channel after the other, in place or as another file, at once or later: in the end the strip counts with
    the patches of its new shape, and with none of its old one's."""
    files = {**slide_files("strips-b", "1"), **_scan(before, 1)}
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    if between == "its patient ends":
        bed.turn(seconds=QUIET_S)
    rescan = _scan(after, 2)
    for name in list(rescan)[:: 1 if first == 0 else -1]:
        if not is_in_place:
            (bed.folder.folder / name).unlink()
        bed.put(name, rescan[name])
        bed.turn(seconds=0 if between == "nothing" else 2)
    if between == "a restart":
        bed.restart()
    for seconds in (2, 2, 40, 40, QUIET_S):
        bed.turn(seconds=seconds)
    whole = expected(tmp_path, {**files, **rescan})
    assert bed.outcomes()[SLIDE].posterior == whole
    assert len({row.key for row in bed.ledger}) == len(bed.ledger) == bed.outcomes()[SLIDE].posterior.counts.seen
    final = bed.said["slide", "PAT", "1"]
    assert final["counts"]["seen"] == len(bed.ledger)


def test_a_file_that_goes_before_its_turn_is_told(tmp_path: Path) -> None:
    """Removed while it waited behind others: the agent goes on, the others count."""
    bench = Bench(ToldFolder(tmp_path / "watched", busy=True))
    for slide in ("1", "2"):
        for name, content in slide_files("strips-b", slide).items():
            path = bench.folder.folder / PurePosixPath(f"P{slide}", *name.parts[1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (1_700_000_000 + int(slide), 1_700_000_000 + int(slide)))
            bench.folder.touched.append(path.relative_to(bench.folder.folder).as_posix())
    bench.take(bench.reader.poll(0.0))
    for path in sorted((bench.folder.folder / "P1").rglob("*.dcm")):
        path.unlink()
        bench.folder.removed.append(path.relative_to(bench.folder.folder).as_posix())
    bench.poll(0.1)
    assert {row.key.slide for row in bench.ledger} == {"2"} and len(bench.ledger) == 42


def test_what_waits_for_a_number_is_asked_again_in_the_next_turn(tmp_path: Path) -> None:
    """The slide's first number comes last, as the last file of a turn: the others are read then, without another."""
    bench = Bench(ToldFolder(tmp_path / "watched", busy=True))
    files = slide_files("strips-a", "1")
    for name in sorted(files, reverse=True):
        path = bench.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
        bench.folder.touched.append(str(name))
        bench.poll(0.1)
    assert len(bench.ledger) == 42


@pytest.mark.parametrize("gone", [4, 1])
@pytest.mark.parametrize("seen_again", [False, True])
def test_files_that_go_before_they_have_settled_leave_nothing_behind(bed: Bed, gone: int, seen_again: bool) -> None:
    """An imager that clears its folder at once, perhaps in the middle of a second reading: what was counted stands,
    and nothing of the slide is held when its patient has ended."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    first = bed.said["slide", "PAT", "1"]
    if seen_again:
        name = next(iter(files))
        bed.put(name, changed(files[name], 0.5)[:3_000_000])
        bed.turn(seconds=2)
    for name in list(files)[:gone]:
        (bed.folder.folder / name).unlink()
    bed.folder.removed += map(str, list(files)[:gone])
    bed.turn(seconds=0.1)
    for seconds in (2, QUIET_S, 2, QUIET_S):
        bed.turn(seconds=seconds)
    assert bed.assembler.held == 0
    assert math.isinf(bed.reader.wait_s(bed.now)) or bed.reader.wait_s(bed.now) > 1
    assert bed.outcomes()[SLIDE].posterior.counts.seen == first["counts"]["seen"] == 42


def test_a_slide_whose_patient_ended_at_once_is_still_examined(bed: Bed, tmp_path: Path) -> None:
    """The next patient begins before the last file has settled, and its pixels change then: corrected all the same,
    and every file is noted."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.put(PurePosixPath("NEXT/2/strips/CH2/IMG00006.dcm"), next(iter(files.values())))
    assert revision(bed, "patient") == (1, None)
    name = list(files)[1]
    bed.put(name, changed(files[name], 0.5))
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, {**files, name: changed(files[name], 0.5)})
    assert revision(bed)[0] == revision(bed, "patient")[0] == 2
    assert sum(standing.outcome == "whole" for standing in bed.files.values()) == 4


def test_late_bytes_put_no_earlier_patient_on_the_table(bed: Bed) -> None:
    """The next patient has begun when a strip of the one before is written to its end, or written anew: the screen
    stays where it is. A further slide of the earlier patient is imaged now, though."""
    files, second = slide_files("strips-b", "1"), slide_files("strips-b", "2")
    last = list(files)[-1]
    for name, content in files.items():
        bed.put(name, content[:3_000_000] if name == last else content)
    bed.put(PurePosixPath("NEXT/3/strips/CH2/IMG00006.dcm"), next(iter(files.values())))
    bed.progress.clear()
    bed.put(last, files[last])
    bed.put(last, b"")
    bed.put(last, files[last])
    assert bed.said["slide", "PAT", "1"]["state"] == "complete"
    assert bed.progress and not any(progress.live for progress in bed.progress)
    bed.put(next(iter(second)), next(iter(second.values())))
    assert {progress.live for progress in bed.progress if progress.slide.slide == "2"} == {True}


def test_a_new_file_of_an_ended_patient_counts(bed: Bed) -> None:
    """A strip that comes after its patient's end is read, in the same start as after a restart."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    for name, content in list(files.items())[:2]:
        number = int(name.stem[3:]) + 20
        bed.put(name.with_name(f"IMG{number:05d}.dcm"), content)
    bed.turn(seconds=2)
    assert len(bed.ledger) == 63


def test_nothing_spins_while_a_partner_is_missing(bed: Bed) -> None:
    """One channel is whole, the other stays cut: once both have settled there is nothing to do."""
    files = slide_files("strips-b", "1")
    for number, (name, content) in enumerate(files.items()):
        bed.put(name, content[: len(content) // 2] if number == 2 else content)
    bed.turn(seconds=2)
    bed.turn(seconds=2)
    assert bed.reader.wait_s(bed.now) > 1


def test_a_finished_file_that_is_gone_when_its_turn_comes_reopens_nothing(bed: Bed) -> None:
    """Archived between the look into the folder and the look at the file."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    name = next(iter(files))
    (bed.folder.folder / name).unlink()
    bed.turn(str(name))
    bed.folder.removed.append(str(name))
    bed.turn(seconds=200)
    bed.turn(seconds=200)
    assert bed.reopened == [] and revision(bed) == (1, None) and bed.problems == []


def test_a_copy_does_not_reopen_its_slide_at_each_start(bed: Bed) -> None:
    """A duplicate is known by how it stood, as every other file is."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.put(PurePosixPath("PAT/1/strips/CH2/IMG6.dcm"), next(iter(files.values())))
    for _ in range(3):
        bed.turn(seconds=2)
    before = len(bed.reopened)
    for _ in range(2):
        bed.restart()
        bed.turn()
        bed.turn(seconds=2)
    assert len(bed.reopened) == before and "changed_late" not in {problem.reason for problem in bed.problems}


@pytest.mark.parametrize("restart", [False, True])
def test_other_times_alone_correct_nothing(bed: Bed, restart: bool) -> None:
    """A backup that is put back, a copy to another disk: the same bytes are no change, and nobody is told of one."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    for name in files:
        os.utime(bed.folder.folder / name, (1_600_000_000, 1_600_000_000))
    if restart:
        bed.restart()
    bed.turn(*map(str, files))
    bed.turn(seconds=2)
    assert bed.reopened == [] and bed.problems == []
    assert {standing.mtime_ns for standing in bed.files.values()} == {1_600_000_000_000_000_000}
    bed.restart()
    bed.turn()
    assert bed.reader.wait_s(bed.now) > 1, "known as it stands now"


def test_a_correction_puts_nobody_on_the_table(bed: Bed) -> None:
    """A finished slide's file changed while the agent was off: its patient is not who is being imaged."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    for name in list(files)[1:3]:
        (bed.folder.folder / name).write_bytes(changed(files[name], 0.6))
    bed.restart()
    bed.progress.clear()
    for _ in range(3):
        bed.turn(seconds=2)
    assert revision(bed)[0] == 2
    assert bed.progress and not any(progress.live for progress in bed.progress)


def test_rows_of_a_part_that_is_never_whole_are_corrected_at_its_end(bed: Bed, tmp_path: Path) -> None:
    """One channel stays cut, and pixels of the other are written anew: what is said last is what stands there."""
    files = slide_files("strips-b", "1")
    cut = list(files)[1]
    name = next(iter(files))
    files = {**files, cut: files[cut][: len(files[cut]) // 2]}
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.put(name, changed(files[name], 0.1))
    bed.turn(seconds=2)
    bed.turn(seconds=200)
    after = {**files, name: changed(files[name], 0.1)}
    assert bed.outcomes()[SLIDE] == at_once(tmp_path / "whole", after)[SLIDE]
    said = bed.said["slide", "PAT", "1"]
    assert said["state"] == "stalled" and said["probabilities"] == list(bed.outcomes()[SLIDE].posterior.probabilities)


def test_a_backlog_puts_no_earlier_patient_on_the_table(tmp_path: Path) -> None:
    """After an outage two patients wait: the newer one is read first, and stays on the table and open."""
    bench = Bench(ToldFolder(tmp_path / "watched"))
    bench.poll(0.0)
    for age, slide in enumerate(("1", "2")):
        for name, content in slide_files("strips-b", slide).items():
            path = bench.folder.folder / PurePosixPath(f"P{slide}", slide, *name.parts[2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (1_700_000_000 - 3600 * age, 1_700_000_000 - 3600 * age))
            bench.folder.touched.append(path.relative_to(bench.folder.folder).as_posix())
    bench.poll(1.0)
    assert len(bench.ledger) == 84
    assert {progress.slide.patient for progress in bench.progress if progress.live} == {"P1"}
    assert not [told for told in bench.closed if isinstance(told, PatientClosed)]


def test_a_file_that_is_touched_for_ever_is_read_ever_less_often(bed: Bed) -> None:
    """Every few seconds another time and the same bytes: the pauses between two readings grow."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    name = next(iter(files))
    read = 0
    for _ in range(40):
        os.utime(bed.folder.folder / name)
        bed.turn(str(name), seconds=3)
        bed.files, noted = {}, len(bed.files)
        read += noted
    assert read < 20


def test_a_second_stall_is_told_again(bed: Bed) -> None:
    """A strip stops, goes on, and stops for good, with as many whole parts as before: two problems that differ, so
    that the ledger lets both out; after a restart the second is the same."""
    files = slide_files("strips-b", "1")
    name, *others = files
    for other in others:
        bed.put(other, files[other])
    for size in (1_000_000, 2_000_000):
        bed.put(name, files[name][:size])
        bed.turn(seconds=2)
        bed.turn(seconds=200)
    bed.restart()
    bed.turn()
    bed.turn(seconds=2)
    bed.turn(seconds=200)
    said = [bed.reporter.alert(problem) for problem in bed.problems if problem.reason in ("stalled", "truncated")]
    ids = {reason: [m.event_id for m in said if reason in str(m.payload)] for reason in ('"stalled"', '"truncated"')}
    assert {reason: (len(of), len(set(of))) for reason, of in ids.items()} == {
        '"stalled"': (3, 2),
        '"truncated"': (3, 2),
    }


def test_no_file_counts_as_read_before_its_patches(tmp_path: Path) -> None:
    """The batcher waits long; still a file's standing is handed over behind every patch that was cut from it."""
    files = dict(list(slide_files("strips-b", "1").items())[:2])
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    token, profile = CancelToken(), fake_profile()
    work: Handover[Work] = Handover("work", 1000, token)
    reader = Reader(
        Watch(tmp_path, mode="scan"),
        Layouts(rules_of(NamingSettings()), Plain(), by_tags=True),
        Plain(),
        MODALITIES["srh"].make_assembler(profile),
        open_parser,
        limits=Limits(),
        patience=Patience(settle_s=0.2),
    )
    feeder = Feeder(reader, Batcher(64, 60.0), work, token, Wakeup(token))
    room = threading.Thread(target=feeder.run)
    room.start()
    told: list[Work] = []
    while sum(isinstance(item, FileStanding) for item in told) < 2 and (item := work.get(timeout_s=30)) is not None:
        told.append(item)
    token.stop()
    room.join()
    kinds = [type(item) for item in told if isinstance(item, Batch | FileStanding)]
    assert kinds == [Batch, FileStanding, FileStanding]
    assert sum(len(item.inputs) + len(item.rejected) for item in told if isinstance(item, Batch)) == 21


@pytest.mark.parametrize("cut", [False, True])
def test_a_slide_of_which_only_sums_are_left_is_corrected(bed: Bed, tmp_path: Path, cut: bool) -> None:
    """Its patches are forgotten, since many patients have ended after it: it is counted anew. The answer stays as it
    was for as long as the slide cannot be read to its end."""
    files = slide_files("strips-b", "1")
    bed.put_all(files)
    bed.turn(seconds=2)
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    bed.reducer.freeze("PAT")
    name = list(files)[1]
    after = {**files, name: changed(files[name], 0.3)}
    bed.put(name, after[name][: len(after[name]) // 2] if cut else after[name])
    bed.turn(seconds=2)
    bed.turn(seconds=200)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, files if cut else after)
    assert revision(bed)[0] == revision(bed, "patient")[0] == 2
    assert bed.said["slide", "PAT", "1"]["state"] == ("stalled" if cut else "complete")
    bed.put(name, after[name])
    bed.turn(seconds=2)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, after)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_incomplete_slide_that_is_read_again_keeps_its_counts(bed: Bed, tmp_path: Path, frozen: bool) -> None:
    """A cut strip's slide lies at rest, many others have begun since, and its patches are forgotten or not. Some more
    bytes come, and it stalls again: what came counts, and what is still missing is counted as rejected."""
    files = slide_files("strips-b", "1")
    last = list(files)[-1]
    for name, content in files.items():
        bed.put(name, content[: len(content) // 2] if name == last else content)
    bed.turn(seconds=2)
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    if frozen:
        bed.reducer.freeze("PAT", everything=True)
    for number in range(MOST_AT_REST + 1):
        bed.put(PurePosixPath(f"P{number}/1/strips/CH2/IMG00006.dcm"), bytes(200))
    bed.let_time_pass(bed.now)
    bed.now += QUIET_S + 10
    after = {**files, last: files[last][: len(files[last]) * 3 // 4]}
    bed.put(last, after[last])
    assert bed.reopened == [SLIDE]
    bed.turn(seconds=2)
    bed.turn(seconds=200)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, after)


@pytest.mark.parametrize("between", ["nothing", "seconds", "its patient ends", "a restart"])
@pytest.mark.parametrize("order", ["mosaic first", "mosaic last", "mosaic between"])
def test_a_mosaic_of_a_slide_that_is_there_in_strips_does_not_count(
    bed: Bed, tmp_path: Path, order: str, between: str
) -> None:
    """The same tissue in two forms, in any order: the strips count, and one alert tells of the mosaic."""
    strips = slide_files("strips-b", "1")
    mosaic = next(name for name in slide_files("tiff-mosaic", "1"))
    at = {"mosaic first": 0, "mosaic between": 2, "mosaic last": 4}[order]
    names = [*list(strips)[:at], mosaic, *list(strips)[at:]]
    for step, name in enumerate(names):
        bed.put(name, strips.get(name) or slide_files("tiff-mosaic", "1")[name])
        if between == "a restart" and step in (0, 3):
            bed.restart()
        bed.turn(seconds={"nothing": 0.01, "its patient ends": QUIET_S}.get(between, 2.0))
    for seconds in (2, 2, 40, QUIET_S, QUIET_S):
        bed.turn(seconds=seconds)
    assert bed.outcomes()[SLIDE].posterior == expected(tmp_path, strips)
    assert bed.said["slide", "PAT", "1"]["counts"]["seen"] == 42 == len(bed.ledger)
    assert bed.said["slide", "PAT", "1"]["strips"] == {"done": 2, "expected": 2}
    assert len({(of.file_id, of.content) for of in bed.problems if of.reason == "mixed_kinds"}) == 1
    assert bed.reader.wait_s(bed.now) > 1 and bed.assembler.held == 0


def test_a_finished_folder_with_both_forms_counts_the_strips(tmp_path: Path) -> None:
    """As `score` reads it."""
    strips = slide_files("strips-b", "1")
    both = at_once(tmp_path / "both", {**strips, **slide_files("tiff-mosaic", "1")})
    assert both[SLIDE] == at_once(tmp_path / "strips", strips)[SLIDE]
