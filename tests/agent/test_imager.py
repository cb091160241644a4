"""Promises of the synthetic imager: files that other programs read, names that the layouts know, an even pace."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from agent.identity import Plain
from agent.imager import (
    LAYOUTS,
    Layout,
    PlannedFile,
    columns_of,
    dicom_strip,
    mosaic_file,
    plan,
    tiff_two_pages,
    trimmed,
    write_growing,
)
from agent.layouts import Layouts, Placed
from agent.naming import NamingSettings, rules_of
from models.contract import SlideKey
from models.srh.config import SrhInput
from models.srh.patches import grid

Pixels = NDArray[np.uint16]


def program(name: str, package: str) -> str:
    """The path of an external program, which must be there in CI."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def noise(*shape: int, seed: int = 1) -> Pixels:
    """Reproducible pixels."""
    return np.random.default_rng(seed).integers(0, 65_536, shape, dtype=np.uint16)


def strip_bytes(plane_HW: Pixels, accession: str = "ACC1", container: str = "BOX7", comment: str = "") -> bytes:
    """A scan strip of one channel with usual tags."""
    return dicom_strip(plane_HW, accession=accession, container=container, instance_number=3, comment=comment)


class FakeTime:
    """A clock that moves only when somebody waits, and can cancel."""

    def __init__(self, cancel_after_s: float = float("inf"), seen: Callable[[], None] = lambda: None) -> None:
        self.now_s = 100.0
        self.cancel_at_s = 100.0 + cancel_after_s
        self.seen = seen

    def clock(self) -> float:
        """Seconds that have passed by waiting."""
        return self.now_s

    def wait(self, seconds: float) -> bool:
        """Let time pass; True once it is time to cancel."""
        self.seen()
        self.now_s += seconds
        return self.now_s > self.cancel_at_s


def test_strip_is_a_dicom_that_pydicom_reads() -> None:
    """A scan strip is explicit VR little endian, single frame, uint16, with the study's and the slide's numbers."""
    plane_HW = noise(40, 30)
    dataset = pydicom.dcmread(io.BytesIO(strip_bytes(plane_HW, comment="CH3 2930 cm-1")))
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (dataset.AccessionNumber, dataset.ContainerIdentifier) == ("ACC1", "BOX7")
    assert (dataset.InstanceNumber, dataset.ImageComments) == (3, "CH3 2930 cm-1")
    assert dataset.pixel_array.dtype == np.uint16
    np.testing.assert_array_equal(dataset.pixel_array, plane_HW)


def test_strip_header_is_about_one_kilobyte() -> None:
    """The header is as long as the imager's, about 1,080 bytes, and the pixels end the file."""
    plane_HW = noise(20, 1000)
    content = strip_bytes(plane_HW)
    assert 900 <= len(content) - plane_HW.nbytes <= 1200
    assert content.endswith(plane_HW.tobytes())


def test_strip_is_the_same_bytes_again() -> None:
    """Equal arguments give equal bytes, so that a phantom is reproducible; other pixels have another instance."""
    assert strip_bytes(noise(4, 6)) == strip_bytes(noise(4, 6))
    uids = {pydicom.dcmread(io.BytesIO(strip_bytes(noise(4, 6, seed=s)))).SOPInstanceUID for s in range(3)}
    assert len(uids) == 3


def test_long_and_foreign_names_stay_valid_dicom() -> None:
    """A name too long for its DICOM field becomes a digest of it; any script can be written."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = strip_bytes(noise(4, 6), accession="Ä" * 40, container="容" * 80)
        dataset = pydicom.dcmread(io.BytesIO(content))
    assert len(dataset.AccessionNumber) == 16 and dataset.PatientID == "Ä" * 40
    assert len(dataset.ContainerIdentifier) == 64


def test_dcmtk_reads_the_strip(tmp_path: Path) -> None:
    """DCMTK, which shares no code with pydicom, reads every element and the pixel data's length."""
    path = tmp_path / "strip.dcm"
    path.write_bytes(strip_bytes(noise(40, 30)))
    done = subprocess.run([program("dcmdump", "dcmtk"), str(path)], capture_output=True, text=True, check=True)
    assert "LittleEndianExplicit" in done.stdout
    assert "[ACC1]" in done.stdout and "[BOX7]" in done.stdout
    assert "# 2400, 1 PixelData" in done.stdout
    assert "W:" not in done.stderr and "E:" not in done.stderr


