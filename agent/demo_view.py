"""The demo's view: an ordinary MQTT subscriber and what it shows, as a live table or as plain lines."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models.contract import SlideKey
from models.decision import WORDS

BAR = 24
THRESHOLD = 0.77


@dataclass
class Card:
    """What was last heard of one slide."""

    name: str
    truth: str
    posterior: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    first_s: float | None = None
    """Seconds after the agent was ready at which the first posterior with a patch in it came."""

    @property
    def right(self) -> bool:
        """Whether the final names the phantom's true class."""
        return self.final is not None and self.final["predicted"] == self.truth


@dataclass
class Board:
    """Everything heard so far; filled on the subscriber's thread, read by whoever shows it."""

    truth: dict[SlideKey, tuple[str, str]]
    started: float
    online: bool = False
    changed: threading.Event = field(default_factory=threading.Event)
    cards: dict[str, Card] = field(init=False)
    patients: dict[str, dict[str, Any] | None] = field(init=False)
    failure: str = ""
    _status: dict[str, Any] = field(default_factory=dict)
    _health: tuple[float, dict[str, Any]] | None = None
    _lines: list[str] = field(default_factory=list)
    _heard_s: float = 0.0
    _known: set[str] = field(default_factory=set)
    """Every event_id heard."""

    def __post_init__(self) -> None:
        """One card for each slide that will come."""
        self.cards = {key.slide: Card(*names) for key, names in self.truth.items()}
        self.patients = {key.patient: None for key in self.truth}
        self._heard_s = self.started

    def hear(self, topic: str, message: dict[str, Any]) -> None:
        """Take one message of the agent; what others ask of it is not for us."""
        if "/cmd/" in topic:
            return
        if message["event_id"] in self._known:
            return  # delivered or told again: the dashboard asks for what it has missed
        self._known.add(message["event_id"])
        now = time.monotonic()
        kind = message["kind"]
        if kind == "health":
            self._health = (now, message)
        elif kind == "status":
            self._status, self.online = message, message["state"] == "online"
        elif kind == "alert":
            self._say(f"alert: {message['reason']}: {message['detail']}")
        elif kind == "slide.posterior":
            self._hear_posterior(message, now)
        elif kind == "slide.final" and message["slide"] in self.cards:
            card = self.cards[message["slide"]]
            card.final = card.posterior = message
            self._say(f"{card.name}: FINAL {_answer(message)}, {_judge(message, card.truth)}, {_counts(message)}")
        elif kind == "patient.final" and message["patient"] in self.patients:
            self.patients[message["patient"]] = message
            self._say(f"{self._patient_name(message)}: PATIENT FINAL {_answer(message)}, {_counts(message)}")
        if kind != "health":
            self._heard_s = now
        self.changed.set()

    def trouble(self, what: str) -> None:
        """Something went wrong outside the agent: the demo must end."""
        self.failure = what
        self.changed.set()

    @property
    def finished(self) -> bool:
        """Every slide and every patient has its final."""
        return all(card.final for card in self.cards.values()) and all(self.patients.values())

    def silent_s(self, now: float) -> float:
        """Seconds since the agent last said something about slides."""
        return now - self._heard_s

    def missing(self) -> str:
        """The slides without a final."""
        return ", ".join(card.name for card in self.cards.values() if not card.final) or "the last patient"

    def status_line(self) -> str:
        """Which profile and engine run."""
        engine, profile = self._status["engine"], self._status["profile"]
        passed = "".join(f"; {name} passed over: {why}" for name, why in self._status["passed_over"].items())
        return (
            f"profile {profile['name']} v{profile['version']}, engine {engine['name']} {engine['precision']}{passed}"
        )

    def new_lines(self) -> list[str]:
        """Plain lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def verdict(self) -> list[str]:
        """The last lines of the demo."""
        right = sum(card.right for card in self.cards.values())
        lines = [f"{right} of {len(self.cards)} phantom slides right"]
        lines += [
            f"  {card.name}: said {card.final['predicted']}, is {card.truth}"
            for card in self.cards.values()
            if card.final and not card.right
        ]
        return [*lines, "A synthetic phantom, not tissue: this says nothing about patients. Research use only."]

    def render(self) -> RenderableType:
        """The live view."""
        table = Table(
            title="phantom slides: running posterior (synthetic, not tissue; research use only)", expand=True
        )
        for heading in ("slide", "state", "patches", "posterior", "answer"):
            table.add_column(heading, no_wrap=heading != "answer")
        for card in self.cards.values():
            table.add_row(*_row(card))
        return Group(table, Text(self._pulse_line()))

    def _pulse_line(self) -> str:
        if self._health is None:
            return "waiting for the agent"
        heard, health = self._health
        age = health["last_byte_age_s"]
        silence = "no byte yet" if age is None else f"last byte {age + time.monotonic() - heard:.1f} s ago"
        counts = health["patches"]
        return (
            f"{silence}; {counts['used']} patches used, {counts['seen'] - counts['used']} rejected; "
            f"engine {health['engine']['name']} {health['engine']['precision']}; "
            f"{health['rss_bytes'] / 2**20:.0f} MiB"
        )

    def _hear_posterior(self, message: dict[str, Any], now: float) -> None:
        card = self.cards.get(message["slide"])
        if card is None:
            return
        card.posterior = message
        if message["counts"]["used"]:
            if card.first_s is None:
                card.first_s = now - self.started
            self._say(f"{card.name}: {_answer(message)}, {_counts(message)}, {message['state']}{_age(message)}")

    def _patient_name(self, message: dict[str, Any]) -> str:
        slides = [names[0] for key, names in self.truth.items() if key.patient == message["patient"]]
        return slides[0].partition("/")[0]

    def _say(self, line: str) -> None:
        self._lines.append(f"{time.monotonic() - self.started:7.1f} s  {line}")


class Subscriber:
    """A context manager around a paho client that feeds a board."""

    def __init__(self, port: int, board: Board) -> None:
        self._port = port
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="demo-view", protocol=MQTTProtocolVersion.MQTTv311
        )
        self._client.on_connect = lambda client, *_: client.subscribe("srh/v1/demo/phantom/#", qos=1)
        self._client.on_message = lambda _, __, message: board.hear(message.topic, json.loads(message.payload))

    def __enter__(self) -> Subscriber:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def _row(card: Card) -> tuple[RenderableType, ...]:
    said = card.posterior
    if said is None:
        return card.name, "waiting", "", "", ""
    counts = said["counts"]
    strips = f"{said['strips']['done']}/{said['strips']['expected'] or '?'} strips"
    patches = f"{counts['used']} used\n{counts['seen'] - counts['used']} rejected\n{strips}"
    answer = f"{_answer(said)}\n{_judge(said, card.truth)}" if card.final else _answer(said)
    return card.name, "FINAL" if card.final else said["state"], patches, _bars(said), answer


def _bars(message: dict[str, Any]) -> Text:
    text = Text()
    probabilities = message["probabilities"] or [0.0] * len(message["classes"])
    for name, p in zip(message["classes"], probabilities, strict=True):
        filled = round(BAR * p)
        mark = round(BAR * THRESHOLD)
        cells = "".join("█" if i < filled else ("│" if i == mark else "·") for i in range(BAR))
        text.append(f"{name[:11]:11} {cells} {p:.3f}\n", style="bold" if p == max(probabilities) else "dim")
    text.rstrip()
    return text


def _answer(message: dict[str, Any]) -> str:
    if message["predicted"] is None:
        return "no usable patch yet"
    low, high = message["interval"][message["classes"].index(message["predicted"])]
    words = WORDS[message["decision"]]
    return f"{message['predicted']} {message['confidence']:.3f} [{low:.2f}, {high:.2f}], {words}"


def _judge(message: dict[str, Any], truth: str) -> str:
    return "right" if message["predicted"] == truth else f"WRONG, it is {truth}"


def _counts(message: dict[str, Any]) -> str:
    counts = message["counts"]
    why = "".join(f", {count} {reason}" for reason, count in counts["rejected"].items())
    return f"{counts['seen']} patches seen = {counts['used']} used + {counts['seen'] - counts['used']} rejected{why}"


def _age(message: dict[str, Any]) -> str:
    latency = message["latency"]["last_byte_to_result_ms"]
    return "" if latency is None else f", {latency:.0f} ms after its last byte"
