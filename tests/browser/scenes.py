"""Scenes for the screen: what an agent says on the wire in each, made with our own payload types.

A `Stage` says them on a real broker in the place of an agent. The pictures in them are made up from a seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import socket
import threading
from base64 import b32encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.messages import Alert, Counts, Current, EngineRef, Health, Payload, ProfileRef, Status
from agent.results import Domain, PatientFinal, PatientPosterior, SlideFinal, SlidePatches, SlidePosterior
from agent.topics import Topics
from models.decision import Decision
from tests.brokers import wait_until

CLASSES = ("ependymoma", "meningioma", "metastasis", "schwannoma")
SIZE_PX, STRIDE_PX = 300, 900
COLUMNS_X = (50, 350, 650)
PHANTOM = ProfileRef(name="phantom", version=1, sha256="0" * 64)
ENGINE = EngineRef(name="openvino", precision="bf16")
MINIMUM_PATCHES = 20
HEALTH_S = 0.5


def pseudonym(name: str) -> str:
    """An id that looks like the agent's."""
    return b32encode(hashlib.sha256(name.encode()).digest())[:16].decode().lower()


@dataclass(frozen=True)
class Patch:
    """One cell of a heat map."""

    strip: int
    x: int
    y: int
    predicted: int | None
    """None: rejected."""
    confidence: int = 0
    rejected: str = ""


def tissue(seed: int, label: int, strips: Sequence[int] = (0, 1), height: int = 2000) -> list[Patch]:
    """Patches of these scan strips: mostly of one class, with a corner without tissue and a vessel."""
    random_ = random.Random(seed)
    rows = sorted({*range(0, height - SIZE_PX, SIZE_PX), height - SIZE_PX})
    patches = []
    for strip, y, x in itertools.product(strips, rows, COLUMNS_X):
        across, down = (strip * STRIDE_PX + x) / (len(strips) * STRIDE_PX), y / height
        roll = random_.random()
        if across + down < 0.32 + 0.1 * roll:
            patches.append(Patch(strip, x, y, None, rejected="empty"))
        elif abs(across - down - 0.25) < 0.05 and roll < 0.7:
            patches.append(Patch(strip, x, y, None, rejected="blood"))
        else:
            named = label if roll < 0.8 else random_.randrange(len(CLASSES))
            patches.append(Patch(strip, x, y, named, random_.randint(150 if named == label else 90, 252)))
    return patches


class Said(NamedTuple):
    """What a result says."""

    probabilities: Sequence[float]
    decision: Decision
    reason: str
    counts: Counts


def counts_of(patches: Sequence[Patch]) -> Counts:
    """What these patches amount to."""
    rejected = Counter(patch.rejected for patch in patches if patch.predicted is None)
    return Counts(seen=len(patches), used=len(patches) - rejected.total(), rejected=dict(rejected))


def interval_of(p: float, used: int) -> tuple[float, float]:
    """An interval of plausible width."""
    half = 1.96 * (p * (1 - p) / (1 + 0.1 * used)) ** 0.5
    return max(0.0, p - half), min(1.0, p + half)


