"""The READER room against bad input: one clear problem each, the rest of the slide goes on, the counts show it."""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import tifffile

from agent.acquisition import State
from agent.imager import dicom_strip, tiff_two_pages
from agent.intake import PatientClosed, SlideClosed
from models.contract import SlideKey
from tests.fakes import ToldFolder
from tests.reading import Bench, at_once, slide_files

SLIDE = SlideKey("PAT", "1")
PATCHES = 21
"""Patches of one strip of 2000 rows."""


def strip_b(channel: int, number: int) -> PurePosixPath:
    """Name of a strip's file in naming B."""
    return PurePosixPath("PAT", "1", "strips", f"CH{2 + channel}", f"IMG{6 + 5 * number + channel:05d}.dcm")


class Folder(Bench):
    """A bench with a clock of its own and files put into its folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(ToldFolder(root))
        self.now = 0.0

    def put(self, name: PurePosixPath, content: bytes, *, more: bool = False) -> None:
        """Write (or append to) a file and tell the reader."""
        path = self.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if more else "wb") as file:
            file.write(content)
        self.turn(str(name))

    def turn(self, *touched: str, seconds: float = 0.01) -> None:
        """Let time pass and poll."""
        self.folder.touched += touched
        self.now += seconds
        self.poll(self.now)

    def reasons(self) -> Counter[str]:
        """Problems by reason."""
        return Counter(problem.reason for problem in self.problems)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty watched folder."""
    return Folder(tmp_path)


def rgb_tiff() -> bytes:
    """An 8-bit colour picture."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    return buffer.getvalue()


def float_tiff() -> bytes:
    """Pixels that are not a number."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((2, 2000, 1000), np.nan, np.float32), photometric="minisblack")
    return buffer.getvalue()


