"""What the readers of settings, commands, profiles and engine records owe us: their own error, in a short time, and
no file but those in the folder that they were told.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save

from agent.commands import COMMANDS, Body, parse_body, request_id_of
from agent.engine.device import this_cpu
from agent.engine.manifest import MANIFEST, Manifest, ProfileRef, read_engine
from agent.engine_limits import STRICT
from agent.errors import EngineError, ProfileError, SettingsError
from agent.outlets import Verb
from agent.profile_folder import load_profile_folder
from agent.settings import example_yaml, load_settings
from models.profile import GOLDEN, REFERENCE, WEIGHTS
from models.profile import MANIFEST as PROFILE
from tests.agent.engine.unproven import made_up_figures
from tests.fuzz.cage import only_within, scratch, write
from tests.fuzz.mutation import Mutator, mutated

_SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "profiles" / "phantom"


# Settings

_YAML = (
    *(
        b"&a ",
        b"*a",
        b"*b",
        b"<<: *a\n",
        b"<<: [*a, *a, *a]\n",
        b"!!python/object/apply:os.system ['true']",
        b"!!binary",
    ),
    *(
        b"!!timestamp x",
        b"2020-99-99",
        b"!!int ''",
        b"!!float x",
        b"!!bool maybe",
        b"!!set {a}",
        b"!!omap [a]",
        b"? ",
        b"- ",
    ),
    *(
        b"[" * 3000,
        b"{a: " * 1500,
        b"\t",
        b"%YAML 9.9\n---\n",
        b"---\n",
        b"...\n",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\0",
        b"\x07",
    ),
    *(
        b"9" * 5000,
        b"1:60:60",
        b"0x",
        b"0b",
        b".inf",
        b".nan",
        b"1e999",
        b"-",
        b"~",
        b"null",
        b"'",
        b'"\\ud800"',
        b"|\n",
    ),
    *(
        b"- &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n",
        b"a: &a [*a]\n",
        b"..",
        b"/etc/passwd",
        b"\n" * 500,
        b": ",
        b"#",
    ),
)


def laughs(*, merge: bool, levels: int = 12, width: int = 9) -> bytes:
    """A few hundred bytes that expand to width ** levels nodes, for a reader who follows every alias."""
    lines = ["a0: &a0 {k: v}" if merge else "a0: &a0 [x]"]
    for level in range(1, levels):
        names = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {{'<<': [{names}]}}" if merge else f"a{level}: &a{level} [{names}]")
    return "\n".join(lines).replace("'<<'", "<<").encode() + b"\n"


def _small(settings: bytes) -> bytes:
    return b"\n".join(line for line in settings.splitlines() if line.strip() and not line.lstrip().startswith(b"#"))


@cache
def settings_seeds() -> tuple[bytes, ...]:
    """The example, what must be there alone, own naming rules, and two alias bombs."""
    least = b"folder: f\nstate_dir: s\nprofile: p\n"
    rule = (
        b"naming:\n  rules:\n  - {name: lab, pattern: '(?P<strip>\\d+)_(?P<channel>CH[23])', patient: p, slide: s}\n"
    )
    bombs = tuple(least + b"naming:\n  rules: *a11\n" + laughs(merge=merge) for merge in (False, True))
    bombs += tuple(laughs(merge=merge) + least for merge in (False, True))
    return (_small(example_yaml().encode()), least, least + rule, *bombs)


def _token(words: tuple[bytes, ...]) -> Mutator:
    def put(rng: Random, data: bytearray) -> None:
        """A word of the language, between others or in the place of some."""
        starts = [0, *(index + 1 for index, byte in enumerate(data) if byte in b'\n :,[]{}"')]
        at = rng.choice(starts)
        data[at : at + rng.choice((0, 0, 1, 5))] = rng.choice(words)

    return put


def make_settings(rng: Random) -> bytes:
    """A settings file, mutated."""
    return mutated(rng, settings_seeds(), (_token(_YAML),))


def check_settings(case: bytes) -> str:
    """Read as the daemon does: settings, or SettingsError whose every line names the file."""
    path = scratch() / "agent.yaml"
    write(path, case)
    with only_within(path.parent):
        try:
            load_settings(path)
        except SettingsError as error:
            text = str(error)
            assert len(text) < 20_000, "an error message that fills the screen"
            assert str(path) in text.splitlines()[0]
            return "refused"
    return "accepted"


# Commands

_JSON = (
    *(
        b"{",
        b"}",
        b"[" * 1000,
        b'"',
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b'"\\ud800"',
        b"\xff",
    ),
    *(
        b'"request_id"',
        b'"patient"',
        b'"use"',
        b'"x":',
        b",",
        b":",
        b"\0",
        b"-0",
        b'"SMITH^ANNA"',
        b"\\u0000",
        b'{"a":' * 500,
    ),
    *(b'"files"', b'"../../etc/passwd"', b'"/etc/passwd"', b'"format": 1,', b"[]", b"{}", b'""', b"1", b"0.5", b"-1"),
)
_BODIES = (
    b"",
    b"{}",
    b'{"request_id": "1-a"}',
    b'{"patient": "abcdefgh234567ab"}',
    b'{"use": "eager", "request_id": "7"}',
)
_VERBS: tuple[Verb, ...] = tuple(COMMANDS)


def make_command(rng: Random) -> bytes:
    """A number that chooses the verb, and a body, mutated."""
    return bytes([rng.randrange(len(_VERBS))]) + mutated(rng, _BODIES[1:], (_token(_JSON),))


def check_command(case: bytes) -> str:
    """A body, or one sentence of bounded length that repeats nothing of what came."""
    verb, payload = _VERBS[case[0] % len(_VERBS) if case else 0], case[1:]
    found, request = parse_body(verb, payload), request_id_of(payload)
    assert request is None or len(request) <= 64
    if isinstance(found, Body):
        assert found.request_id == request
        return "accepted"
    assert 0 < len(found) <= 1000 and "SMITH" not in found
    found.encode()
    return "refused"


# Profiles


@cache
def _profile_files() -> dict[str, bytes]:
    """The shipped profile with a handful of bytes for weights, which loading only hashes."""
    names = (PROFILE, GOLDEN, REFERENCE)
    return {WEIGHTS: b"weights"} | {name: (_SHIPPED / name).read_bytes() for name in names}


@cache
def _golden_seeds() -> tuple[bytes, ...]:
    inputs, outputs = np.zeros((1, 2, 4, 4), np.uint16), np.zeros((1, 4), np.float32)
    whole = save({"inputs": inputs, "outputs": outputs})
    return whole, save({"inputs": np.array(7, np.uint16), "outputs": outputs})


_HEADER = (
    *(b'"U16"', b'"F32"', b'"BF16"', b'"F8_E4M3"', b'"BOOL"', b'"C64"', b'"I64"', b"[]", b"[0]", b"[-1]", b"[1,1]"),
    *(
        b"18446744073709551615",
        b'"__metadata__":{"a":"b"},',
        b'"inputs"',
        b'"outputs"',
        b"[0,32]",
        b"[32,0]",
        b"{",
        b"}",
    ),
)


def make_profile(rng: Random) -> bytes:
    """Which file of the profile is hostile (the manifest, the golden pair, the reference), and its bytes."""
    which = rng.randrange(3)
    if which == 0:
        return b"\0" + mutated(
            rng, (_profile_files()[PROFILE], laughs(merge=False), laughs(merge=True)), (_token(_YAML),)
        )
    seeds = _golden_seeds() if which == 1 else (_profile_files()[REFERENCE][:4096], _profile_files()[REFERENCE])
    return bytes([which]) + mutated(rng, seeds, (_token(_HEADER), _token(_HEADER)))


def check_profile(case: bytes) -> str:
    """Load the folder: a profile or ProfileError. Checksums agree, so that the parsers behind them are reached."""
    files = dict(_profile_files())
    which, hostile = (PROFILE, GOLDEN, REFERENCE)[case[0] % 3 if case else 0], case[1:]
    files[which] = hostile
    if which != PROFILE:
        files[PROFILE] = _rehashed(which, hostile)
    if which == PROFILE:
        files = {PROFILE: hostile}
    folder = scratch() / "profile"
    for name, contents in files.items():
        write(folder / name, contents)
    with only_within(folder):
        try:
            load_profile_folder(folder)
        except ProfileError as error:
            assert len(str(error)) < 20_000, "an error message that fills the screen"
            return f"refused: {which}"
    return "accepted"


def _rehashed(name: str, contents: bytes) -> bytes:
    files = {**_profile_files(), name: contents}
    hashes = {known: hashlib.sha256(files[known]).hexdigest() for known in (WEIGHTS, GOLDEN, REFERENCE)}
    before = re.sub(rb"(?m)^files: \{[^}]*\}", b"", files[PROFILE])
    return before + b"\nfiles: " + json.dumps(hashes).encode() + b"\n"


# Engine records


@cache
def engine_record() -> Manifest:
    """A sealed record of an engine for this machine."""
    blank = Manifest(
        backend="openvino",
        precision="fp32",
        batch_size=8,
        outputs={"logits": 4},
        profile=ProfileRef(name="phantom", version=1, sha256="0" * 64, weights="1" * 64),
        device=this_cpu(),
        requires={},
        built_with={},
        files={"model.bin": hashlib.sha256(b"engine").hexdigest()},
        figures=made_up_figures("fp32"),
        limits=STRICT.of("fp32"),
        built_at="2026-01-01T00:00:00Z",
    )
    return blank.sealed()


_NAMES = (
    "../outside",
    "/etc/hostname",
    "..",
    ".",
    "",
    "a/../../outside",
    "model.bin\0",
    "x" * 5000,
    "engine.json",
    "~/x",
)


def make_engine(rng: Random) -> bytes:
    """An engine.json: damaged, or resealed with names of files that are not beside it."""
    if rng.random() < 0.3:
        names = rng.sample(_NAMES, rng.randint(1, 3))
        files = dict.fromkeys(names, hashlib.sha256(b"engine").hexdigest())
        return engine_record().model_copy(update={"files": files}).sealed().to_json().encode()
    data = json.loads(engine_record().to_json())
    if rng.random() < 0.5:
        path = [rng.choice(list(data))]
        data[path[0]] = rng.choice(
            (None, 1, -1, 10**400, 0.1, "x", [], {}, [[]] * 3, {"a": {"b": {}}}, True, "\ud800")
        )
    return mutated(rng, (json.dumps(data, indent=1).encode(),), (_token(_JSON),))


def check_engine(case: bytes) -> str:
    """Read a built engine: its files, or EngineError; nothing outside its folder is opened."""
    folder = scratch() / "profile" / "engines" / "openvino-fp32-b8"
    write(folder / MANIFEST, case)
    write(folder / "model.bin", b"engine")
    write(scratch() / "profile" / "engines" / "outside", b"engine")
    with only_within(folder):
        try:
            read_engine(folder, engine_record().profile)
        except EngineError:
            return "refused"
    return "accepted"