@dataclass
class Speaker:
    """Makes payloads of one session of an agent, and has a patient and slides of its own."""

    boot_seq: int = 1
    profile: ProfileRef = PHANTOM
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _told: Counter[str] = field(default_factory=Counter)

    @property
    def session(self) -> str:
        """One start of the agent."""
        return f"session-{self.boot_seq}"

    @property
    def patient(self) -> str:
        """Who is on the table."""
        return self.id("patient")

    @property
    def slide(self) -> str:
        """The first slide of that patient."""
        return self.id("slide")

    def id(self, name: str) -> str:
        """A pseudonym that no other session uses."""
        return pseudonym(f"{self.session} {name}")

    def _stamp(self) -> dict[str, Any]:
        self._told["all"] += 1
        return {
            "event_id": f"{self.session}-{self._told['all']}",
            "session_id": self.session,
            "time": datetime.now(UTC),
        }

    def status(self, state: str = "online") -> Status:
        """Birth, end or will."""
        return Status.model_validate(
            {
                **self._stamp(),
                "state": state,
                "boot_seq": self.boot_seq,
                "version": "0.1.0",
                "profile": self.profile,
                "engine": ENGINE,
                "since": self.since,
            }
        )

    def health(self, last_byte_age_s: float | None = 0.3) -> Health:
        """A sign of life."""
        return Health(
            **self._stamp(),
            engine=ENGINE,
            boot_seq=self.boot_seq,
            uptime_s=10,
            patches=Counts(seen=0, used=0),
            handovers={},
            outbox=0,
            reconnects=0,
            scan_only_finds=0,
            last_byte_age_s=last_byte_age_s,
            rss_bytes=1 << 28,
        )

    def current(self, patient: str | None, slide: str | None) -> Current:
        """Who is on the table."""
        return Current(**self._stamp(), patient=patient, slide=slide)

    def alert(self, reason: str, detail: str, slide: str | None = None) -> Alert:
        """Something to look at."""
        return Alert(**self._stamp(), severity="warning", reason=reason, detail=detail, slide=slide)

    def patches(self, patient: str, slide: str, patches: Sequence[Patch]) -> list[SlidePatches]:
        """Heat map messages, one for each strip, as the agent would send them."""
        said = []
        for _, strip in itertools.groupby(patches, key=lambda patch: patch.strip):
            batch = list(strip)
            reasons = tuple(sorted({patch.rejected for patch in batch if patch.predicted is None}))
            said.append(
                SlidePatches(
                    **self._stamp(),
                    patient=patient,
                    slide=slide,
                    classes=CLASSES,
                    size_px=SIZE_PX,
                    stride_px=STRIDE_PX,
                    before=self._told[slide],
                    strip=tuple(patch.strip for patch in batch),
                    x=tuple(patch.x for patch in batch),
                    y=tuple(patch.y for patch in batch),
                    reasons=reasons,
                    predicted=tuple(
                        -1 - reasons.index(patch.rejected) if patch.predicted is None else patch.predicted
                        for patch in batch
                    ),
                    confidence=tuple(patch.confidence for patch in batch),
                )
            )
            self._told[slide] += len(batch)
        return said

    def result(
        self,
        kind: type[SlidePosterior | PatientPosterior | SlideFinal | PatientFinal],
        patient: str,
        said: Said,
        **more: Any,
    ) -> Payload:
        """A posterior or final; `more` are its other fields, `slide` among them."""
        probabilities, decision, reason, counts = said
        top = max(probabilities)
        fields: dict[str, Any] = {
            "strips": {"done": 1, "expected": 2},
            "state": "receiving",
            "latency": {"last_byte_to_result_ms": 240.0, "inference_ms": 14.0},
            **more,
        }
        return kind.model_validate(
            {
                **self._stamp(),
                "profile": self.profile,
                "engine": ENGINE,
                "calibration": "one_vs_rest_sigmoid",
                "patient": patient,
                "classes": CLASSES,
                "probabilities": tuple(probabilities),
                "interval": tuple(interval_of(p, counts.used) for p in probabilities),
                "interval_mass": 0.95,
                "predicted": CLASSES[list(probabilities).index(top)],
                "confidence": top,
                "decision": decision,
                "decision_reason": reason,
                "operating_point": 0.77,
                "high_confidence": top >= 0.77,
                "counts": counts,
                "low_tissue": counts.used < MINIMUM_PATCHES,
                "minimum_patches": MINIMUM_PATCHES,
                "domain": Domain(judged=counts.used, embedding_far=0, intensity_outside=0, limit=0.5),
                **fields,
            }
        )

    def answer(self, patient: str, slide: str, said: Said, **more: Any) -> list[Payload]:
        """The same running answer for a slide and its patient."""
        return [
            self.result(SlidePosterior, patient, said, slide=slide, **more),
            self.result(PatientPosterior, patient, said, slides=1, **more),
        ]


