"""What is known of the agent itself: its status, its health, what it works on, its alerts.

Decides which word replaces which, when health is stale and when `current` has expired. Pure.
"""

from __future__ import annotations

import statistics
from collections import deque
from datetime import tzinfo
from typing import Any, Literal

from agent.dashboard.heard import SKEW_S, Heard, Now, as_json, day_of, iso
from agent.messages import Alert, Current, Health, Status
from agent.topics import CURRENT_EXPIRY_S

ALERTS_KEPT = 100
ALERTS_SHOWN = 20
STALE_AFTER_S = 30.0
"""Health that is older is stale, as long as its rhythm is not known."""
MISSED = 3
"""With a known rhythm, this many missing health messages make it stale."""
LEAST_STALE_S = 3.0
RECEIVING_S = 5.0
"""Bytes that came within this time count as arriving."""

Arriving = Literal["receiving", "silent", "idle", "unknown"]


class Process:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.skew_s = 0.0
        """What to add to the agent's clock to get ours, by its last live health message."""
        self.births = 0
        """How often an agent came online."""
        self._status: Heard[Status] | None = None
        self._health: Heard[Health] | None = None
        self._rhythm_s: deque[float] = deque(maxlen=5)
        self._current: Heard[Current] | None = None
        self._current_since_s = 0.0
        self._alerts: dict[str, Heard[Alert]] = {}

    @property
    def online(self) -> bool:
        """Whether the agent says that it runs."""
        return self._status is not None and self._status.body.state == "online"

    def hear_status(self, heard: Heard[Status]) -> None:
        """A birth, a clean end or a will. One of an earlier start changes nothing, nor does the end of another."""
        held = self._status
        if held is not None:
            ours, other = held.body, heard.body
            of_another = ours.session_id != other.session_id
            if other.is_older_than(ours) or (
                of_another and other.state != "online" and not ours.is_older_than(other)
            ):
                return
        if heard.body.state == "online" and (
            held is None or held.body.state != "online" or held.body.session_id != heard.body.session_id
        ):
            self.births += 1
        self._status = heard

    def hear_health(self, heard: Heard[Health]) -> None:
        """A live one always counts; a kept one only when it is newer than what is known."""
        held = self._health
        if held is not None and not heard.live and heard.body.time <= held.body.time:
            return
        if heard.live:
            if held is not None and held.live and held.body.session_id == heard.body.session_id:
                self._rhythm_s.append(heard.at.steady_s - held.at.steady_s)
            skew_s = heard.at.wall_s - heard.body.time.timestamp()
            self.skew_s = skew_s if abs(skew_s) > SKEW_S else 0.0
        self._health = heard

    def hear_current(self, heard: Heard[Current]) -> None:
        """The newest pointer counts."""
        held = self._current
        if held is not None and heard.order(self.skew_s) <= held.order(self.skew_s):
            return
        pointer = (heard.body.patient, heard.body.slide)
        if held is None or pointer != (held.body.patient, held.body.slide):
            self._current_since_s = heard.said_s(self.skew_s)
        self._current = heard

    def hear_alert(self, heard: Heard[Alert]) -> None:
        """The newest are kept."""
        self._alerts.setdefault(heard.body.event_id, heard)
        if len(self._alerts) > ALERTS_KEPT:
            oldest = min(self._alerts.values(), key=lambda alert: alert.order(self.skew_s))
            del self._alerts[oldest.body.event_id]

    def current(self, now: Now) -> Current | None:
        """What is being imaged; None when nothing is, or nothing renewed it for too long."""
        if self._current is None or self._current.body.patient is None:
            return None
        return self._current.body if self._current.age_s(self.skew_s, now) < CURRENT_EXPIRY_S else None

    def current_patient(self, now: Now) -> str | None:
        """Who is being imaged."""
        current = self.current(now)
        return None if current is None else current.patient

    def current_view(self, now: Now) -> dict[str, Any] | None:
        """The `current` of the view."""
        current = self.current(now)
        if current is None:
            return None
        return {"patient": current.patient, "slide": current.slide, "since": iso(self._current_since_s)}

    def agent_view(self) -> dict[str, Any] | None:
        """The `agent` of the view; `since`: the start of an agent that runs, else when its end was said or heard."""
        if self._status is None:
            return None
        body = self._status.body
        ended_s = self._status.at.wall_s if body.state == "offline" else self._status.said_s(self.skew_s)
        known = as_json(body)
        kept = {name: known[name] for name in ("state", "session_id", "boot_seq", "version", "profile", "engine")}
        since = known["since"] if body.state == "online" else iso(ended_s)
        return {**kept, "passed_over": known["passed_over"], "since": since}

    @property
    def is_phantom(self) -> bool:
        """Whether the synthetic phantom's profile runs."""
        return self._status is not None and self._status.body.profile.name == "phantom"

    def is_stale(self, now: Now) -> bool:
        """Whether there is no health message, or none for too long."""
        return self._health is None or self._health.age_s(self.skew_s, now) > self.stale_after_s

    @property
    def stale_after_s(self) -> float:
        """Seconds after which health is stale."""
        if not self._rhythm_s:
            return STALE_AFTER_S
        return max(LEAST_STALE_S, MISSED * statistics.median_high(self._rhythm_s))

    def health_view(self, now: Now) -> dict[str, Any] | None:
        """The `health` of the view."""
        if self._health is None:
            return None
        age_s = round(self._health.age_s(self.skew_s, now), 3)
        return {**as_json(self._health.body), "age_s": age_s, "stale": self.is_stale(now)}

    def last_byte_age_s(self, now: Now) -> float | None:
        """Seconds since the last byte, by the last health message."""
        if self._health is None or self._health.body.last_byte_age_s is None:
            return None
        return self._health.body.last_byte_age_s + self._health.age_s(self.skew_s, now)

    def arriving(self, last_byte_age_s: float | None, now: Now) -> Arriving:
        """Whether anything arrives at the agent; `last_byte_age_s` is the best that is known."""
        if self.is_stale(now):
            return "unknown"
        current = self.current(now)
        if current is None or current.slide is None:
            return "idle"
        return "receiving" if last_byte_age_s is not None and last_byte_age_s <= RECEIVING_S else "silent"

    def alerts_view(self, now: Now, zone: tzinfo | None) -> list[dict[str, Any]]:
        """The `alerts` of the view: today's, newest first."""
        today = day_of(now.wall_s, zone)
        newest = sorted(self._alerts.values(), key=lambda alert: alert.order(self.skew_s), reverse=True)
        todays = [alert for alert in newest if day_of(alert.said_s(self.skew_s), zone) == today]
        shown = [as_json(alert.body) for alert in todays[:ALERTS_SHOWN]]
        names = ("time", "severity", "reason", "detail", "patient", "slide", "file")
        return [{name: alert[name] for name in names} for alert in shown]
