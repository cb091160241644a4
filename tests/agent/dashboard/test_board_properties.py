"""Whatever order the wire allows gives the same view, and nothing that anybody can send breaks the board."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.dashboard.board import Board
from agent.dashboard.heard import Now
from agent.topics import Message
from tests.agent.dashboard.sayings import TOPICS, Saying

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
AT = Now(NOON.timestamp(), 5000.0)
EARLIER = timedelta(minutes=10)
IDS = st.sampled_from(["a", "b", "c"])
REDELIVERED = {"slide.posterior", "patient.posterior", "slide.final", "patient.final", "current", "alert"}
"""Kinds with QoS 1 whose repetition means nothing; a status is only ever repeated as the latest."""


def said_by(agent: Saying) -> st.SearchStrategy[Callable[[], Message]]:
    """Something that an agent may say now."""
    ids = st.tuples(IDS, IDS)

    def slide(names: tuple[str, str], used: int) -> Message:
        return agent.slide(names[0], f"{names[0]}-{names[1]}", used=used)

    def final(names: tuple[str, str], revision: int) -> Message:
        return agent.slide_final(names[0], f"{names[0]}-{names[1]}", revision)

    return st.one_of(
        st.builds(lambda names, used: lambda: slide(names, used), ids, st.integers(0, 99)),
        st.builds(lambda names, revision: lambda: final(names, revision), ids, st.integers(1, 3)),
        st.builds(lambda name, used: lambda: agent.patient(name, used=used), IDS, st.integers(0, 99)),
        st.builds(lambda name, revision: lambda: agent.patient_final(name, revision), IDS, st.integers(1, 3)),
        st.builds(lambda names: lambda: agent.current(names[0], f"{names[0]}-{names[1]}"), ids),
        st.just(lambda: agent.current(None, None)),
        st.builds(lambda age: lambda: agent.health(age), st.floats(0, 20)),
        st.just(agent.alert),
        st.just(agent.status),
        st.just(lambda: agent.status("offline")),
        st.builds(
            lambda names, strip: lambda: agent.patches(names[0], f"{names[0]}-{names[1]}", strip, 1),
            ids,
            st.integers(0, 4),
        ),
    )


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], list[Message]]:
    """What the broker kept of an earlier time, one message a topic, and what is said live, in order."""
    before, now = Saying(NOON - EARLIER, "one", 1), Saying(NOON - timedelta(seconds=1), "two", 2)
    old = [say() for say in draw(st.lists(said_by(before), max_size=20))]
    kept = {message.topic: message for message in old if message.retain}
    return list(kept.values()), [say() for say in draw(st.lists(said_by(now), max_size=20))]


def interleaved(draw: st.DrawFn, messages: list[Message]) -> list[Message]:
    """Another order that MQTT allows: each topic's own stays; QoS 1 messages may come again at any later time."""
    waiting: dict[str, list[Message]] = {}
    for message in messages:
        waiting.setdefault(message.topic, []).append(message)
    order: list[Message] = []
    while waiting:
        topic = draw(st.sampled_from(sorted(waiting)))
        order.append(waiting[topic].pop(0))
        if not waiting[topic]:
            del waiting[topic]
        if draw(st.booleans()):
            again = draw(st.sampled_from(order))
            order += [again] if again.kind in REDELIVERED else []
    return order


def shown(kept: list[Message], live: list[Message]) -> dict[str, Any]:
    """The final view, and the heat maps, of a board that heard this."""
    board = Board(TOPICS.base, "boot", AT, UTC)
    board.link("connected", "", AT)
    for message in kept:
        board.hear(message.topic, message.payload, retained=True, now=AT)
    for message in live:
        board.hear(message.topic, message.payload, retained=False, now=AT)
    maps = {held.slide: sorted(held.cells) for held in board.heat_maps if len(list(board.heat_maps)) < 4}
    return {"view": board.view(AT), "maps": maps}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_order_of_arrival_does_not_matter(data: st.DataObject) -> None:
    """Kept messages in any order of topics, live topics interleaved anyhow, QoS 1 repeated: the same view."""
    kept, live = data.draw(conversations())
    expected = shown(kept, live)
    other = shown(data.draw(st.permutations(kept)), data.draw(st.composite(interleaved)(live)))
    assert other == expected


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TOPIC_ENDS = [
    "status",
    "health",
    "current",
    "alert",
    "slide/s/posterior",
    "slide/s/final",
    "slide/s/patches",
    "patient/p/posterior",
    "patient/p/final",
]


@st.composite
def hostile(draw: st.DrawFn) -> tuple[str, bytes]:
    """Bytes that are no payload, or a payload with parts replaced by anything."""
    agent = Saying(NOON)
    end = draw(st.sampled_from(TOPIC_ENDS))
    if draw(st.booleans()):
        return f"{TOPICS.base}/{end}", draw(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    makers: list[Callable[[], Message]] = [
        agent.status,
        agent.health,
        lambda: agent.current("p", "s"),
        agent.alert,
        lambda: agent.slide("p", "s"),
        lambda: agent.slide_final("p", "s", 2),
        lambda: agent.patches("p", "s", 1, 1),
        lambda: agent.patient("p"),
        lambda: agent.patient_final("p", 2),
    ]
    body = json.loads(makers[TOPIC_ENDS.index(end)]().payload)
    for name in draw(st.lists(st.sampled_from(sorted(body)), min_size=1, max_size=3, unique=True)):
        body[name] = draw(ANYTHING | st.datetimes().map(lambda time: f"{time.isoformat()}+14:00"))
    return f"{TOPICS.base}/{end}", json.dumps(body).encode()


@settings(max_examples=300, deadline=None)
@given(st.lists(hostile(), max_size=5))
def test_nothing_that_is_sent_breaks_the_board(messages: list[tuple[str, bytes]]) -> None:
    """Whatever comes, hearing it does not raise, and the view and the heat maps stay plain JSON."""
    board = Board(TOPICS.base, "boot", AT, UTC)
    for topic, payload in messages:
        board.hear(topic, payload, retained=False, now=AT)
        said = [board.view(AT), *(board.patches(held, 0) for held in board.heat_maps), board.summary(AT)]
        assert json.loads(json.dumps(said, allow_nan=False))
        assert not board.wants_replay(AT) and not board.wants_kept(AT)


@given(st.text(max_size=40))
def test_any_topic_may_come(topic: str) -> None:
    """A topic of whatever shape is ignored, not a mistake."""
    board = Board(TOPICS.base, "boot", AT, UTC)
    assert board.hear(topic, b"{}", retained=False, now=AT) is not None
    assert board.hear(f"{TOPICS.base}/{topic}", b"{}", retained=False, now=AT) is not None
