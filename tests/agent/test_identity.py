"""Promises of the pseudonyms: stable, keyed, distinct, and a key that nobody else reads."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import SettingsError
from agent.identity import Plain, Pseudonyms, load_or_create_key

KEY = bytes(range(32))


def test_names_are_stable_short_and_topic_safe() -> None:
    """The same key and identity give the same 16 characters, fit for a topic and a file name."""
    name = Pseudonyms(KEY).of("patient", "NIO_097")
    assert name == Pseudonyms(KEY).of("patient", "NIO_097")
    assert re.fullmatch(r"[a-z2-7]{16}", name)


def test_name_is_the_stated_hmac() -> None:
    """The name is the first 80 bits of HMAC-SHA256 over the length-prefixed parts, in base32."""
    message = b"\0\0\0\7patient" + b"\0\0\0\1P"
    digest = hmac.new(KEY, message, hashlib.sha256).digest()
    value = int.from_bytes(digest[:10], "big")
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    slow = "".join(alphabet[value >> shift & 31] for shift in range(75, -1, -5))
    assert Pseudonyms(KEY).of("patient", "P") == slow


def test_another_key_gives_other_names() -> None:
    """Two sites cannot tell that they saw the same patient."""
    assert Pseudonyms(KEY).of("patient", "P") != Pseudonyms(KEY[::-1]).of("patient", "P")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["patient", "slide", "file"]), st.lists(st.text(), max_size=3)), min_size=2)
)
def test_no_identity_imitates_another(identities: list[tuple[str, list[str]]]) -> None:
    """Different kinds or parts never share a name, however their texts are cut."""
    names: dict[str, tuple[str, tuple[str, ...]]] = {}
    for kind, parts in identities:
        name = Pseudonyms(KEY).of(kind, *parts)  # type: ignore[arg-type]
        assert names.setdefault(name, (kind, tuple(parts))) == (kind, tuple(parts))


def test_undecodable_file_names_have_names(tmp_path: Path) -> None:
    """A file name that is no UTF-8 gets a pseudonym and a line in the lookup all the same."""
    odd = b"P\xff".decode("utf-8", "surrogateescape")
    lookup = tmp_path / "lookup.jsonl"
    name = Pseudonyms(KEY, lookup).of("patient", odd)
    assert json.loads(lookup.read_text())["original"] == [odd]
    assert name != Pseudonyms(KEY).of("patient", "P")


def test_short_key_is_refused() -> None:
    """A key that could be guessed is refused."""
    with pytest.raises(SettingsError, match="32"):
        Pseudonyms(b"secret")


def test_plain_returns_the_own_name() -> None:
    """Without pseudonyms, a slide keeps the name that its user knows."""
    assert Plain().of("slide", "P", "S1") == "S1"
    assert Plain().of("patient", "P") == "P"


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    """The first start makes a private random key, later starts read the same one."""
    path = tmp_path / "state" / "identity.key"
    key = load_or_create_key(path)
    assert len(key) == 32 and load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]
    assert load_or_create_key(tmp_path / "other.key") != key


def test_two_first_starts_agree_on_one_key(tmp_path: Path) -> None:
    """Processes that start at the same moment end up with one key, never with half of one."""
    path = tmp_path / "identity.key"
    barrier, keys = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        keys.append(load_or_create_key(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8 and len(set(keys)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that others could read is refused with the command that mends it."""
    path = tmp_path / "identity.key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(SettingsError, match=f"chmod 600 {path}"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"abc\n", b"\xff" * 64, b"0" * 62 + b"\n", b"0" * 66 + b"\n"])
def test_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """A cut or strange key is refused instead of giving everybody new pseudonyms."""
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="damaged"):
        load_or_create_key(path)


def test_key_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    """A place where no key can be written is told by name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"identity\.key"):
        load_or_create_key(tmp_path / "file" / "identity.key")


def test_lookup_has_each_identity_once(tmp_path: Path) -> None:
    """The lookup maps every pseudonym back, once, also over restarts, and is private."""
    lookup = tmp_path / "lookup.jsonl"
    for _ in range(2):
        names = Pseudonyms(KEY, lookup)
        for _ in range(2):
            patient, slide = names.of("patient", "P"), names.of("slide", "P", "S")
    lines = [json.loads(line) for line in lookup.read_text().splitlines()]
    assert lines == [
        {"pseudonym": patient, "kind": "patient", "original": ["P"]},
        {"pseudonym": slide, "kind": "slide", "original": ["P", "S"]},
    ]
    assert stat.S_IMODE(lookup.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", range(1, 30))
def test_cut_lookup_line_is_written_again(tmp_path: Path, cut: int) -> None:
    """A line cut by a power failure costs nothing: its identity is written again on a line of its own."""
    lookup = tmp_path / "lookup.jsonl"
    kept, lost = Pseudonyms(KEY, lookup).of("patient", "kept"), Pseudonyms(KEY, lookup).of("patient", "lost")
    lookup.write_bytes(lookup.read_bytes()[:-cut])
    names = Pseudonyms(KEY, lookup)
    assert names.of("patient", "lost") == lost
    readable = []
    for line in lookup.read_text().splitlines():
        try:
            readable.append(json.loads(line)["pseudonym"])
        except ValueError:
            continue
    assert set(readable) == {kept, lost}


def test_lookup_that_others_read_is_refused(tmp_path: Path) -> None:
    """A lookup that others could read is refused: it is identity."""
    lookup = tmp_path / "lookup.jsonl"
    lookup.write_text("")
    lookup.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        Pseudonyms(KEY, lookup)