def test_tiff_has_two_plain_pages(tmp_path: Path) -> None:
    """tifffile and libtiff read two uncompressed uint16 pages, CH2 first; IFDs come before their pixels."""
    x_2HW = noise(2, 40, 30)
    path = tmp_path / "mosaic.tif"
    path.write_bytes(tiff_two_pages(x_2HW))
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 2
        np.testing.assert_array_equal(np.stack([page.asarray() for page in tif.pages]), x_2HW)
        assert all(page.offset < page.dataoffsets[0] for page in tif.pages)
    done = subprocess.run(
        [program("tiffinfo", "libtiff-tools"), str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Image Width: 30 Image Length: 40") == 2
    assert done.stdout.count("Compression Scheme: None") == 2
    assert done.stderr == ""


def test_patch_file_is_about_360_kb() -> None:
    """A 300 px patch file has the size that OpenSRH's have."""
    assert 360_000 <= len(tiff_two_pages(noise(2, 300, 300))) <= 361_000


def slide_strips(count: int = 2, height: int = 2000) -> list[Pixels]:
    """The scan strips of a slide."""
    return [noise(2, height, 1000, seed=10 + index) for index in range(count)]


def pixels_of(file: PlannedFile) -> Pixels:
    """What pydicom or tifffile reads from a planned file."""
    if file.relative.suffix == ".dcm":
        plane_HW: Pixels = pydicom.dcmread(io.BytesIO(file.content)).pixel_array
        return plane_HW[np.newaxis]
    with tifffile.TiffFile(io.BytesIO(file.content)) as tif:
        return np.stack([page.asarray() for page in tif.pages])


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in ("tiff-mosaic", "opensrh")])
def test_strip_files_are_where_the_layouts_look(layout: Layout) -> None:
    """Each strip file is placed by the rule of its layout on the strip and channel whose pixels it holds."""
    strips = slide_strips()
    layouts = Layouts(rules_of(NamingSettings()), Plain(), by_tags=False)
    files = list(plan(iter(strips), layout, "PAT_1", "2"))
    found = [layouts.place(file.relative) for file in files]
    numbers = sorted({place.part.strip for place in found if isinstance(place, Placed)})
    for file, place in zip(files, found, strict=True):
        assert isinstance(place, Placed) and place.rule == layout
        assert place.part.slide == SlideKey("PAT_1", "2")
        index = numbers.index(place.part.strip)
        assert file.group == index
        expected = strips[index] if place.channel is None else strips[index][[place.channel]]
        np.testing.assert_array_equal(pixels_of(file), expected)


def test_naming_b_counts_in_steps_of_five() -> None:
    """Naming B's first pair is IMG00006 and IMG00007, and the next five further."""
    names = [str(file.relative) for file in plan(slide_strips(height=300), "strips-b", "ST", "SE")]
    folder = "ST/SE/strips"
    assert names == [
        f"{folder}/CH2/IMG00006.dcm",
        f"{folder}/CH3/IMG00007.dcm",
        f"{folder}/CH2/IMG00011.dcm",
        f"{folder}/CH3/IMG00012.dcm",
    ]


def test_mosaic_is_the_trimmed_strips() -> None:
    """A mosaic is the strips without their shared columns, side by side, and can be taken apart again."""
    strips = slide_strips(height=300)
    (file,) = plan(strips, "tiff-mosaic", "P", "S")
    assert file.relative == PurePosixPath("P/S/mosaic.tif")
    mosaic_2HW = pixels_of(file)
    np.testing.assert_array_equal(mosaic_2HW, np.concatenate([s[:, :, 50:950] for s in strips], axis=2))
    for column, whole in zip(columns_of(mosaic_2HW), strips, strict=True):
        np.testing.assert_array_equal(column, trimmed(whole))
    with pytest.raises(ValueError, match="900"):
        list(columns_of(mosaic_2HW[:, :, :-1]))
    assert mosaic_file(mosaic_2HW, "P", "S") == file


def test_opensrh_patches_are_the_grid_of_the_strips() -> None:
    """OpenSRH patches are the patches that the assembler cuts from the strips, each once, at a place of its own."""
    strips = slide_strips()
    layouts = Layouts(rules_of(NamingSettings()), Plain(), by_tags=False)
    ys, xs = grid(2000, 1000, "strip", SrhInput())
    expected = {
        (1000 * index + x - 50, y): whole[:, y : y + 300, x : x + 300]
        for index, whole in enumerate(strips)
        for y in ys
        for x in xs
    }
    files = list(plan(strips, "opensrh", "NIO_097", "2"))
    assert len(files) == len(expected) == 42
    assert [file.group for file in files] == list(range(42))
    assert str(files[-1].relative) == "studies/NIO_097/2/patches/NIO_097-2-1000_1000_600_700.tif"
    for file in files:
        place = layouts.place(file.relative)
        assert isinstance(place, Placed) and place.rule == "opensrh"
        np.testing.assert_array_equal(pixels_of(file), expected.pop(place.part.origin))


