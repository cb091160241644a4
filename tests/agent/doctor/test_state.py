"""Promises of doctor about what must survive and stay private: state folder, disk, keys, secrets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.doctor.state import look_at_secrets, look_at_state
from agent.identity import load_or_create_key
from tests.agent.doctor.site import Site, only


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine with its state folder."""
    site = Site(tmp_path)
    site.state.mkdir(mode=0o700)
    return site


def test_a_private_state_folder_on_a_disk_is_well(site: Site) -> None:
    """Mode, owner, free space and the time of a sync are told; the probe has no name and leaves nothing."""
    found = site.look(look_at_state)
    assert "mode 0700" in only(found, "state_dir").found
    assert "GiB free" in only(found, "disk").found and "ms to sync" in only(found, "disk").found
    assert list(site.state.iterdir()) == []


def test_a_state_folder_that_is_a_file_fails(site: Site) -> None:
    """A file where state_dir should be: the reason, and the command that mends it."""
    site.state.rmdir()
    site.state.write_text("a file")
    finding = only(site.look(look_at_state), "state_dir")
    assert finding.verdict == "fail"
    assert str(site.state) in finding.found
    assert "install -d -m 700" in finding.mend


def test_a_state_folder_that_will_be_made_is_well(site: Site) -> None:
    """Before the first start it need not be there, and doctor does not make it."""
    site.state.rmdir()
    finding = only(site.look(look_at_state), "state_dir")
    assert finding.verdict == "ok" and "first start" in finding.found
    assert not site.state.exists()


def test_an_open_state_folder_warns(site: Site) -> None:
    """Others could read the ledger's pseudonyms and the key's folder: chmod 700."""
    site.state.chmod(0o755)
    finding = only(site.look(look_at_state), "state_dir")
    assert (finding.verdict, finding.mend) == ("warn", f"chmod 700 {site.state}")


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder on a file system that lives in memory."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("/dev/shm cannot be written here")
    folder = shm / f"doctor-test-{os.getpid()}"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def test_a_state_folder_in_memory_warns(site: Site, memory_folder: Path) -> None:
    """A tmpfs is gone after a reboot, with what was counted and the key."""
    finding = only(site.look(look_at_state, state_dir=str(memory_folder)), "disk")
    assert finding.verdict == "warn"
    assert "reboot" in finding.why


def test_a_key_that_others_can_read_fails(site: Site) -> None:
    """A private key file is ok; one that others may read fails with the chmod that mends it."""
    key = site.state / "identity.key"
    load_or_create_key(key)
    assert only(site.look(look_at_secrets), "identity_key").verdict == "ok"
    key.chmod(0o640)
    finding = only(site.look(look_at_secrets), "identity_key")
    assert finding.verdict == "fail"
    assert finding.mend == f"chmod 600 {key}"


def test_a_damaged_key_fails_without_being_shown(site: Site) -> None:
    """A key of the wrong length fails; not one digit of it is printed."""
    key = site.state / "identity.key"
    key.touch(mode=0o600)
    key.write_text("c0ffee")
    finding = only(site.look(look_at_secrets), "identity_key")
    assert finding.verdict == "fail" and "damaged" in finding.found
    assert "c0ffee" not in str(finding)


def test_a_lookup_file_that_others_can_read_fails(site: Site) -> None:
    """It holds names: the agent refuses it, and so does doctor; before the first name it is not there."""
    lookup = site.home / "names.jsonl"
    settings = {"lookup_file": str(lookup)}
    assert "lookup_file" not in site.look(look_at_secrets, identity=settings)
    lookup.touch(mode=0o600)
    assert only(site.look(look_at_secrets, identity=settings), "lookup_file").verdict == "ok"
    lookup.chmod(0o644)
    assert only(site.look(look_at_secrets, identity=settings), "lookup_file").verdict == "fail"


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, "ok"), (0o640, "warn"), (0o644, "warn"), (0o400, "ok")])
def test_a_password_that_others_can_read_warns(site: Site, mode: int, verdict: str) -> None:
    """Whoever reads it can speak as the agent; the password itself is never shown."""
    secret = site.home / "password"
    secret.write_text("hunter2")
    secret.chmod(mode)
    found = site.look(look_at_secrets, mqtt={"username": "agent", "password_file": str(secret)})
    assert only(found, "mqtt.password_file").verdict == verdict
    assert "hunter2" not in str(found)


def test_a_secret_that_is_not_there_fails(site: Site) -> None:
    """The agent would not start without it."""
    found = site.look(look_at_secrets, mqtt={"username": "agent", "password_file": str(site.home / "nowhere")})
    assert only(found, "mqtt.password_file").verdict == "fail"


def test_a_credential_of_the_service_is_not_held_against_anybody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the service it cannot be looked at, which is no fault."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    found = site.look(look_at_secrets, mqtt={"username": "agent", "password_file": "credential:mqtt"})
    finding = only(found, "mqtt.password_file")
    assert finding.verdict == "ok" and "systemd" in finding.found
