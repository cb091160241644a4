"""Promises of what the daemon says of itself: enough to know what computed a result, and nothing secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.audit_check import check
from agent.audit_log import log_files
from agent.audit_trail import AuditTrail, of_settings
from agent.engine import Choice
from agent.engine.device import Device
from agent.engine.manifest import Manifest, ProfileRef
from agent.engine_limits import STRICT
from agent.ledger import Ledger
from agent.messages import EngineRef
from agent.outlets import DicomOutSettings, MqttSettings
from agent.reload import LiveSettings
from agent.reporter import Speaker
from agent.settings import Settings
from agent.speech import Speech
from agent.topics import Topics
from models.profile import LoadedProfile
from tests.fakes import FakeEngine, fake_profile

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
PROFILE = LoadedProfile(fake_profile(), "ab" * 32, b"", np.zeros((1,), np.uint16), np.zeros((1,), np.float32))
MANIFEST = Manifest(
    backend="fake",
    precision="fp32",
    batch_size=4,
    outputs={"logits": 4},
    profile=ProfileRef(name="fake", version=1, sha256="ab" * 32, weights="ef" * 32),
    device=Device(kind="cpu", model="m", instructions=()),
    requires={},
    built_with={},
    files={"model.bin": "cd" * 32},
    figures=None,
    limits=STRICT.of("fp32"),
    built_at="2026-01-01T00:00:00+00:00",
).sealed()


def settings_in(folder: Path, **sections: Any) -> Settings:
    """Settings that keep their state in this folder."""
    return Settings(folder=folder / "imager", state_dir=folder, profile=folder / "profile", **sections)


def speech_of(manifest: Manifest | None = None) -> Speech:
    """A start of the agent."""
    speaker = Speaker("session", Topics(), PROFILE, EngineRef(name="fake", precision="fp32"), lambda: MOMENT)
    return Speech(speaker, Choice(FakeEngine(), {}, manifest), 7, MOMENT)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger.open(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def facts_in(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Kind and facts of every entry of a whole log."""
    found: list[tuple[str, dict[str, Any]]] = []
    assert check(log_files(folder), lambda entry: found.append((entry.kind, entry.facts))).fault is None
    return found


def test_a_start_says_what_computes(ledger: Ledger, tmp_path: Path) -> None:
    """Version, boot, session, profile, engine with its files' hashes, Python, libraries and settings, at once."""
    settings = settings_in(tmp_path)
    AuditTrail(ledger.audit, LiveSettings(settings, lambda: settings), speech_of(MANIFEST))
    ((kind, start),) = facts_in(tmp_path)
    assert kind == "start"
    assert (start["version"], start["boot_seq"], start["session_id"]) == (version("spinextract-agent"), 7, "session")
    assert start["profile"] == {"name": "fake", "version": 1, "sha256": "ab" * 32}
    engine = {name: start["engine"][name] for name in ("name", "precision", "batch", "manifest_sha256", "files")}
    assert engine == {
        "name": "fake",
        "precision": "fp32",
        "batch": 4,
        "manifest_sha256": MANIFEST.sha256,
        "files": {"model.bin": "cd" * 32},
    }
    assert start["libraries"]["numpy"] == version("numpy")
    assert {"python", "system", "settings", "settings_sha256"} < set(start)


def test_an_engine_without_a_build_has_no_files(ledger: Ledger, tmp_path: Path) -> None:
    """Its weights are the profile's, whose hash is there anyway."""
    settings = settings_in(tmp_path)
    AuditTrail(ledger.audit, LiveSettings(settings, lambda: settings), speech_of())
    ((_, start),) = facts_in(tmp_path)
    assert (start["engine"]["manifest_sha256"], start["engine"]["files"]) == (None, {})


def test_settings_that_change_are_entered_once(ledger: Ledger, tmp_path: Path) -> None:
    """After a SIGHUP with new values there is one entry with the new hash; without a change, none."""
    settings = settings_in(tmp_path)
    live = LiveSettings(settings, lambda: settings)
    trail = AuditTrail(ledger.audit, live, speech_of())
    trail.look()
    live.now = settings.model_copy(update={"site": "berlin"})
    for _ in range(3):
        trail.look()
    trail.end()
    (_, start), (kind, changed), (last, stop) = facts_in(tmp_path)
    assert (kind, last, stop) == ("settings", "stop", {"session_id": "session"})
    assert changed["settings"]["site"] == "berlin"
    assert changed["settings_sha256"] != start["settings_sha256"]


def test_only_what_is_not_the_default_is_written_out(tmp_path: Path) -> None:
    """The folders, which have no default, and what the site has set; the hash is of all settings."""
    plain = of_settings(settings_in(tmp_path))
    assert set(plain["settings"]) == {"folder", "state_dir", "profile"}
    own = of_settings(settings_in(tmp_path, mqtt=MqttSettings(port=1884)))
    assert own["settings"]["mqtt.port"] == 1884
    assert own["settings_sha256"] != plain["settings_sha256"]
    assert own == of_settings(settings_in(tmp_path, mqtt=MqttSettings(port=1884)))


def test_nothing_that_leads_to_a_secret_is_entered(tmp_path: Path) -> None:
    """Neither the files of keys and passwords, nor a password in an address; they do not change the hash, either."""
    mqtt = MqttSettings(username="agent", password_file=tmp_path / "hush")
    stow = "https://user:hush@pacs.example/dicom-web"
    dicom = DicomOutSettings(folder=tmp_path / "dicom", stow_url=stow, stow_token_file=tmp_path / "hush")
    facts = of_settings(settings_in(tmp_path, mqtt=mqtt, dicom_out=dicom))
    assert "hush" not in json.dumps(facts)
    assert facts["settings"]["dicom_out.stow_url"] == "https://pacs.example/dicom-web"
    moved = replace_password(mqtt, tmp_path / "other")
    assert facts == of_settings(settings_in(tmp_path, mqtt=moved, dicom_out=dicom))


def replace_password(mqtt: MqttSettings, path: Path) -> MqttSettings:
    """The same session with its password elsewhere."""
    return mqtt.model_copy(update={"password_file": path})


def test_a_start_waits_in_the_ledger_when_the_log_cannot_be_written(ledger: Ledger, tmp_path: Path) -> None:
    """The agent starts all the same, and the entry follows."""
    settings = settings_in(tmp_path)
    in_the_way = tmp_path / "audit-000000000001.jsonl"
    in_the_way.mkdir()
    ledger.audit.retry_s = 0.0
    trail = AuditTrail(ledger.audit, LiveSettings(settings, lambda: settings), speech_of())
    in_the_way.rmdir()
    trail.look()
    assert [kind for kind, _ in facts_in(tmp_path)] == ["start"]
