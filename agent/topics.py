"""Where each payload goes and how it travels: topic, QoS, retained, coalesced, durable, expiry. Pure.

Knows no broker: what a `Message` says is all that the ledger and the MQTT session ever see of a payload.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from agent.commands import Reply
from agent.messages import Alert, Current, Health, Payload, Status
from agent.results import PatientFinal, PatientPosterior, SlideFinal, SlidePatches, SlidePosterior

SCHEMA_VERSION = 1
"""Grows when a field of any payload changes its meaning; new optional fields do not count."""
DEFAULT_ROOT = "srh/v1"
HEALTH_EXPIRY_S = 60
CURRENT_EXPIRY_S = 900
RESULT_EXPIRY_S = 30 * 86_400
"""A broker that kept every result for ever would tell each new screen all of them."""
MAX_REPLY_LEVELS = 16
"""Levels below `reply/` that a requester may ask for."""
_WILD = frozenset("+#\x00")
_FORBIDDEN = _WILD | {"/"}


@dataclass(frozen=True)
class Message:
    """One message ready for the wire."""

    topic: str
    payload: bytes
    """UTF-8 JSON."""
    event_id: str
    kind: str
    qos: int
    retain: bool
    coalesce: bool
    """The latest message of this topic replaces unsent earlier ones."""
    durable: bool
    """Goes through the ledger. False: sent when connected, else dropped (and made anew later)."""
    expiry_s: int | None = None
    """Seconds after which the broker may forget it; None = never."""
    correlation: bytes | None = None
    """MQTT 5 Correlation Data of the command that this answers."""

    @property
    def schema(self) -> str:
        """The MQTT 5 user property `schema`; the payload's own `kind` says the same without it."""
        return f"{self.kind}.v{SCHEMA_VERSION}"


@dataclass(frozen=True)
class Route:
    """How one kind of payload travels. `topic` is relative to root/site/instrument."""

    payload: type[Payload]
    topic: str
    qos: int = 1
    retain: bool = True
    coalesce: bool = False
    durable: bool = True
    expiry_s: int | None = None

    @property
    def kind(self) -> str:
        """The word in the payload's `kind` field, e.g. `slide.final`."""
        return str(self.payload.model_fields["kind"].default)


ROUTES: dict[str, Route] = {
    route.kind: route
    for route in (
        # Made anew on every connect and at the end, so it must never wait in the ledger.
        Route(Status, "status", durable=False),
        Route(Health, "health", qos=0, durable=False, expiry_s=HEALTH_EXPIRY_S),
        Route(Current, "current", coalesce=True, expiry_s=CURRENT_EXPIRY_S),
        Route(SlidePosterior, "slide/{slide}/posterior", coalesce=True, expiry_s=RESULT_EXPIRY_S),
        Route(PatientPosterior, "patient/{patient}/posterior", coalesce=True, expiry_s=RESULT_EXPIRY_S),
        Route(SlidePatches, "slide/{slide}/patches", qos=0, retain=False, durable=False),
        Route(SlideFinal, "slide/{slide}/final", expiry_s=RESULT_EXPIRY_S),
        Route(PatientFinal, "patient/{patient}/final", expiry_s=RESULT_EXPIRY_S),
        Route(Alert, "alert", retain=False),
        # Whoever asked waits for it now, and may ask again under the same request_id.
        Route(Reply, "reply/{verb}", retain=False, durable=False),
    )
}


class Topics:
    """The topics of one instrument: `{root}/{site}/{instrument}/...`."""

    def __init__(self, root: str = DEFAULT_ROOT, site: str = "site", instrument: str = "instrument") -> None:
        """Raises ValueError for a part that would change the shape of the topic tree."""
        levels = [*root.split("/"), site, instrument]
        self.base = "/".join(_level(level) for level in levels)

    def message(self, payload: Payload) -> Message:
        """Put a payload on its route; raises ValueError when an id cannot be one level of a topic."""
        route = ROUTES[payload.kind]
        ids = {
            name: _level(str(getattr(payload, name)))
            for name in ("slide", "patient", "verb")
            if f"{{{name}}}" in route.topic
        }
        return Message(
            topic=f"{self.base}/{route.topic.format(**ids)}",
            payload=payload.model_dump_json().encode(),
            event_id=payload.event_id,
            kind=payload.kind,
            qos=route.qos,
            retain=route.retain,
            coalesce=route.coalesce,
            durable=route.durable,
            expiry_s=route.expiry_s,
        )

    def command(self, verb: str) -> str:
        """The topic on which a command arrives, e.g. `close-patient`."""
        return f"{self.base}/cmd/{_level(verb)}"

    @property
    def commands(self) -> str:
        """The filter that every command's topic matches."""
        return f"{self.base}/cmd/+"

    @property
    def status(self) -> str:
        """Where birth and will go."""
        return f"{self.base}/{ROUTES['status'].topic}"

    def may_reply_at(self, topic: str) -> bool:
        """Whether a requester may have its answer there: below `reply/`, or anybody could make us speak anywhere."""
        prefix = f"{self.base}/reply/"
        below = topic.removeprefix(prefix)
        # mosquitto takes more than 200 levels, and others what cannot be printed, for an error and disconnects us.
        is_plain = below.isprintable() and below.count("/") < MAX_REPLY_LEVELS and not _WILD.intersection(below)
        return topic.startswith(prefix) and below != "" and len(topic) <= 1024 and is_plain


def final_event_id(
    profile_sha256: str, scope: str, patient: str, slide: str, revision: int, fingerprint: str = ""
) -> str:
    """The id of a final: the same after a crash, so that consumers recognise what is sent again.

    With the fingerprint of what it says, not even an agent that has lost its ledger gives one id to two contents.
    Finals before schema 4 lack it.
    """
    said = "\x1f".join((profile_sha256, scope, patient, slide, str(revision), *([fingerprint] * bool(fingerprint))))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _level(text: str) -> str:
    if not text or _FORBIDDEN.intersection(text) or text.startswith("$"):
        raise ValueError(f"{text!r} cannot be one level of an MQTT topic (empty, $, or one of / + #)")
    return text
