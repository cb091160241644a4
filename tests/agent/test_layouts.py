"""Promises of the layouts: known names are placed, counters never mispair, and no identity comes out."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity import Plain, Pseudonyms
from agent.layouts import Ignored, Layouts, Misnumbered, Place, Placed, Unknown, Waiting, is_temporary
from agent.naming import BUILTINS, NamingRule, NamingSettings, rules_of
from models.contract import Part, SlideKey


def layouts(first_number: int = 0, by_tags: bool = True, **rule: Any) -> Layouts:
    """Layouts with the built-in rules and perhaps one own rule, without pseudonyms."""
    own = (NamingRule(name="own", **rule),) if rule else ()
    naming = NamingSettings(rules=own, first_number=first_number)
    return Layouts(rules_of(naming), Plain(), by_tags)


def place(name: str, **rule: Any) -> Place:
    """Where one file belongs."""
    return layouts(**rule).place(PurePosixPath(name))


def strip(patient: str, slide: str, number: int) -> Part:
    """A scan strip."""
    return Part(SlideKey(patient, slide), "strip", number)


KNOWN = [
    ("ST1/SE2/strips/CH2/IMG00006.dcm", strip("ST1", "SE2", 6), 0, 1, "strips-b"),
    ("ST1/SE2/strips/CH3/IMG00007.dcm", strip("ST1", "SE2", 6), 1, 1, "strips-b"),
    ("a/b/ST1/SE2/strips/ch3/img12.TIFF", strip("ST1", "SE2", 11), 1, 1, "strips-b"),
    ("img3_0_9f2c.dcm", strip("folder", "3", 0), 0, 1, "strips-c"),
    ("P9/img3_0_123.tif", strip("P9", "3", 0), 0, 1, "strips-c"),
    ("2024/07/img3_0_9f2c.dcm", strip("2024/07", "3", 0), 0, 1, "strips-c"),
    ("NIO_097_2_0.dcm", strip("NIO_097", "2", 0), 0, 1, "strips-a"),
    ("in/NIO-1_2_0.tiff", strip("NIO-1", "2", 0), 0, 1, "strips-a"),
    ("P/S/strip_3.tif", strip("P", "S", 3), None, 2, "tiff-strip"),
    ("x/P/S/strip_03.tiff", strip("P", "S", 3), None, 2, "tiff-strip"),
    ("P/S/mosaic.tif", Part(SlideKey("P", "S"), "mosaic", 0), None, 2, "tiff-mosaic"),
    (
        "studies/NIO_097/2/patches/NIO_097-2-2000_1000_600_300.tif",
        Part(SlideKey("NIO_097", "2"), "patch", 0, (2600, 1300)),
        None,
        2,
        "opensrh",
    ),
]


@pytest.mark.parametrize(("name", "part", "channel", "planes", "rule"), KNOWN)
def test_known_names_are_placed(name: str, part: Part, channel: int | None, planes: int, rule: str) -> None:
    """Each of the imager's namings, and its TIFF twin, gives patient, slide, strip and channel."""
    assert place(name) == Placed(part, channel, planes, rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["ST/SE/mosaics/IMG1.dcm", "ST/SE/mosaic/a/b.tif", "x/ST/SE/mosaic/m_1_0.dcm", "meta/opensrh.json", "truth.json"],
)
def test_pictures_and_metadata_are_ignored(name: str) -> None:
    """Virtual H&E pictures and metadata beside the pixels are never taken for input."""
    assert isinstance(place(name), Ignored)


@pytest.mark.parametrize(
    "name",
    [
        "readme.txt",
        "P/S/strip_x.tif",
        "P/S/strip_1.png",
        "strips/CH2/IMG00006.dcm",
        "ST/SE/strips/CH4/IMG00006.dcm",
        "studies/NIO_1/2/patches/NIO_2-2-0_0_0_0.tif",
        "P_S_1234567890.dcm",
        "P_S_.dcm",
        "mosaic.tif",
        "ST/SE/strips/CH2/P_S_0.dcm",
    ],
)
def test_other_names_are_unknown(name: str) -> None:
    """A name that no rule fits as a whole is unknown, never guessed."""
    assert place(name) == Unknown()


@pytest.mark.parametrize(
    "name", [".hidden_1_0.dcm", "P_1_0.dcm.tmp", "P_1_0.dcm.part", "P_1_0.dcm~", ".~lock.P_1_0.dcm#", ".x/P_1_0.dcm"]
)
def test_temporary_names_are_never_images(name: str) -> None:
    """Hidden files and names that will change when the file is whole are left alone."""
    assert is_temporary(PurePosixPath(name))
    assert place(name, pattern=r"(?P<patient>.*)(?P<slide>.)(?P<number>\d).*") == Ignored("temporary")


