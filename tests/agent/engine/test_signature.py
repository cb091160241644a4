"""agent.engine.signature: with a public key, nothing of an engine is read that its owner did not sign."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.engine import built_engines
from agent.engine.manifest import MANIFEST, read_engine, verify
from agent.engine.signature import SIGNATURE, load_public_key, sign
from agent.errors import EngineError
from tests.agent.engine.test_manifest import PROFILE, manifest, written
from tests.brokers import need


def openssl(*words: object) -> None:
    """Run the real openssl."""
    done = subprocess.run([need("openssl", "openssl"), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A key pair as openssl makes it."""
    return key_pair(tmp_path, "ours")


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public ed25519 key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture
def engine(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed engine."""
    folder = written(tmp_path / "profile", manifest())
    (folder / SIGNATURE).write_bytes(sign((folder / MANIFEST).read_bytes(), keys[0]))
    return folder


def test_a_signed_engine_is_read(engine: Path, keys: tuple[Path, Path]) -> None:
    """With its key, and without one, too."""
    assert verify(engine, PROFILE, public_key=keys[1]) == verify(engine, PROFILE) == manifest()


def test_openssl_makes_and_checks_the_same_signature(engine: Path, keys: tuple[Path, Path]) -> None:
    """What openssl signs is accepted, and what we sign openssl accepts: the private key may stay elsewhere."""
    openssl(*("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", keys[1], "-in", engine / MANIFEST),
            *("-sigfile", engine / SIGNATURE))  # fmt: skip
    ours = (engine / SIGNATURE).read_bytes()
    (engine / SIGNATURE).unlink()
    openssl(*("pkeyutl", "-sign", "-rawin", "-inkey", keys[0], "-in", engine / MANIFEST, "-out", engine / SIGNATURE))
    assert (engine / SIGNATURE).read_bytes() == ours and len(ours) == 64
    assert verify(engine, PROFILE, public_key=keys[1]).batch_size == 1


def refusal(engine: Path, public: Path) -> str:
    """Why the engine is refused, one line with the command that mends it."""
    with pytest.raises(EngineError) as caught:
        read_engine(engine, PROFILE, public_key=public)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_unsigned_engine_is_refused(engine: Path, keys: tuple[Path, Path]) -> None:
    """One clear line with what to do."""
    (engine / SIGNATURE).unlink()
    text = refusal(engine, keys[1])
    assert f"not signed, and engine.public_key ({keys[1]}) asks for a signature; run: python -m agent.build_" in text
    assert text.endswith("--sign-with KEY.pem")


def test_another_owner_is_refused(engine: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A signature by another key, or bytes that are no signature, are none."""
    assert "is no signature of this engine by the owner of" in refusal(engine, key_pair(tmp_path, "theirs")[1])
    for other in (b"", b"x", b"\0" * 64, (engine / SIGNATURE).read_bytes() + b"\n"):
        (engine / SIGNATURE).write_bytes(other)
        assert "is no signature of this engine by the owner of" in refusal(engine, keys[1])


def test_an_edited_manifest_is_refused_although_it_is_sealed_again(engine: Path, keys: tuple[Path, Path]) -> None:
    """The seal can be made anew by everybody, the signature cannot; neither can that of another engine be used."""
    edited = manifest(notes={"kept": "nothing"})
    (engine / MANIFEST).write_text(edited.to_json())
    assert verify(engine, PROFILE) == edited
    assert "is no signature of this engine" in refusal(engine, keys[1])


def test_nothing_is_parsed_before_the_signature(engine: Path, keys: tuple[Path, Path]) -> None:
    """Of a manifest that is not even JSON only the signature is told, and the list of engines does not read it."""
    (engine / MANIFEST).write_text("{" * 100_000)
    assert "is no signature of this engine" in refusal(engine, keys[1])
    assert built_engines(engine.parents[1], public_key=keys[1]) == [(engine, None)]


def test_the_list_of_engines_reads_signed_ones(engine: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Newest first goes by manifests that were signed."""
    assert built_engines(engine.parents[1], public_key=keys[1]) == [(engine, manifest())]
    assert built_engines(engine.parents[1], public_key=key_pair(tmp_path, "theirs")[1]) == [(engine, None)]


def test_a_manifest_cannot_list_its_own_signature(tmp_path: Path) -> None:
    """The signature is no file of the engine: it covers the list."""
    record = json.loads(manifest().to_json())
    record["files"] = {SIGNATURE: "00" * 32}
    folder = written(tmp_path, manifest())
    (folder / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"not an engine manifest of this version \(see files\)"):
        verify(folder, PROFILE)


def test_keys_of_another_kind(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """Each wrong key is one line that says what is wrong."""
    rsa, locked = tmp_path / "rsa.pem", tmp_path / "locked.pem"
    openssl("genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", rsa)
    openssl("genpkey", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:secret", "-out", locked)
    with pytest.raises(EngineError, match=r"rsa\.pem is no ed25519 private key; make one: openssl genpkey"):
        sign(b"", rsa)
    with pytest.raises(EngineError, match="is protected by a passphrase"):
        sign(b"", locked)
    with pytest.raises(EngineError, match=r"ours\.pub is not a PEM key"):
        sign(b"", keys[1])
    with pytest.raises(EngineError, match=r"ours\.pem is not a PEM key"):
        load_public_key(keys[0])
    with pytest.raises(EngineError, match=r"cannot read the key .*absent: No such file"):
        load_public_key(tmp_path / "absent")


def test_without_the_package(engine: Path, keys: tuple[Path, Path]) -> None:
    """Where cryptography is not installed an engine without a key is read as ever; one with a key is refused with the
    command that installs it.
    """
    code = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from pathlib import Path\n"
        "from agent.errors import EngineError\n"
        "from agent.engine.manifest import verify\n"
        "from tests.agent.engine.test_manifest import PROFILE\n"
        "folder, key = map(Path, sys.argv[1:])\n"
        "print(verify(folder, PROFILE).backend)\n"
        "try:\n"
        "    verify(folder, PROFILE, public_key=key)\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )
    words = [sys.executable, "-c", code, str(engine), str(keys[1])]
    root = Path(__file__).parents[3]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "openvino"
    assert second.endswith("not installed: pip install 'spinextract-agent[sign]'")
