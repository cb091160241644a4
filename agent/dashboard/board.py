"""The state behind the page: takes what came over MQTT, gives the view that is shown.

Decides who is shown, whether it is past, and which screens lack which cells. Pure: time comes in as an argument, and
the same messages give the same view whatever order retained ones came in. Knows no broker and no browser.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Literal

from agent.dashboard.heard import Heard, Now, iso, read
from agent.dashboard.heat_maps import HeatMap, HeatMaps
from agent.dashboard.labels import Labels
from agent.dashboard.missing import Missing
from agent.dashboard.patients import Patients
from agent.dashboard.process import Process
from agent.messages import Alert, Current, Health, Payload, Status
from agent.results import PatientFinal, PatientPosterior, SlideFinal, SlidePatches, SlidePosterior

REMEMBERED_IDS = 4096
"""Latest event_ids that are recognised when they come again."""
NOTHING_HEARD_S = 5.0
"""A broker that has had nothing to tell for so long deserves a word of explanation."""

Link = Literal["connecting", "connected", "lost"]


@dataclass(frozen=True)
class _Broker:
    state: Link
    since: Now
    reason: str


class Board:
    """See the module's docstring."""

    def __init__(self, base: str, boot: str, now: Now, zone: tzinfo | None = None) -> None:
        """`base` is the start of every topic, `boot` names this start of the dashboard; `zone` decides which
        messages are of today (None: the machine's zone).
        """
        self.ignored: Counter[str] = Counter()
        """Why messages were not shown → how many."""
        self.heat_maps = HeatMaps()
        self._base = base
        self._boot = boot
        self._zone = zone
        self._seq = 0
        self._broker = _Broker("connecting", now, "")
        self._heard_any = False
        self._process = Process()
        self._labels = Labels()
        self._patients = Patients(self._labels)
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._missing = Missing()
        self._connections = 0

    def link(self, state: Link, reason: str, now: Now) -> None:
        """The connection to the broker has changed."""
        if state != self._broker.state:
            self._broker = _Broker(state, now, reason)
            self._connections += state == "connected"
            self._heard_any = False
        else:
            self._broker = _Broker(state, self._broker.since, reason)

    def hear(self, topic: str, payload: bytes, *, retained: bool, now: Now) -> str | None:
        """Take a message; returns one word when it is not shown. Never raises, whatever it holds."""
        body = read(self._base, topic, payload)
        if isinstance(body, str):
            self.ignored[body] += 1
            return body
        self._heard_any = True
        if not self._is_known(body):
            self._take(body, now, live=not retained)
        return None

    def view(self, now: Now) -> dict[str, Any]:
        """What the page shows."""
        self._seq += 1
        process, patients, skew_s = self._process, self._patients, self._process.skew_s
        shown = self.shown(now)
        newest = patients.newest(shown, skew_s)
        last_byte_age_s = self._last_byte_age_s(shown, now)
        current = process.current(now)
        connected = self._broker.state == "connected"
        history = patients.history_view(skew_s, now, self._zone)
        return {
            "seq": self._seq,
            "now": iso(now.wall_s),
            "boot": self._boot,
            "demo": process.is_phantom,
            "broker": self._broker_view(now),
            "agent": process.agent_view(),
            "health": process.health_view(now),
            "arriving": process.arriving(last_byte_age_s, now) if connected else "unknown",
            "last_byte_age_s": None if last_byte_age_s is None else round(last_byte_age_s, 1),
            "current": process.current_view(now),
            "patient": patients.patient_view(shown, skew_s),
            "patient_is_past": shown is not None and (current is None or current.slide is None),
            "slides": patients.slides_view(shown, skew_s),
            "labels": self._labels_view(shown, history, now),
            "history": history,
            "alerts": process.alerts_view(now, self._zone),
            "latency": {} if newest is None else newest.body.latency.model_dump(mode="json"),
        }

    def shown(self, now: Now) -> str | None:
        """The patient who is shown."""
        return self._patients.shown(self._process.current_patient(now), self._process.skew_s, now, self._zone)

    def patches(self, heat_map: HeatMap, after: int) -> dict[str, Any]:
        """The `patches` event for a screen that was sent the cells up to serial number `after`."""
        result = self._patients.result(heat_map.patient, heat_map.slide, self._process.skew_s)
        reset = after < heat_map.begun
        return {
            "slide": heat_map.slide,
            "reset": reset,
            "size_px": heat_map.size_px,
            "stride_px": heat_map.stride_px,
            "classes": heat_map.classes,
            "reasons": heat_map.reasons,
            "cells": [cell[1:] for cell in heat_map.after(after)],
            "known": len(heat_map.cells),
            "seen": len(heat_map.cells) if result is None else result.counts.seen,
            "strips": {"done": 0, "expected": None} if result is None else result.strips.model_dump(),
        }

    def wants_replay(self, now: Now) -> bool:
        """Whether the agent should say again what it said: cells are missing, or slides of the patient shown."""
        lacks = self._broker.state == "connected" and self._process.online and self._is_incomplete(now)
        return self._missing.asks_agent((self._connections, self._process.births), lacks, now)

    def wants_kept(self, now: Now) -> Sequence[str]:
        """Topics that the broker should be asked for by name: it keeps results of every patient there ever was, and
        may not have sent all of them.
        """
        current = self._process.current(now) if self._broker.state == "connected" else None
        names = (None, None) if current is None else (current.patient, current.slide)
        lacking = self._patients.lacking(*names, self._process.skew_s)
        topics = [f"{self._base}/{of}/{name}/{what}" for of, name in lacking for what in ("posterior", "final")]
        return self._missing.asks_broker(topics, now)

    def summary(self, now: Now) -> dict[str, Any]:
        """What a monitoring system asks for."""
        agent = self._process.agent_view()
        return {
            "broker": "connected" if self._broker.state == "connected" else "lost",
            "broker_reason": self._broker_view(now)["reason"],
            "agent": None if agent is None else agent["state"],
            "health_stale": self._process.is_stale(now),
            "ignored": dict(self.ignored),
        }

    def _is_incomplete(self, now: Now) -> bool:
        shown, skew_s = self.shown(now), self._process.skew_s
        seen = self._patients.seen(shown, skew_s)
        return self.heat_maps.missing(seen) > 0 or len(seen) < self._patients.slides_told(shown, skew_s)

    def _take(self, body: Payload, now: Now, *, live: bool) -> None:
        process, keep = self._process, self._process.current_patient(now)
        match body:
            case Status():
                process.hear_status(Heard(body, now, live))
            case Health():
                process.hear_health(Heard(body, now, live))
            case Current():
                process.hear_current(Heard(body, now, live))
                self._meet(body.patient, Heard(body, now, live))
            case Alert():
                process.hear_alert(Heard(body, now, live))
                self._meet(body.patient, Heard(body, now, live))
            case SlidePatches():
                self.heat_maps.hear(body, keep)
                self._meet(body.patient, Heard(body, now, live))
            case SlidePosterior() | SlideFinal() | PatientPosterior() | PatientFinal():
                self._patients.hear(body, now, live, process.skew_s, keep)
                self._meet(body.patient, Heard(body, now, live))

    def _meet(self, patient: str | None, heard: Heard[Payload]) -> None:
        if patient is not None:
            self._labels.meet(patient, heard)

    def _is_known(self, body: Payload) -> bool:
        """Whether this very message was taken before. A will is the same each time that it speaks, so a status never
        is; health and heat maps travel once.
        """
        if isinstance(body, Status | Health | SlidePatches):
            return False
        known = body.event_id in self._ids
        self._ids[body.event_id] = None
        self._ids.move_to_end(body.event_id)
        if len(self._ids) > REMEMBERED_IDS:
            self._ids.popitem(last=False)
        return known

    def _broker_view(self, now: Now) -> dict[str, Any]:
        reason = self._broker.reason
        silent_s = now.steady_s - self._broker.since.steady_s
        if self._broker.state == "connected" and not self._heard_any and silent_s > NOTHING_HEARD_S:
            reason = (
                f"nothing was heard under {self._base}: is the agent running, with this site and instrument, and may"
                " this user read there?"
            )
        return {"state": self._broker.state, "since": iso(self._broker.since.wall_s), "reason": reason}

    def _last_byte_age_s(self, shown: str | None, now: Now) -> float | None:
        """By the last health message or the newest result, whichever knows better."""
        ages = [self._process.last_byte_age_s(now), *self._result_byte_age_s(shown, now)]
        return min((age for age in ages if age is not None), default=None)

    def _result_byte_age_s(self, shown: str | None, now: Now) -> Iterator[float]:
        newest = self._patients.newest(shown, self._process.skew_s)
        at = None if newest is None else newest.body.latency.last_byte_at
        if newest is not None and at is not None:
            before_s = max(0.0, (newest.body.time - at).total_seconds())
            yield before_s + newest.age_s(self._process.skew_s, now)

    def _labels_view(self, shown: str | None, history: list[dict[str, Any]], now: Now) -> dict[str, str]:
        patients = {shown, *(entry["patient"] for entry in history)}
        named = sorted(patient for patient in patients if patient is not None)
        skew_s = self._process.skew_s
        return self._patients.slide_labels(skew_s) | self._labels.view(named, skew_s, now.wall_s, self._zone)