def small_dicom() -> bytes:
    """A strip of an impossible height."""
    return dicom_strip(np.ones((100, 1000), np.uint16), accession="PAT", container="1", instance_number=1)


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "truncated": (lambda good: good[: len(good) // 2], "truncated", "truncated"),
    "cut header": (lambda good: good[:600], "truncated", "truncated"),
    "not an image": (lambda _: b"GIF89a" + bytes(range(256)) * 100, "not_an_image", "unreadable"),
    "wrong shape": (lambda _: small_dicom(), "wrong_shape", "unreadable"),
    "8-bit colour": (lambda _: rgb_tiff(), "wrong_type", "unreadable"),
    "NaN": (lambda _: float_tiff(), "wrong_type", "unreadable"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("channel", [0, 1])
def test_a_bad_file_costs_its_strip_only(folder: Folder, kind: str, channel: int) -> None:
    """One problem with the reason; the other strip's patches count; the lost ones are counted as rejected."""
    spoil, reason, counted_as = BAD_FILES[kind]
    for name, content in slide_files("strips-b", "1").items():
        bad = name == strip_b(channel, 0)
        folder.put(name, spoil(content) if bad else content)
    folder.turn(seconds=2)
    folder.turn(seconds=200)
    outcome = folder.outcomes()[SLIDE]
    assert folder.reasons() == {reason: 1, "stalled": 1}
    assert outcome.state is State.STALLED and outcome.done == 1 and outcome.expected == 2
    counts = outcome.posterior.counts
    assert counts.seen == counts.used + sum(counts.rejected.values()) == 2 * PATCHES
    early = sum(row.key.strip == 6 for row in folder.ledger)
    assert counts.rejected[counted_as] == PATCHES - early
    assert (early > 0) == (kind == "truncated")


def test_a_bad_file_counts_the_same_for_score_and_stream(
    folder: Folder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A slide with a cut file gives the same outcome when it streamed in and when it is read at once."""
    files = slide_files("strips-b", "1")
    files = {n: (c[: len(c) // 3] if n == strip_b(1, 1) else c) for n, c in files.items()}
    for name, content in files.items():
        folder.put(name, content)
    folder.turn(seconds=200)
    folder.take(folder.reader.close_patient(None))
    assert folder.outcomes() == at_once(tmp_path_factory.mktemp("whole"), files)


@pytest.mark.parametrize("channel", [0, 1])
def test_a_missing_channel_is_told_and_counted(folder: Folder, channel: int) -> None:
    """A strip whose other channel never comes: one problem, its patches rejected as missing_channel."""
    for name, content in slide_files("strips-b", "1").items():
        if name != strip_b(channel, 1):
            folder.put(name, content)
    folder.turn(seconds=200)
    outcome = folder.outcomes()[SLIDE]
    assert folder.reasons() == {"missing_channel": 1, "stalled": 1}
    assert outcome.posterior.counts.rejected["missing_channel"] == PATCHES
    assert outcome.posterior.counts.seen == 2 * PATCHES


@pytest.mark.parametrize("first", [0, 1])
def test_shapes_that_differ_are_told_once_whichever_came_first(folder: Folder, first: int) -> None:
    """CH2's shape rules: the same refusal and the same counts in both orders of arrival."""
    files = slide_files("strips-b", "1")
    tall = dicom_strip(np.ones((4000, 1000), np.uint16), accession="PAT", container="1", instance_number=2)
    pair = [(strip_b(0, 0), files[strip_b(0, 0)]), (strip_b(1, 0), tall)]
    for name, content in pair if first == 0 else pair[::-1]:
        folder.put(name, content)
    folder.turn(seconds=2)  # the refused one is judged once more when it has settled
    folder.turn(seconds=200)
    outcome = folder.outcomes()[SLIDE]
    assert folder.reasons() == {"wrong_shape": 1, "stalled": 1}
    assert outcome.expected == 2
    assert outcome.posterior.counts.rejected == {"unreadable": PATCHES}


def test_a_vanished_file_is_told(folder: Folder) -> None:
    """A file removed half-way: one problem, what was seen stays counted, the rest is rejected as vanished."""
    files = slide_files("strips-b", "1")
    folder.put(strip_b(0, 0), files[strip_b(0, 0)])
    folder.put(strip_b(1, 0), files[strip_b(1, 0)][:2_000_000])
    used = len(folder.ledger)
    (folder.folder.folder / strip_b(1, 0)).unlink()
    folder.folder.removed.append(str(strip_b(1, 0)))
    folder.turn()
    folder.turn(seconds=200)
    counts = folder.outcomes()[SLIDE].posterior.counts
    assert folder.reasons() == {"vanished": 1, "stalled": 1}
    assert 0 < used < PATCHES and counts.rejected["vanished"] == PATCHES - used


def test_a_replaced_file_is_read_again_and_counts_once(folder: Folder) -> None:
    """A file cut and written again: told once, every patch counted once."""
    files = slide_files("strips-b", "1")
    for name, content in files.items():
        folder.put(name, content[: 3_000_000 if name == strip_b(0, 1) else None])
    folder.put(strip_b(0, 1), files[strip_b(0, 1)][:1000])
    folder.put(strip_b(0, 1), files[strip_b(0, 1)][1000:], more=True)
    outcome = folder.outcomes()[SLIDE]
    assert folder.reasons() == {"rewritten": 1}
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == 2 * PATCHES


def test_constant_blocks_are_rejected_and_the_rest_goes_on(folder: Folder) -> None:
    """A strip of zeros is taken once it has settled; its patches are rejected as constant, and it is told once."""
    files = slide_files("strips-b", "1")
    blank = dicom_strip(np.zeros((2000, 1000), np.uint16), accession="PAT", container="1", instance_number=1)
    for name, content in files.items():
        folder.put(name, blank if name == strip_b(0, 0) else content)
    assert folder.outcomes()[SLIDE].state is State.RECEIVING
    folder.turn(seconds=1.5)
    outcome = folder.outcomes()[SLIDE]
    assert outcome.state is State.COMPLETE
    assert outcome.posterior.counts.rejected["constant"] == PATCHES
    assert folder.reasons() == {"constant": 1}


def test_an_image_that_no_rule_knows_is_told_and_other_files_are_ignored(folder: Folder) -> None:
    """An unplaceable image is a problem (the naming may be wrong); a text file is not."""
    folder.put(PurePosixPath("holiday.tif"), tiff_two_pages(np.ones((2, 300, 300), np.uint16)))
    folder.put(PurePosixPath("notes.txt"), b"dear diary" * 50)
    folder.put(PurePosixPath("broken.dcm"), b"dear diary" * 50)
    folder.turn(seconds=2)
    assert folder.reasons() == {"unknown_name": 1, "not_an_image": 1}
    assert not folder.outcomes()


def test_tags_place_what_no_name_does(folder: Folder) -> None:
    """DICOM strips under names that no rule knows are placed by their tags."""
    for index, content in enumerate(slide_files("strips-a", "1").values()):
        folder.put(PurePosixPath(f"export {index} final.dcm"), content)
    folder.turn(seconds=2)
    (outcome,) = folder.outcomes().values()
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == 2 * PATCHES


def test_a_stalled_slide_that_goes_on_gets_a_second_closing(folder: Folder) -> None:
    """After silence the slide closes as stalled; when its bytes come after all it closes again, complete."""
    files = slide_files("strips-b", "1")
    last = strip_b(1, 1)
    for name, content in files.items():
        folder.put(name, content[: 1_000_000 if name == last else None])
    folder.turn(seconds=200)
    assert folder.outcomes()[SLIDE].state is State.STALLED
    folder.put(last, files[last][1_000_000:], more=True)
    outcome = folder.outcomes()[SLIDE]
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == 2 * PATCHES
    assert "truncated" not in outcome.posterior.counts.rejected
    assert [type(closed) for closed in folder.closed] == [SlideClosed, SlideClosed]


def test_a_patient_ends_when_the_next_begins(folder: Folder) -> None:
    """The first byte of the next patient closes this one, after its slides; late bytes open it again."""
    files = slide_files("strips-b", "1")
    for name, content in files.items():
        folder.put(name, content[: 1_000_000 if name == strip_b(1, 1) else None])
    name, content = next(iter(slide_files("strips-b", "2").items()))
    folder.put(PurePosixPath("NEXT", *name.parts[1:]), content)
    assert folder.closed == [SlideClosed(SLIDE, {"truncated": 18}), PatientClosed("PAT")]
    folder.put(strip_b(1, 1), files[strip_b(1, 1)][1_000_000:], more=True)
    assert folder.outcomes()[SLIDE].state is State.COMPLETE
    assert folder.outcomes()[SLIDE].posterior.counts.seen == 2 * PATCHES


def test_a_patient_ends_after_a_quiet_time_and_on_command(folder: Folder) -> None:
    """Silence closes the patient once; a command closes whoever is open."""
    for name, content in slide_files("strips-b", "1").items():
        folder.put(name, content)
    folder.turn(seconds=899)
    assert folder.closed == [SlideClosed(SLIDE, {})]
    folder.turn(seconds=2)
    assert folder.closed[1:] == [PatientClosed("PAT")]
    folder.take(folder.reader.close_patient(None))
    assert len(folder.closed) == 2


def test_files_of_a_finished_slide_are_not_read_again(folder: Folder) -> None:
    """After completion, copies and touches of its files change nothing and reopen nobody."""
    files = slide_files("strips-b", "1")
    for name, content in files.items():
        folder.put(name, content)
    folder.take(folder.reader.close_patient(None))
    before = folder.outcomes()
    folder.put(strip_b(0, 0), b"more", more=True)
    folder.put(PurePosixPath("PAT/1/strips/CH2/IMG000006.dcm"), files[strip_b(0, 0)])
    folder.turn(seconds=2000)
    assert folder.outcomes() == before and len(folder.closed) == 2


def test_temporary_names_wait_for_their_rename(folder: Folder) -> None:
    """A file under a temporary name is not read; after its rename it is."""
    files = slide_files("tiff-mosaic", "1")
    ((name, content),) = files.items()
    hidden = name.with_name(f".{name.name}.part")
    folder.put(hidden, content)
    assert not folder.outcomes()
    (folder.folder.folder / hidden).rename(folder.folder.folder / name)
    folder.folder.removed.append(str(hidden))
    folder.turn(str(name))
    (outcome,) = folder.outcomes().values()
    assert outcome.state is State.COMPLETE


def test_preallocated_files_wait_for_their_pixels(folder: Folder) -> None:
    """Files that have their full size from the start, as zeros, give patches only as real rows arrive."""
    files = slide_files("strips-b", "1")
    names = [strip_b(0, 0), strip_b(1, 0)]
    for name in names:
        folder.put(name, files[name][:2000] + bytes(len(files[name]) - 2000))
    assert not folder.ledger
    for name in names:
        path = folder.folder.folder / name
        with path.open("r+b") as file:
            file.write(files[name][:1_500_000])
        folder.turn(str(name))
    keys = {row.key.y for row in folder.ledger}
    assert keys == {0, 300}
    for name in names:
        with (folder.folder.folder / name).open("r+b") as file:
            file.write(files[name])
        folder.turn(str(name))
    assert {row.key.y for row in folder.ledger} == {0, 300, 600, 900, 1200, 1500, 1700}
    assert all(row.rejected != "constant" for row in folder.ledger)


def test_a_patient_who_was_open_before_a_restart_still_ends(folder: Folder) -> None:
    """All slides complete, then a restart: the patient's end still comes after the quiet time."""
    for name, content in slide_files("strips-b", "1").items():
        folder.put(name, content)
    folder.turn(seconds=2)
    folder.restart(finished=[SLIDE])
    folder.turn()
    folder.turn(seconds=899)
    assert [type(closed) for closed in folder.closed] == [SlideClosed]
    folder.turn(seconds=2)
    assert folder.closed[1:] == [PatientClosed("PAT")]


def test_patches_of_an_ended_patient_are_not_lost(folder: Folder) -> None:
    """Where nothing tells how many patches a slide has, one that comes after the patient's end still counts."""
    files = list(slide_files("opensrh", "1").items())
    for name, content in files[:-1]:
        folder.put(name, content)
    folder.turn(seconds=1000)
    assert [type(closed) for closed in folder.closed] == [SlideClosed, PatientClosed]
    folder.put(*files[-1])
    folder.turn(seconds=1000)
    (outcome,) = folder.outcomes().values()
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == len(files)
    assert [type(closed) for closed in folder.closed[2:]] == [SlideClosed, PatientClosed]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that everybody may enter, while the test runs without root's power over permissions."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o777)
        was = os.geteuid()
        os.seteuid(65534 if was == 0 else was)
        try:
            yield root
        finally:
            os.seteuid(was)


def test_a_file_without_permission_is_told_once_and_read_when_it_can_be(unprivileged: Path) -> None:
    """Permission denied: one problem, no spinning; after chmod the slide goes on."""
    folder = Folder(unprivileged)
    files = list(slide_files("strips-b", "1").items())
    for name, content in files[1:]:
        folder.put(name, content)
    name, content = files[0]
    path = unprivileged / name
    path.write_bytes(content)
    path.chmod(0)
    for _ in range(3):
        folder.turn(str(name))
    assert folder.reasons() == {"not_readable": 1}
    folder.turn(seconds=1.5)
    assert 4 < folder.reader.wait_s(folder.now) <= 5
    path.chmod(0o600)
    folder.turn(seconds=5)
    assert folder.outcomes()[SLIDE].state is State.COMPLETE


def test_old_patients_in_the_folder_end_nobody(folder: Folder) -> None:
    """What lay there at the start, and late bytes of an earlier patient, do not end the patient on the table."""
    files = slide_files("strips-b", "1")
    cut = strip_b(1, 1)
    for name, content in files.items():
        (folder.folder.folder / "OLD" / PurePosixPath(*name.parts[1:])).parent.mkdir(parents=True, exist_ok=True)
        old = folder.folder.folder / "OLD" / PurePosixPath(*name.parts[1:])
        old.write_bytes(content[:900_000] if name == cut else content)
        folder.put(name, content[:1_000_000])
    folder.restart()
    folder.turn()
    assert not folder.closed
    for name, content in files.items():
        folder.put(PurePosixPath("NEW", *name.parts[1:]), content)
    assert {c.patient for c in folder.closed if isinstance(c, PatientClosed)} == {"OLD", "PAT"}
    folder.closed.clear()
    folder.put(PurePosixPath("OLD", *cut.parts[1:]), b"late", more=True)
    assert not folder.closed


def test_a_counter_that_starts_elsewhere_is_told(folder: Folder) -> None:
    """Naming A from number 1 while the settings say 0: nothing is paired, and after a while it is told, once."""
    for index, content in enumerate(slide_files("strips-a", "1").values()):
        folder.put(PurePosixPath(f"PAT_1_{index + 1}.dcm"), content)
    folder.turn(seconds=119)
    assert not folder.problems
    folder.turn(seconds=2)
    folder.turn(seconds=200)
    assert folder.reasons() == {"waiting": 1}
    assert "number 0" in folder.problems[0].detail
    assert not folder.outcomes()


def test_a_temporary_name_that_nobody_knows_counts_nothing_twice(folder: Folder) -> None:
    """Files written as X.dcm.export and renamed: one slide, no ghost, no alert."""
    for name, content in slide_files("strips-a", "1").items():
        strange = name.with_name(name.name + ".export")
        folder.put(strange, content[: len(content) // 2])
        folder.put(strange, content[len(content) // 2 :], more=True)
        (folder.folder.folder / strange).rename(folder.folder.folder / name)
        folder.folder.removed.append(str(strange))
        folder.turn(str(name))
    folder.turn(seconds=2)
    (outcome,) = folder.outcomes().values()
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == 2 * PATCHES
    assert not folder.problems


@pytest.mark.parametrize("when", ["together", "afterwards"])
def test_a_copy_among_files_placed_by_tags_changes_nothing(folder: Folder, when: str) -> None:
    """A copy under another name is told as a duplicate and not read, during the slide and after it."""
    files = list(slide_files("strips-a", "1").values())
    if when == "together":
        folder.put(PurePosixPath("copy.dcm"), files[0])
    for index, content in enumerate(files):
        folder.put(PurePosixPath(f"export{index}.dcm"), content)
    if when == "afterwards":
        folder.put(PurePosixPath("copy.dcm"), files[0])
    folder.turn(seconds=2)
    assert folder.reader.wait_s(folder.now) > 1
    folder.turn(seconds=200)
    (outcome,) = folder.outcomes().values()
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == 2 * PATCHES
    assert folder.reasons() == {"duplicate": 1}
    assert {type(closed) for closed in folder.closed} == {SlideClosed}


def test_a_copy_takes_over_when_the_first_file_is_lost(folder: Folder) -> None:
    """A reserve that was told as a duplicate is read when the file before it vanishes half-way."""
    files = slide_files("strips-b", "1")
    first, copy = strip_b(0, 0), PurePosixPath("PAT/1/strips/CH2/IMG000006.dcm")
    folder.put(first, files[first][:2_000_000])
    for name, content in files.items():
        if name != first:
            folder.put(name, content)
    folder.put(copy, files[first])
    (folder.folder.folder / first).unlink()
    folder.folder.removed.append(str(first))
    folder.turn()
    outcome = folder.outcomes()[SLIDE]
    assert outcome.state is State.COMPLETE and outcome.posterior.counts.seen == 2 * PATCHES
    assert folder.reasons() == {"duplicate": 1, "vanished": 1}


def test_more_bytes_behind_the_pixels_change_nothing(folder: Folder) -> None:
    """A file of a complete slide that grows without new pixels is looked at and says nothing."""
    files = slide_files("strips-b", "1")
    for name, content in files.items():
        folder.put(name, content)
    before = folder.outcomes()
    folder.turn(*(str(name) for name in files))
    for _ in range(3):
        folder.put(strip_b(0, 0), b"\0\0\0\0", more=True)
        folder.turn(seconds=2)
    assert not folder.problems
    assert folder.outcomes() == before