def counted(layout: str, number: int) -> str:
    """A name with a running counter."""
    return f"P_S_{number}.dcm" if layout == "a" else f"P/img7_{number}_ab{number}.dcm"


@pytest.mark.parametrize("layout", ["a", "c"])
@pytest.mark.parametrize("base", [0, 1, 4])
@settings(deadline=None)
@given(st.data())
def test_counted_files_pair_in_any_order(layout: str, base: int, data: st.DataObject) -> None:
    """Even files are CH2 and odd ones CH3 of the same strip, whatever order and however often they are asked for."""
    numbers = data.draw(st.permutations(range(base, base + 12)))
    asked = layouts(first_number=base)
    seen_first = False
    for number in numbers:
        seen_first = seen_first or number == base
        assert isinstance(asked.place(PurePosixPath(counted(layout, number))), Placed if seen_first else Waiting)
    for number in numbers:
        placed = asked.place(PurePosixPath(counted(layout, number)))
        assert isinstance(placed, Placed)
        assert (placed.part.strip, placed.channel) == ((number - base) // 2, (number - base) % 2)


@settings(deadline=None)
@given(st.permutations(range(1, 9)))
def test_wrong_base_never_pairs(numbers: list[int]) -> None:
    """Files numbered from 1 under a rule that counts from 0 wait, and none is paired with another strip's file."""
    asked = layouts()
    places = [asked.place(PurePosixPath(counted("a", number))) for number in numbers * 2]
    assert all(isinstance(found, Waiting) for found in places)


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_smaller_number_condemns_the_slide(numbers: list[int]) -> None:
    """Files numbered from 0 under a rule that counts from 1 make the slide misnumbered, for all its files."""
    asked = layouts(first_number=1)
    for number in numbers:
        asked.place(PurePosixPath(counted("a", number)))
    again = [asked.place(PurePosixPath(counted("a", number))) for number in numbers]
    assert all(isinstance(found, Misnumbered) for found in again)
    other = asked.place(PurePosixPath("P_T_1.dcm"))
    assert isinstance(other, Placed)


def test_each_slide_waits_for_its_own_first_file() -> None:
    """The first file of one slide does not release another slide's files."""
    asked = layouts()
    assert isinstance(asked.place(PurePosixPath("P_S_0.dcm")), Placed)
    assert isinstance(asked.place(PurePosixPath("P_T_1.dcm")), Waiting)
    assert isinstance(asked.place(PurePosixPath("Q_S_1.dcm")), Waiting)


def test_ch3_before_any_ch2_number_is_misnumbered() -> None:
    """Naming B's CH3 number 0 cannot follow a CH2 file and is told, not turned into strip -1."""
    assert isinstance(place("ST/SE/strips/CH3/IMG0.dcm"), Misnumbered)


def test_nothing_that_comes_out_shows_identity() -> None:
    """Neither keys nor texts hold the patient's or slide's own name."""
    asked = Layouts(rules_of(NamingSettings(first_number=1)), Pseudonyms(b"k" * 32), by_tags=True)
    names = ["MILLER_77_0.dcm", "MILLER_88_2.dcm", "MILLER_99_1.dcm", "MILLER/77/mosaic.tif"]
    places = [asked.place(PurePosixPath(name)) for name in names]
    places.append(asked.place_by_tags({"PatientID": "MILLER", "SeriesInstanceUID": "77", "InstanceNumber": "3"}))
    assert [type(found) for found in places] == [Misnumbered, Waiting, Placed, Placed, Waiting]
    for found in places:
        assert not any(word in repr(found) for word in ("MILLER", "'77'", "'88'", "'99'"))


def test_own_rule_comes_before_the_builtin_ones() -> None:
    """A user's pattern decides even where a built-in rule would fit."""
    found = place("P_S_5.dcm", pattern=r"(?P<patient>[^_]+)_(?P<slide>[^_]+)_(?P<strip>\d+)\.dcm", planes_per_file=2)
    assert found == Placed(strip("P", "S", 5), None, 2, "own")


def test_own_channels_and_templates() -> None:
    """A rule may map its own channel words, and fill patient and slide from other groups or fixed text."""
    rule = {
        "pattern": r"(?P<day>\d+)/(?P<run>\w)(?P<strip>\d+)-(?P<channel>\w+)\.tif",
        "patient": "day {day}",
        "slide": "{day}{run}",
        "channels": {"lipid": 0, "Protein": 1},
    }
    assert place("12/a3-protein.tif", **rule) == Placed(strip("day 12", "12a", 3), 1, 1, "own")
    assert place("12/a3-other.tif", **rule) == Unknown()


def test_wavenumbers_name_channels() -> None:
    """2845 and 2930 cm⁻¹ mean CH2 and CH3 without further settings."""
    pattern = r"(?P<patient>\w)/(?P<slide>\w)/(?P<strip>\d)_(?P<channel>\d+)\.tif"
    assert place("P/S/1_2845.tif", pattern=pattern) == Placed(strip("P", "S", 1), 0, 1, "own")
    assert place("P/S/1_2930.tif", pattern=pattern) == Placed(strip("P", "S", 1), 1, 1, "own")


def test_own_strip_that_is_no_number_is_unknown() -> None:
    """A pattern that catches letters where a number belongs places nothing, and raises nothing."""
    pattern = r"(?P<patient>\w)/(?P<slide>\w)/(?P<strip>\w+)\.tif"
    assert place("P/S/a.tif", pattern=pattern, planes_per_file=2) == Unknown()


@pytest.mark.parametrize("name", BUILTINS)
def test_builtin_rules_can_be_left_out(name: str) -> None:
    """A built-in rule that is not listed places nothing."""
    kept = [builtin for builtin in BUILTINS if builtin != name]
    chosen = rules_of(NamingSettings.model_validate({"builtin": kept}))
    assert chosen and not any(rule.name.startswith(name) for rule in chosen)


def tagged(**tags: str) -> dict[str, str]:
    """Sufficient tags, changed by `tags`."""
    return {"AccessionNumber": "ACC", "ContainerIdentifier": "BOX", "InstanceNumber": "1", **tags}


def test_tags_pair_a_running_counter() -> None:
    """Without a word on the channel, InstanceNumber counts files from 1, CH2 and CH3 in turn."""
    asked = layouts()
    assert isinstance(asked.place_by_tags(tagged(InstanceNumber="2")), Waiting)
    assert asked.place_by_tags(tagged()) == Placed(strip("ACC", "BOX", 0), 0, 1, "dicom-tags")
    assert asked.place_by_tags(tagged(InstanceNumber="2")) == Placed(strip("ACC", "BOX", 0), 1, 1, "dicom-tags")
    assert asked.place_by_tags(tagged(InstanceNumber="3")) == Placed(strip("ACC", "BOX", 1), 0, 1, "dicom-tags")
    assert isinstance(asked.place_by_tags(tagged(InstanceNumber="0")), Misnumbered)


@pytest.mark.parametrize("tag", ["SeriesDescription", "OpticalPathDescription", "ImageComments"])
@pytest.mark.parametrize(("text", "channel"), [("SRH CH2", 0), ("2930 cm-1", 1), ("raman_ch3", 1), ("2845cm-1", 0)])
def test_tags_may_name_the_channel(tag: str, text: str, channel: int) -> None:
    """Where a description names the channel, InstanceNumber is the strip."""
    found = layouts().place_by_tags(tagged(InstanceNumber="4", **{tag: text}))
    assert found == Placed(strip("ACC", "BOX", 4), channel, 1, "dicom-tags")


def test_tags_of_a_file_with_both_channels() -> None:
    """Two frames are CH2 and CH3 of the strip that InstanceNumber names."""
    assert layouts().place_by_tags(tagged(), planes=2) == Placed(strip("ACC", "BOX", 1), None, 2, "dicom-tags")


@pytest.mark.parametrize("text", ["CH2 and CH3", "CH21", "12845", "28450", "channel 2"])
def test_doubtful_descriptions_do_not_name_a_channel(text: str) -> None:
    """A description that names both channels, or a longer word, does not decide."""
    assert isinstance(layouts().place_by_tags(tagged(InstanceNumber="2", SeriesDescription=text)), Waiting)


def test_tags_fall_back_in_order() -> None:
    """PatientID, then StudyInstanceUID stand in for AccessionNumber; SeriesInstanceUID for the container."""
    tags = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "InstanceNumber": "1", "AccessionNumber": ""}
    found = layouts().place_by_tags(tags)
    assert isinstance(found, Placed) and found.part.slide == SlideKey("1.2", "1.3")
    found = layouts().place_by_tags({**tags, "PatientID": "PID"})
    assert isinstance(found, Placed) and found.part.slide == SlideKey("PID", "1.3")


@pytest.mark.parametrize("missing", ["AccessionNumber", "ContainerIdentifier", "InstanceNumber"])
def test_insufficient_tags_are_unknown(missing: str) -> None:
    """Without patient, slide or number the tags decide nothing."""
    assert layouts().place_by_tags({name: text for name, text in tagged().items() if name != missing}) == Unknown()
    assert layouts().place_by_tags(tagged(InstanceNumber="one")) == Unknown()


def test_tags_can_be_switched_off() -> None:
    """With `tags: false` no tag places a file."""
    assert layouts(by_tags=False).place_by_tags(tagged()) == Unknown()
