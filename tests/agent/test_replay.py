"""Promises of replay: the same bytes, in the imager's order and at its pace, or faithfully converted."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray

from agent.errors import AgentError, SettingsError
from agent.finished import read_planes, strips_of, survey
from agent.imager import Layout, patch_files, plan, trimmed
from agent.replay import add_arguments, main, replay
from models.contract import SlideKey

Pixels = NDArray[np.uint16]


def strips(count: int = 2, height: int = 300, seed: int = 0) -> list[Pixels]:
    """Reproducible scan strips."""
    source = np.random.default_rng(seed)
    return [source.integers(0, 65_536, (2, height, 1000), dtype=np.uint16) for _ in range(count)]


def record(folder: Path, layout: Layout, patient: str = "P_1", slide: str = "2", count: int = 2) -> list[Pixels]:
    """Write a finished slide; returns its strips."""
    whole = strips(count)
    for file in plan(whole, layout, patient, slide):
        path = folder / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    return whole


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def at_once(source: Path, folder: Path, **arguments: str) -> list[str]:
    """Replay without pace; returns the paths in the order in which their groups began."""
    order: dict[str, None] = {}
    rate = float("inf")
    assert replay(
        source,
        folder,
        rate=rate,
        as_layout=arguments.get("as_layout"),
        progress=lambda _, path: order.setdefault(str(path)),
    )
    return list(order)


@pytest.mark.parametrize("layout", ["strips-a", "strips-b", "strips-c", "tiff-strip", "tiff-mosaic", "opensrh"])
def test_replayed_files_are_the_same_bytes(tmp_path: Path, layout: Layout) -> None:
    """Every file arrives under its own relative path with its own bytes."""
    record(tmp_path / "in", layout)
    (tmp_path / "in" / "notes.txt").write_text("kept")
    at_once(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


def test_order_is_the_imagers(tmp_path: Path) -> None:
    """Slides come one after the other, strips by number, unknown files last; temporary files never."""
    for slide in ("10", "9"):
        record(tmp_path / "in", "strips-b", "P", slide)
    (tmp_path / "in" / "A.txt").write_text("")
    (tmp_path / "in" / "B.txt").write_text("text")
    (tmp_path / "in" / ".lock").write_text("text")
    order = at_once(tmp_path / "in", tmp_path / "out")
    assert order == [
        "P/9/strips/CH2/IMG00006.dcm",
        "P/9/strips/CH2/IMG00011.dcm",
        "P/10/strips/CH2/IMG00006.dcm",
        "P/10/strips/CH2/IMG00011.dcm",
        "A.txt",
        "B.txt",
    ]
    assert not (tmp_path / "out" / ".lock").exists()


def test_pace_follows_the_bytes(tmp_path: Path) -> None:
    """A replay takes bytes / 1.5 MB/s / rate seconds: 16 s for a strip pair of 6000 rows at rate 1."""
    record(tmp_path / "in", "strips-a")
    total = sum(map(len, contents(tmp_path / "in").values()))
    now_s = 0.0

    def wait(seconds: float) -> bool:
        nonlocal now_s
        now_s += seconds
        return False

    assert replay(tmp_path / "in", tmp_path / "out", rate=4.0, wait=wait, clock=lambda: now_s)
    assert now_s == pytest.approx(total / 24_000_000 * 16 / 4)


def test_channels_grow_in_step(tmp_path: Path) -> None:
    """Both files of a strip grow together, and the next strip has not begun before they are whole."""
    record(tmp_path / "in", "strips-a")
    seen: list[tuple[int, ...]] = []

    def wait(seconds: float) -> bool:
        paths = [tmp_path / "out" / f"P_1_2_{number}.dcm" for number in range(4)]
        seen.append(tuple(path.stat().st_size if path.exists() else -1 for path in paths))
        return False

    replay(tmp_path / "in", tmp_path / "out", rate=100.0, chunk_kib=32, wait=wait)
    assert len(seen) > 20
    for ch2, ch3, next_ch2, next_ch3 in seen:
        assert ch2 == ch3 and next_ch2 == next_ch3
        assert next_ch2 <= 0 or ch2 > 600_000


def test_cancel_stops_the_replay(tmp_path: Path) -> None:
    """A cancelled replay says so and begins no further strip."""
    record(tmp_path / "in", "strips-a")
    assert not replay(tmp_path / "in", tmp_path / "out", wait=lambda seconds: True)
    assert len(contents(tmp_path / "out")) == 2


@pytest.mark.parametrize("layout", ["strips-a", "strips-c", "tiff-strip"])
def test_conversion_to_dicom_strips_keeps_every_pixel(tmp_path: Path, layout: Layout) -> None:
    """Scan strips of any layout become DICOM scan strips with the same pixels."""
    whole = record(tmp_path / "in", layout)
    at_once(tmp_path / "in", tmp_path / "out", as_layout="dicom-strips")
    found = survey(tmp_path / "out").slides()
    assert list(found) == [SlideKey("P_1", "2")]
    for back, expected in zip(strips_of(tmp_path / "out", found[SlideKey("P_1", "2")]), whole, strict=True):
        np.testing.assert_array_equal(back, expected)


def test_conversion_to_mosaics_and_patches(tmp_path: Path) -> None:
    """Strips become the mosaic of their trimmed columns, and strips and mosaics become the same patches."""
    whole = record(tmp_path / "in", "strips-b")
    at_once(tmp_path / "in", tmp_path / "mosaic", as_layout="tiff-mosaic")
    mosaic_2HW = read_planes(tmp_path / "mosaic" / "P_1" / "2" / "mosaic.tif", 2)
    np.testing.assert_array_equal(mosaic_2HW, np.concatenate([trimmed(part) for part in whole], axis=2))
    at_once(tmp_path / "in", tmp_path / "patches", as_layout="patches")
    at_once(tmp_path / "mosaic", tmp_path / "again", as_layout="patches")
    expected = {str(f.relative): f.content for f in patch_files([trimmed(part) for part in whole], "P_1", "2")}
    assert contents(tmp_path / "patches") == contents(tmp_path / "again") == expected


@pytest.mark.parametrize(("layout", "wanted"), [("tiff-mosaic", "dicom-strips"), ("opensrh", "tiff-mosaic")])
def test_lost_pixels_are_never_invented(tmp_path: Path, layout: Layout, wanted: str) -> None:
    """A conversion that would need pixels the source no longer has is refused."""
    record(tmp_path / "in", layout)
    with pytest.raises(SettingsError, match="never invented"):
        at_once(tmp_path / "in", tmp_path / "out", as_layout=wanted)


def test_strip_without_its_channel_is_not_converted(tmp_path: Path) -> None:
    """A strip that lacks CH3 is told by number and channel."""
    record(tmp_path / "in", "strips-a")
    (tmp_path / "in" / "P_1_2_3.dcm").unlink()
    with pytest.raises(AgentError, match="strip 1 has no CH3"):
        at_once(tmp_path / "in", tmp_path / "out", as_layout="patches")


def test_unreadable_strip_is_named(tmp_path: Path) -> None:
    """A truncated or foreign file stops a conversion with its path, and no traceback."""
    record(tmp_path / "in", "strips-a")
    broken = tmp_path / "in" / "P_1_2_1.dcm"
    whole = broken.read_bytes()
    for content in (whole[:5000], b"no image", whole[:140]):
        broken.write_bytes(content)
        with pytest.raises(AgentError, match=r"P_1_2_1\.dcm"):
            at_once(tmp_path / "in", tmp_path / "out", as_layout="patches")


def test_source_is_never_fed_back(tmp_path: Path) -> None:
    """The target may not be the source nor lie in it, not even through a link."""
    record(tmp_path / "in", "strips-a")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for folder in (tmp_path / "in", tmp_path / "in" / "deeper", tmp_path / "link"):
        with pytest.raises(SettingsError, match="source"):
            replay(tmp_path / "in", folder)


def test_existing_files_are_never_replaced(tmp_path: Path) -> None:
    """A second replay into the same folder stops at the first file that is there."""
    record(tmp_path / "in", "strips-a")
    at_once(tmp_path / "in", tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(AgentError, match="already there"):
        at_once(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_impossible_rate_is_refused(tmp_path: Path, rate: float) -> None:
    """A rate that is not above 0 is a wrong argument."""
    record(tmp_path / "in", "strips-a")
    with pytest.raises(SettingsError, match="rate"):
        replay(tmp_path / "in", tmp_path / "out", rate=rate)


def test_empty_or_missing_source_is_refused(tmp_path: Path) -> None:
    """A source without files is a wrong argument, told by name."""
    for source in (tmp_path / "absent", tmp_path):
        with pytest.raises(SettingsError, match=str(source)):
            replay(source, tmp_path.parent / "elsewhere")


def test_command_replays(tmp_path: Path) -> None:
    """`agent replay SOURCE FOLDER --rate inf --rename` plays every file and returns 0."""
    record(tmp_path / "in", "strips-c")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([str(tmp_path / "in"), str(tmp_path / "out"), "--rate", "inf", "--rename"])
    assert main(args) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    assert "seconds = bytes" in parser.format_help()


def test_every_way_to_hold_two_channels_is_read(tmp_path: Path) -> None:
    """Two pages, two interleaved samples and two separate samples give the same planes, in either byte order."""
    x_2HW = strips(1)[0]
    path = tmp_path / "x.tif"
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        for samples, config in ((x_2HW, "separate"), (np.moveaxis(x_2HW, 0, -1), "contig")):
            tifffile.imwrite(path, samples, byteorder=order, photometric="minisblack", planarconfig=config)
            np.testing.assert_array_equal(read_planes(path, 2), x_2HW)
    with pytest.raises(AgentError, match="expected uint16"):
        read_planes(path, 1)


def test_compressed_and_implicit_dicom_is_read(tmp_path: Path) -> None:
    """A finished DICOM of another transfer syntax gives the same plane."""
    record(tmp_path / "in", "strips-a", count=1)
    source = tmp_path / "in" / "P_1_2_0.dcm"
    expected = read_planes(source, 1)
    dataset = pydicom.dcmread(source)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(read_planes(tmp_path / "rle.dcm", 1), expected)


def test_slides_of_one_folder_stay_apart(tmp_path: Path) -> None:
    """Converted slides of several patients keep their names, and a folder path becomes one name."""
    record(tmp_path / "in" / "a", "strips-c", "b", "1")
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "c")
    at_once(tmp_path / "in", tmp_path / "out", as_layout="tiff-mosaic")
    names = {PurePosixPath(name).parent.as_posix() for name in contents(tmp_path / "out")}
    assert names == {"a_b/1", "c_b/1"}
