"""What fuzzing found, each as a test of its own: the input that broke a promise, and what it must give now."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from pydicom.uid import UID, RLELossless
from safetensors.numpy import save

from agent.engine.manifest import MANIFEST, parse_manifest, read_engine
from agent.errors import EngineError, FormatError, SettingsError
from agent.formats.dicom import DicomParser
from agent.formats.dicom_codecs import CODECS
from agent.identity import Plain
from agent.layouts import Layouts, Unknown, natural
from agent.naming import NamingSettings, rules_of
from agent.settings import load_settings
from models.profile import GOLDEN, ProfileInvalid, load_profile, parse_profile
from tests.agent.formats.tiff_cases import Bytes
from tests.fuzz import documents, seeds
from tests.fuzz.bombs import bombs
from tests.fuzz.dicom_mutation import element
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
REGRESSIONS = sorted((Path(__file__).parent / "corpus").glob("*.case"))


def test_no_bomb_goes_off() -> None:
    """Every small file that claims or expands to a huge one is refused with its reason, in 2 s and 64 MiB at most;
    before, a JPEG 2000 header of a kilobyte took 8 GiB and 74 s, and a TIFF of 1 px tiles asked for 8 GiB at once.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == len(list(bombs()))


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_a_kept_case_breaks_no_promise_again(path: Path) -> None:
    """Inputs of past finds: the name says which target they broke."""
    assert TARGETS[path.name.partition("-")[0]].check(path.read_bytes())


@pytest.mark.parametrize("charset", [b"unicode_escape", b"punycode", b"idna", b"utf-7", b"rot13", b"zlib"])
def test_only_character_sets_of_dicom_are_read(charset: bytes) -> None:
    """A file could name any codec of Python: punycode reads for minutes, unicode_escape makes half a surrogate pair,
    on which the pseudonyms failed and the daemon with them.
    """
    contents = seeds.dicoms()[0]
    for tag, vr, before, after in (
        (b"\x08\x00\x05\x00", b"CS", b"ISO_IR 192", charset + b" " * (len(charset) % 2)),
        (b"\x10\x00\x20\x00", b"LO", b"A-1 ", b"\\ud800"),
    ):
        assert element(tag, vr, before) in contents
        contents = contents.replace(element(tag, vr, before), element(tag, vr, after))
    with pytest.raises(FormatError, match="unsupported: a character set"):
        list(DicomParser(planes=1).advance(Bytes(contents), settled=True))


@pytest.mark.parametrize("charset", [b"ISO_IR 100", b"ISO-IR 100", b"latin-1", b"utf-8", b"cp1252", b"nonsense", b""])
def test_other_names_of_known_character_sets_are_read(charset: bytes) -> None:
    """Slips that are met in the wild, and names that nobody knows, cost no image."""
    contents = seeds.dicoms()[0].replace(b"ISO_IR 192", charset.ljust(10))
    events = list(DicomParser(planes=1).advance(Bytes(contents), settled=True))
    assert len(events) == 3


ENCODED = [syntax for syntax in seeds.FRAMED if syntax != seeds.ENCAPSULATED_UNCOMPRESSED]


@pytest.mark.parametrize("syntax", ENCODED, ids=lambda syntax: str(syntax.name)[:40])
def test_a_cut_stream_with_an_end_marker_is_no_image(syntax: UID) -> None:
    """A coded frame that lost its end, with the end marker set behind the cut, is refused at every cut: decoders of
    JPEG Lossless fill what is missing in silence, and nobody may invent pixels.
    """
    image = seeds.phantom()
    frame = seeds.encoded(image[0], syntax)
    decode = CODECS[str(syntax)]
    assert np.array_equal(decode(frame, *image[0].shape), image[0])
    for cut in range(len(frame) - 2):
        try:
            found = decode(frame[:cut] + b"\xff\xd9", *image[0].shape)
        except FormatError as refusal:
            assert refusal.reason in ("malformed", "limits")
        else:
            assert np.array_equal(found, image[0]), f"cut at byte {cut} of {len(frame)}"


def test_run_lengths_that_cannot_fill_the_image_cost_nothing() -> None:
    """An RLE frame is refused by its length, before room is made for what its header claims."""
    with pytest.raises(FormatError, match="RLE segment of 2 bytes for"):
        CODECS[str(RLELossless)](
            bytes.fromhex("02000000 40000000 42000000".replace(" ", "")).ljust(64, b"\0") + b"\x81\0" * 2, 9999, 9999
        )


def test_names_of_thousands_of_digits_have_their_place_in_the_order() -> None:
    """Sorting names by their numbers stopped at 4300 digits, which Python does not turn into a number."""
    names = ["1" + "0" * 9999, "9", "10", "009", "", "strip_10", "strip_9", "0"]
    assert sorted(names, key=natural) == ["", "0", "9", "009", "10", "1" + "0" * 9999, "strip_9", "strip_10"]