class Stage:
    """A client that says payloads on a broker as an agent would: on their topics, retained where they are."""

    def __init__(self, port: int, site: str = "test", will: Payload | None = None) -> None:
        """Connects, and comes back by itself when the broker does, unless it leaves a will."""
        self._topics = Topics(site=site)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=will is None
        )
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        if will is not None:
            message = self._topics.message(will)
            self._client.will_set(message.topic, message.payload, qos=message.qos, retain=message.retain)
        self.last_byte_age_s: float | None = 0.3
        """What the health messages of `beat` say."""
        self._quiet = threading.Event()
        self._beating: threading.Thread | None = None
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_until(self._client.is_connected, "the stage is connected")

    def say(self, *payloads: Payload) -> None:
        """Publish, and wait until the broker has them."""
        for payload in payloads:
            message = self._topics.message(payload)
            told = self._client.publish(message.topic, message.payload, qos=message.qos, retain=message.retain)
            told.wait_for_publish(10)

    def beat(self, agent: Speaker) -> None:
        """Say that the agent is well, twice a second, until `fall_silent`."""

        def work() -> None:
            while not self._quiet.wait(HEALTH_S):
                message = self._topics.message(agent.health(self.last_byte_age_s))
                self._client.publish(message.topic, message.payload, retain=message.retain)

        self._beating = threading.Thread(target=work, name="heart")
        self._beating.start()

    def fall_silent(self) -> None:
        """No more signs of life."""
        self._quiet.set()
        if self._beating is not None:
            self._beating.join()

    @property
    def connected(self) -> bool:
        """Whether it is connected now."""
        return self._client.is_connected()

    def vanish(self) -> None:
        """The connection breaks without a farewell: the broker speaks the will."""
        sock = self._client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect."""
        self.fall_silent()
        self._client.disconnect()
        self._client.loop_stop()


def opening(agent: Speaker) -> list[Payload]:
    """The agent is online and a slide has begun."""
    return [agent.status(), agent.health(), agent.current(agent.patient, agent.slide)]


def insufficient(agent: Speaker) -> list[Payload]:
    """The first patches of a slide."""
    patches = tissue(3, 3, (0,))[:18]
    words = Said((0.13, 0.16, 0.09, 0.62), "insufficient", "too_few_patches", counts_of(patches))
    return [
        *opening(agent),
        *agent.answer(agent.patient, agent.slide, words, strips={"done": 0, "expected": 2}),
        *agent.patches(agent.patient, agent.slide, patches),
    ]


def running(agent: Speaker) -> list[Payload]:
    """Half of a slide is there."""
    patches = tissue(3, 3, (0, 1, 2, 3), 4000)[: 42 * 2 + 17]
    words = Said((0.09, 0.17, 0.06, 0.68), "provisional", "below_operating_point", counts_of(patches))
    return [
        *opening(agent),
        *agent.answer(agent.patient, agent.slide, words, strips={"done": 2, "expected": 4}),
        *agent.patches(agent.patient, agent.slide, patches),
        agent.alert("missing_channel", "strip 3: CH3 has not come yet", agent.slide),
    ]


def high_confidence(agent: Speaker) -> list[Payload]:
    """A whole slide of one class, and a second one begun."""
    patches = tissue(5, 1, (0, 1, 2, 3), 4000)
    words = Said((0.03, 0.91, 0.02, 0.04), "high_confidence", "meets_every_rule", counts_of(patches))
    done: dict[str, Any] = {"strips": {"done": 4, "expected": 4}}
    return [
        *opening(agent),
        agent.result(SlideFinal, agent.patient, words, slide=agent.slide, state="complete", revision=1, **done),
        agent.result(PatientPosterior, agent.patient, words, slides=1, **done),
        *agent.patches(agent.patient, agent.slide, patches),
    ]


def out_of_domain(agent: Speaker) -> list[Payload]:
    """Tissue that the profile was not made for."""
    patches = tissue(7, 2, (0, 1))
    counts = counts_of(patches)
    far = Domain(judged=counts.used, embedding_far=counts.used - 4, intensity_outside=2, limit=0.5)
    words = Said((0.11, 0.08, 0.77, 0.04), "out_of_domain", "embedding_far", counts)
    return [
        *opening(agent),
        *agent.answer(agent.patient, agent.slide, words, domain=far, strips={"done": 2, "expected": 2}),
        *agent.patches(agent.patient, agent.slide, patches),
    ]


def corrected(agent: Speaker) -> list[Payload]:
    """A patient whose final was corrected; nobody is on the table any more."""
    first = tissue(9, 0, (0,))
    patches = tissue(9, 0, (0, 1))
    said = Said((0.58, 0.22, 0.11, 0.09), "final", "below_operating_point", counts_of(first))
    again = Said((0.71, 0.14, 0.08, 0.07), "final", "below_operating_point", counts_of(patches))
    done: dict[str, Any] = {"state": "complete", "strips": {"done": 2, "expected": 2}}
    slide, slides = {"slide": agent.slide, **done}, {"slides": 1, **done}
    early = agent.result(SlideFinal, agent.patient, said, revision=1, **slide)
    whole = agent.result(PatientFinal, agent.patient, said, revision=1, **slides)
    return [
        agent.status(),
        agent.health(30.0),
        *agent.patches(agent.patient, agent.slide, patches),
        early,
        whole,
        agent.result(SlideFinal, agent.patient, again, revision=2, supersedes=early.event_id, **slide),
        agent.result(PatientFinal, agent.patient, again, revision=2, supersedes=whole.event_id, **slides),
        agent.current(None, None),
    ]