def test_plan_takes_strips_one_by_one() -> None:
    """A strip is rendered when its first file is due, not before: memory holds one strip."""
    taken: list[int] = []

    def strips() -> object:
        for index in range(3):
            taken.append(index)
            yield noise(2, 8, 1000)

    files = plan(strips(), "strips-a", "P", "S")  # type: ignore[arg-type]
    next(files), next(files)
    assert taken == [0]


FILES = [(PurePosixPath("a/CH2.dcm"), bytes(range(250)) * 800), (PurePosixPath("a/CH3.dcm"), b"x" * 100_001)]


def sizes(folder: Path) -> tuple[int, ...]:
    """How far FILES have grown."""
    return tuple((folder / relative).stat().st_size for relative, _ in FILES)


def test_files_grow_in_step_and_evenly(tmp_path: Path) -> None:
    """Both files of a strip grow together, in proportion to the time gone; the last byte lands at the end."""
    seen: list[tuple[float, tuple[int, ...]]] = []
    time = FakeTime(seen=lambda: seen.append((time.now_s - 100, sizes(tmp_path))))
    assert write_growing(tmp_path, FILES, 16.0, chunk_kib=8, wait=time.wait, clock=time.clock)
    assert time.now_s == pytest.approx(116.0)
    assert len(seen) == 25
    for elapsed_s, grown in seen:
        for size, (_, content) in zip(grown, FILES, strict=True):
            assert abs(size - len(content) * elapsed_s / 16) <= 8 * 1024
    for relative, content in FILES:
        assert (tmp_path / relative).read_bytes() == content


def test_late_writer_catches_up(tmp_path: Path) -> None:
    """A writer that was held up does not wait any more until it is on schedule again."""
    times = iter([0.0, 30.0, *[31.0] * 100])
    time = FakeTime(cancel_after_s=0.0)
    assert write_growing(tmp_path, FILES, 16.0, wait=time.wait, clock=lambda: next(times))
    assert time.now_s == 100.0
    assert sizes(tmp_path) == tuple(len(content) for _, content in FILES)


def test_cancelled_files_stay_cut(tmp_path: Path) -> None:
    """A cancelled writer stops at once and leaves what a stopped imager leaves."""
    time = FakeTime(cancel_after_s=8.0)
    assert not write_growing(tmp_path, FILES, 16.0, chunk_kib=8, wait=time.wait, clock=time.clock)
    assert all(0 < size < len(content) for size, (_, content) in zip(sizes(tmp_path), FILES, strict=True))


def test_renamed_files_appear_whole(tmp_path: Path) -> None:
    """With `rename` the final name appears only when the file is whole; until then its name is a temporary one."""
    seen: list[set[str]] = []
    time = FakeTime(seen=lambda: seen.append({path.name for path in (tmp_path / "a").iterdir()}))
    write_growing(tmp_path, FILES, 16.0, chunk_kib=8, wait=time.wait, clock=time.clock, rename=True)
    assert set().union(*seen) == {".CH2.dcm.part", ".CH3.dcm.part"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"CH2.dcm", "CH3.dcm"}
    assert sizes(tmp_path) == tuple(len(content) for _, content in FILES)


@pytest.mark.parametrize("rename", [False, True])
def test_no_file_is_replaced(tmp_path: Path, rename: bool) -> None:
    """A file that is already there is never overwritten."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/CH3.dcm").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_growing(tmp_path, FILES, 0.0, rename=rename)
    assert (tmp_path / "a/CH3.dcm").read_bytes() == b"precious"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["CH3.dcm"]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    """The progress reports add up to the bytes written."""
    counts: list[int] = []
    write_growing(tmp_path, FILES, 0.0, progress=counts.append)
    assert sum(counts) == sum(len(content) for _, content in FILES)


def test_empty_file_is_written(tmp_path: Path) -> None:
    """A file without bytes comes into being too."""
    assert write_growing(tmp_path, [(PurePosixPath("empty"), b"")], 0.0)
    assert (tmp_path / "empty").read_bytes() == b""
