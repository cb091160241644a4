"""What came over MQTT, checked: which payload a topic carries, and when it was said, as far as one can know.

Pure: time comes in as an argument. Strict about what is shown, tolerant of fields that a newer agent may add.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from agent.messages import Payload
from agent.topics import ROUTES, Route

P_co = TypeVar("P_co", bound=Payload, covariant=True)

MAX_BYTES = 256 * 1024
"""A larger payload is not read at all."""
LARGEST = {"slide.patches": MAX_BYTES, "health": 64 * 1024}
"""Kind → the largest payload that is read; MOST for the others."""
MOST = 32 * 1024
SKEW_S = 5.0
"""A smaller difference between the agent's clock and ours is no difference."""


class Now(NamedTuple):
    """One moment on two clocks."""

    wall_s: float
    """Seconds since 1970; may be set."""
    steady_s: float
    """Seconds that only grow, also while the machine sleeps."""


@dataclass(frozen=True)
class Heard(Generic[P_co]):
    """A payload, and when and how it came."""

    body: P_co
    at: Now
    live: bool
    """It was said just now or queued a while; false: the broker had kept it, for who knows how long."""

    def said_s(self, skew_s: float) -> float:
        """When it was said, in seconds of our clock: never after it was heard, whatever the agent's clock says."""
        return max(0.0, min(self.body.time.timestamp() + skew_s, self.at.wall_s))

    def order(self, skew_s: float) -> tuple[float, float, str]:
        """Sorts payloads into the order in which they were said."""
        return (self.said_s(skew_s), self.body.time.timestamp(), self.body.event_id)

    def age_s(self, skew_s: float, now: Now) -> float:
        """Seconds since it was said."""
        return max(0.0, self.at.wall_s - self.said_s(skew_s)) + max(0.0, now.steady_s - self.at.steady_s)


def iso(wall_s: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")


def day_of(wall_s: float, zone: tzinfo | None) -> str:
    """The local date, as 2026-11-21; None takes the machine's zone."""
    return datetime.fromtimestamp(wall_s, zone).date().isoformat()


def filters(base: str) -> list[str]:
    """The topic filters of everything that is shown; never a command. A broker that cannot send at once all that it
    keeps sends those first that come first: what tells of the process, then results.
    """
    return [f"{base}/{'/'.join(pattern)}" for pattern in sorted(_ROUTE_OF, key=len)]


def read(base: str, topic: str, payload: bytes) -> Payload | str:
    """The payload, or one word why it is not shown; nothing of what it holds is in that word."""
    route = _ROUTE_OF.get(_shape(topic.removeprefix(f"{base}/").split("/")))
    if route is None or not topic.startswith(f"{base}/"):
        return "unknown_topic"
    if not payload:
        return "empty"
    if len(payload) > LARGEST.get(route.kind, MOST):
        return "too_large"
    try:
        body = route.payload.model_validate_json(payload, extra="ignore")
        as_json(body)
        body.time.timestamp()
    except (ValidationError, ValueError, OverflowError):
        return "invalid"  # the latter two: a time at an end of the calendar, a number of thousands of digits
    ids = {name: getattr(body, name, "") for name in ("slide", "patient")}
    if topic != f"{base}/{route.topic.format(**ids)}":
        return "wrong_topic"
    return body


def as_json(body: Payload) -> dict[str, Any]:
    """The payload as it is written; figures that are not finite become null."""
    written: dict[str, Any] = json.loads(body.model_dump_json())
    return written


def _pattern(route: Route) -> list[str]:
    return ["+" if level.startswith("{") else level for level in route.topic.split("/")]


def _shape(levels: list[str]) -> tuple[str, ...]:
    """A topic's levels with ids left out."""
    return tuple(levels) if len(levels) != 3 else (levels[0], "+", levels[2])


_ROUTE_OF = {tuple(_pattern(route)): route for route in ROUTES.values() if route.kind != "reply"}