def test_no_rule_is_asked_about_very_long_paths() -> None:
    """The time of a pattern grows with some power of the path's length: beyond 512 characters none is tried."""
    layouts = Layouts(rules_of(NamingSettings()), Plain(), by_tags=False)
    assert not isinstance(layouts.place(PurePosixPath("p" * 500 + "_S_1.dcm")), Unknown)
    assert isinstance(layouts.place(PurePosixPath("p" * 505 + "_S_1.dcm")), Unknown)


LEAST = "folder: f\nstate_dir: s\nprofile: p\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (documents.laughs(merge=False).decode() + LEAST, "values, aliases counted each time"),
        (documents.laughs(merge=True).decode() + LEAST, "values, aliases counted each time"),
        (LEAST + "watch: &a {mode: *a}\n", ":4: not YAML: an alias that contains itself"),
        (LEAST + "site: " + "[" * 3000, ":4: not YAML: it is nested deeper than 32 levels"),
        (LEAST + "site: 2020-99-99\n", "a date, number or tagged value that cannot be read"),
        (LEAST + "site: !!int ''\n", "a date, number or tagged value that cannot be read"),
        (LEAST + "site: !!bool maybe\n", "a date, number or tagged value that cannot be read"),
        (LEAST + "site: !!timestamp x\n", "a date, number or tagged value that cannot be read"),
        (LEAST + f"site: {'9' * 5000}\n", "a date, number or tagged value that cannot be read"),
        (LEAST + "# " + "x" * 70_000, "longer than 65536 characters"),
        ("folder: ~nobody-of-this-name/x\nstate_dir: s\nprofile: p\n", "home folder of a user"),
    ],
)
def test_settings_that_only_look_small_are_refused(text: str, says: str, tmp_path: Path) -> None:
    """Alias bombs, circles, deep nesting and values that PyYAML chokes on are one clear line: before, the agent hung,
    or ended with a traceback.
    """
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    assert says in str(refused.value) and str(refused.value).startswith(f"{path}:")
    assert len(str(refused.value)) < 500


def test_aliases_and_merged_keys_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    """What YAML offers against repetition still works, and an own key may override a merged one."""
    rule = "{name: a, pattern: '(?P<strip>\\d+)', planes_per_file: 2, patient: &who p, slide: *who}"
    path = tmp_path / "agent.yaml"
    path.write_text(f"{LEAST}naming:\n  rules:\n  - &first {rule}\n  - {{<<: *first, name: b}}\n")
    rules = load_settings(path).naming.rules
    assert [(rule.name, rule.slide) for rule in rules] == [("a", "p"), ("b", "p")]


@pytest.mark.parametrize("merge", [False, True])
def test_a_profile_that_only_looks_small_is_refused(merge: bool) -> None:
    """An alias bomb as profile.yaml."""
    with pytest.raises(ProfileInvalid, match="aliases counted each time"):
        parse_profile(documents.laughs(merge=merge))


def test_a_golden_pair_without_a_length_is_refused() -> None:
    """Inputs that are a single number have no length, and ended in a TypeError."""
    golden = save({"inputs": np.array(7, np.uint16), "outputs": np.zeros((1, 4), np.float32)})
    folder = ROOT / "configs" / "profiles" / "phantom"
    manifest = (folder / "profile.yaml").read_bytes()
    wanted = hashlib.sha256((folder / GOLDEN).read_bytes()).hexdigest().encode()
    files = {"profile.yaml": manifest.replace(wanted, hashlib.sha256(golden).hexdigest().encode()), GOLDEN: golden}
    with pytest.raises(ProfileInvalid, match="do not fit"):
        load_profile(lambda name: files.get(name) or (folder / name).read_bytes())


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "..", ".hidden", "", "a/b", "a\\b", "engine.json", "a\0"]
)
def test_an_engine_record_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    """A record that lists files outside its folder, with their right sums, is refused before any is opened."""
    (tmp_path / "outside").write_bytes(b"engine")
    folder = tmp_path / "openvino-fp32-b8"
    folder.mkdir()
    record = json.loads(documents.engine_record().to_json()) | {
        "files": {name: hashlib.sha256(b"engine").hexdigest()}
    }
    (folder / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"not an engine manifest of this version \(see files\)"):
        read_engine(folder, documents.engine_record().profile)


def test_a_deeply_nested_engine_record_is_refused() -> None:
    """JSON within JSON without end is a ValueError, as everything else that is wrong with a record."""
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_manifest(b"[" * 100_000)
