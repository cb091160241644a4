"""Files whose pixels change after they were read: the answer follows, and says that it is a correction."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from agent.imager import dicom_strip
from agent.intake import PatientClosed, SlideClosed
from models.contract import SlideKey
from tests.fakes import ToldFolder
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

    def turn(self, *touched: str, seconds: float = 0.01) -> None:
        """Let time pass and poll."""
        self.folder.touched += touched
        self.now += seconds
        self.poll(self.now)

    def restart(self, finished: object = ()) -> None:
        """As the pipeline does: slides that were being read again do not count as finished."""
        super().restart()


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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
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
    for name, content in files.items():
        bed.put(name, content)
    copy = PurePosixPath("PAT/1/strips/CH2/IMG6.dcm")
    assert not bed.files
    bed.put(copy, next(iter(files.values())))
    bed.turn(seconds=2)
    whole = {row.file_id: row.sha256 for row in bed.files.values() if row.outcome == "whole"}
    assert whole == {str(name): hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert [row.file_id for row in bed.files.values() if row.outcome == "duplicate"] == [str(copy)]


def test_the_newest_slide_goes_first(tmp_path: Path) -> None:
    """Of a full folder the newest slide is read first; what arrives then goes before the rest; nothing starves."""
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


def test_a_strip_of_another_height_replaces_its_slide(bed: Bed) -> None:
    """A file of a complete slide replaced by one of another height: the alert says so, the agent goes on."""
    files = slide_files("strips-b", "1")
    for name, content in files.items():
        bed.put(name, content)
    bed.turn(seconds=2)
    name = next(iter(files))
    taller = np.full((4000, 1000), 5_000, np.uint16)
    bed.put(name, dicom_strip(taller, accession="PAT", container="1", instance_number=6))
    bed.turn(seconds=2)
    bed.turn(seconds=200)
    assert {problem.reason for problem in bed.problems} & {"wrong_shape", "stalled"}
    assert len({row.key for row in bed.ledger}) == len(bed.ledger)
