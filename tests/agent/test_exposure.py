"""Promises of agent.exposure: the daemon refuses or warns of exposed files at its start; doctor tells the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.errors import SettingsError
from agent.exposure import exposed_profile, exposed_secrets, exposed_settings, exposed_state, refuse_exposed
from agent.identity import load_or_create_key
from tests.agent.doctor.site import Site
from tests.system.processes import command


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine where every file is protected as it should be."""
    site = Site(tmp_path)
    site.state.mkdir(mode=0o700)
    load_or_create_key(site.state / "identity.key")
    folder = site.bare_profile()
    (folder / "engines" / "openvino-fp32-b1").mkdir(parents=True)
    (folder / "engines" / "openvino-fp32-b1" / "model.bin").touch()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    site.document["profile"] = str(folder)
    site.write()
    site.config.chmod(0o644)
    return site


def all_words(site: Site, **changes: Any) -> list[tuple[str, bool]]:
    """What is exposed, and whether that is refused."""
    settings = site.settings(**changes)
    looks = (exposed_settings(site.config), exposed_profile(settings), exposed_state(settings))
    return [(word, weakness.refused) for look in (*looks, exposed_secrets(settings)) for word, weakness in look]


def test_a_well_kept_machine_has_nothing_exposed(site: Site) -> None:
    """Nothing is refused and nothing is logged."""
    assert all_words(site) == []
    with capture_logs() as logs:
        refuse_exposed(site.settings(), site.config)
    assert logs == []


def profile(site: Site) -> Path:
    """The folder of the profile."""
    return Path(site.document["profile"])


SPOILED: dict[str, tuple[Callable[[Site], Path], int, str]] = {
    "settings": (lambda site: site.config, 0o666, "settings"),
    "state folder": (lambda site: site.state, 0o777, "state_dir"),
    "key": (lambda site: site.state / "identity.key", 0o640, "identity_key"),
    "profile folder": (profile, 0o777, "profile_files"),
    "weights": (lambda site: profile(site) / "weights.safetensors", 0o666, "profile_files"),
    "engines": (lambda site: profile(site) / "engines", 0o777, "profile_files"),
    "engine": (lambda site: profile(site) / "engines/openvino-fp32-b1/model.bin", 0o646, "profile_files"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_the_daemon_does_not_start_with_what_others_may_change(site: Site, what: str) -> None:
    """One line: doctor's word for it, the path, why it matters and the command; exit code 2, so that systemd waits
    for a person."""
    path_of, mode, word = SPOILED[what]
    path_of(site).chmod(mode)
    assert (word, True) in all_words(site)
    with pytest.raises(SettingsError, match=f"{word}: {path_of(site)} .*run `chmod "):
        refuse_exposed(site.settings(), site.config)


def test_a_group_of_administrators_is_warned_of(site: Site) -> None:
    """Settings and profile that a group may change: a warning in the log, and the agent starts."""
    site.config.chmod(0o664)
    weights = profile(site) / "weights.safetensors"
    weights.chmod(0o664)
    with capture_logs() as logs:
        refuse_exposed(site.settings(), site.config)
    assert [(log["event"], log["what"]) for log in logs] == [("exposed", "settings"), ("exposed", "profile_files")]
    assert logs[1]["mend"] == f"chmod g-w {weights}"


def test_many_files_are_one_finding(site: Site) -> None:
    """A profile that was copied with a careless umask gives one line, and one command for all of it."""
    folder = profile(site)
    for path in folder.iterdir():
        path.chmod(0o666 if path.is_file() else 0o755)
    ((word, weakness),) = exposed_profile(site.settings())
    assert word == "profile_files" and "and 4 more" in weakness.found
    assert weakness.mend == f"chmod -R go-w {folder}"


def test_a_planted_ledger_is_told(site: Site) -> None:
    """A second name for the ledger means that somebody else holds it too."""
    (site.state / "ledger.sqlite").touch(mode=0o600)
    (site.home / "elsewhere").hardlink_to(site.state / "ledger.sqlite")
    assert all_words(site) == [("state_files", False)]


def test_secrets_of_every_part_are_looked_at(site: Site) -> None:
    """Passwords, private key, token and lookup file, each by the name of its setting; credentials are systemd's."""
    names = ("password", "key", "screen", "token", "lookup")
    for name in names:
        (site.home / name).touch()
        (site.home / name).chmod(0o644)
    shutil.copy(site.config, site.home / "cert")
    settings: dict[str, Any] = {
        "mqtt": {
            "username": "a", "password_file": str(site.home / "password"),
            "cert_file": str(site.home / "cert"), "key_file": str(site.home / "key"),
        },
        "dashboard": {"password_file": str(site.home / "screen")},
        "identity": {"lookup_file": str(site.home / "lookup")},
        "dicom_out": {
            "folder": str(site.home / "out"), "stow_url": "https://pacs.example/dicom-web",
            "stow_token_file": str(site.home / "token"),
        },
    }  # fmt: skip
    assert all_words(site, **settings) == [
        ("lookup_file", True),
        ("mqtt.password_file", False),
        ("mqtt.key_file", False),
        ("dashboard.password_file", False),
        ("dicom_out.stow_token_file", False),
    ]
    settings["mqtt"] = {"username": "a", "password_file": "credential:mqtt_password"}
    assert ("mqtt.password_file", False) not in all_words(site, **settings)


def test_run_and_doctor_tell_the_same(site: Site) -> None:
    """The real commands: `run` ends with code 2 and one line, `doctor` fails with the same words and command."""
    site.write()
    site.config.chmod(0o666)
    run = command("agent", "run", "--config", site.config)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and f"run `chmod go-w {site.config}`" in run.stderr
    (finding,) = site_findings(site, "settings")
    assert (finding["verdict"], finding["mend"]) == ("fail", f"chmod go-w {site.config}")
    assert finding["found"] in run.stderr


def site_findings(site: Site, check: str) -> list[dict[str, str]]:
    """What `doctor --json` says of one check."""
    done = command("agent", "doctor", "--config", site.config, "--json")
    return [finding for finding in json.loads(done.stdout) if finding["check"] == check]


def test_a_key_that_others_may_exchange_is_refused(site: Site) -> None:
    """The public key decides which engines are trusted: who may write it could put his own there."""
    key = site.config.with_name("engines.pub")
    key.write_text("key")
    key.chmod(0o666)
    settings = site.settings()
    signed = settings.model_copy(update={"engine": settings.engine.model_copy(update={"public_key": key})})
    with pytest.raises(SettingsError, match=f"engine.public_key: {key} .*run `chmod "):
        refuse_exposed(signed, site.config)
    key.chmod(0o644)
    refuse_exposed(signed, site.config)
