"""Promises of a reload: what can be taken over is, what cannot is said with its reason, a mistake changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from agent.errors import SettingsError
from agent.reload import ELSEWHERE, LIVE, NEEDS_RESTART, LiveSettings, compare
from agent.settings import Settings


def settings(**changes: Any) -> Settings:
    """Settings with these differences from the defaults."""
    return Settings.model_validate({"folder": "/in", "state_dir": "/state", "profile": "/p", **changes})


def fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting by its dotted key."""
    found = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        is_section = isinstance(nested, type) and issubclass(nested, BaseModel)
        found += fields(nested, f"{prefix}{name}.") if is_section and isinstance(nested, type) else [prefix + name]
    return found


def test_every_setting_is_either_live_or_has_a_reason() -> None:
    """No key can change without being applied or explained, and no key is listed that does not exist."""
    known = fields(Settings)
    assert set(known) >= LIVE
    sections = {key.partition(".")[0] for key in known}
    assert {key.partition(".")[0] for key in known if key not in LIVE} == set(NEEDS_RESTART) | set(ELSEWHERE)
    assert sections >= set(NEEDS_RESTART) | set(ELSEWHERE)


def test_live_settings_are_taken_over_and_the_others_wait() -> None:
    """A file with both kinds of change applies the live ones, keeps the rest, and says why each of those waits."""
    old = settings()
    new = settings(watch={"stall_after_s": 7, "mode": "scan"}, site="other", log={"level": "debug"})
    takeover = compare(old, new)
    assert set(takeover.applied) == {"watch.stall_after_s", "log.level"}
    assert set(takeover.waiting) == {"watch.mode", "site"}
    assert takeover.waiting["site"] == "every topic begins with it"
    assert takeover.settings == settings(watch={"stall_after_s": 7}, log={"level": "debug"})


def test_what_other_processes_read_is_not_reported() -> None:
    """The dashboard's settings are the dashboard's matter."""
    takeover = compare(settings(), settings(dashboard={"port": 9000}))
    assert (takeover.applied, takeover.waiting) == ((), {})


def test_the_same_file_changes_nothing() -> None:
    """A reload without a change is harmless."""
    takeover = compare(settings(), settings())
    assert takeover.settings == settings()
    assert (takeover.applied, takeover.waiting) == ((), {})


def test_followers_get_the_settings_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms are told once per hang-up, with the live values new and the others old; nobody asks, nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    live = LiveSettings(settings(), lambda: settings(patient={"quiet_s": 5}, profile="/q"))
    told: list[Settings] = []
    live.follow(told.append)
    live.turn()
    assert told == []
    live.hangup.set()
    with capture_logs() as logs:
        live.turn()
        live.turn()
    assert told == [live.now]
    assert (live.now.patient.quiet_s, live.now.profile) == (5, Path("/p"))
    (event,) = logs
    assert (event["event"], event["applied"]) == ("settings_taken_over", ["patient.quiet_s"])
    assert list(event["need_restart"]) == ["profile"]


def test_a_file_with_a_mistake_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The problems are logged line by line and the running settings stay in force."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    def refuse() -> Settings:
        raise SettingsError("agent.yaml:3: watch: wrong\nagent.yaml:4: mqtt: wrong")

    live = LiveSettings(settings(), refuse)
    live.follow(lambda _: pytest.fail("a refused file reached a room"))
    live.hangup.set()
    with capture_logs() as logs:
        live.turn()
    assert [event["event"] for event in logs] == ["settings_refused"]
    assert logs[0]["problems"] == ["agent.yaml:3: watch: wrong", "agent.yaml:4: mqtt: wrong"]
    assert live.now == settings()
