"""A settings file that changed under a running agent: what is taken over at once, what needs a restart, and why.

The rooms say themselves what they do with a new value.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import BaseModel

from agent import host
from agent.errors import SettingsError
from agent.settings import Settings

LIVE = frozenset(
    {
        "watch.scan_interval_s",
        "watch.answer_limit_s",
        "watch.stall_after_s",
        "watch.slide_quiet_s",
        "patient.quiet_s",
        "patient.on_next",
        "pipeline.batch_deadline_ms",
        "pipeline.publish_interval_ms",
        "pipeline.stop_limit_s",
        "mqtt.health_interval_s",
        "log.level",
    }
)
"""Settings that a running agent takes over: times and levels, which no count and no posterior depends on."""

ELSEWHERE = ("dashboard", "dicom_out")
"""Sections that other processes read."""

NEEDS_RESTART = {
    "folder": "the slides of one folder must not be mixed with those of another",
    "state_dir": "the ledger in it is open",
    "profile": "its weights are loaded, and patches already counted are counted under it",
    "site": "every topic begins with it",
    "instrument": "every topic begins with it",
    "watch": "files are already being read under it",
    "naming": "files already placed would change their slide",
    "limits": "files already being read were accepted under them",
    "patient": "the ledger is kept under it",
    "ledger": "the ledger is kept under it",
    "pipeline": "the hand-overs are already made",
    "engine": "the engine is loaded and warm",
    "mqtt": "the session with the broker is made of it",
    "identity": "pseudonyms already published would change",
    "log": "the log is open in its format",
    "metrics": "the port is open",
}
"""Section (or setting of its own) → why a change in it waits for a restart."""


@dataclass(frozen=True)
class Takeover:
    """What a changed file amounts to."""

    settings: Settings
    """The old settings with the live ones of the new file."""
    applied: tuple[str, ...]
    """Dotted keys that were taken over."""
    waiting: dict[str, str]
    """Dotted key → why it needs a restart."""


def compare(old: Settings, new: Settings) -> Takeover:
    """What of `new` a running agent with `old` can take over."""
    changed = tuple(_differences(old, new, ""))
    applied = tuple(key for key in changed if key in LIVE)
    settings = old
    for key in applied:
        settings = _with(settings, key, new)
    waiting = {
        key: NEEDS_RESTART[section]
        for key in changed
        if key not in LIVE and (section := key.partition(".")[0]) not in ELSEWHERE
    }
    return Takeover(settings, applied, waiting)


class LiveSettings:
    """The settings in force, and who follows them. `turn` belongs to one thread; anybody may set `hangup`."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        """`reread` reads the settings file anew; raises SettingsError."""
        self.now = settings
        self.hangup = threading.Event()
        """Set by SIGHUP: the file may have changed."""
        self._reread = reread
        self._followers: list[Callable[[Settings], None]] = []
        self._log = structlog.get_logger("agent")

    def follow(self, apply: Callable[[Settings], None]) -> None:
        """`apply` is called with the new settings after each change; it only replaces plain values."""
        self._followers.append(apply)

    def turn(self) -> None:
        """Take the file over when somebody asked for it. A file with a mistake changes nothing."""
        if not self.hangup.is_set():
            return
        self.hangup.clear()
        host.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            takeover = compare(self.now, self._reread())
        except SettingsError as error:
            self._log.error("settings_refused", problems=str(error).splitlines())
            said = "settings file refused, see the log"
        else:
            self.now = takeover.settings
            for apply in self._followers:
                apply(self.now)
            self._log.info("settings_taken_over", applied=list(takeover.applied), need_restart=takeover.waiting)
            said = f"{len(takeover.applied)} settings taken over, {len(takeover.waiting)} need a restart"
        host.notify(f"READY=1\nSTATUS=watching {self.now.folder}; {said}")


def _differences(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[str]:
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def _with(settings: Settings, key: str, new: Settings) -> Settings:
    section, _, name = key.partition(".")
    value: Any = getattr(getattr(new, section), name)
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update={name: value})})
