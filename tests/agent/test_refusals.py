"""Which refused topics may be tried again, and when."""

from __future__ import annotations

from agent.refusals import Refusals


def test_only_the_first_refusal_of_a_topic_is_news() -> None:
    """`refuse` is True once per topic until the topic is accepted again."""
    refusals = Refusals()
    assert [refusals.refuse("a", 0), refusals.refuse("a", 1), refusals.refuse("b", 1)] == [True, False, True]
    assert refusals.accept("a")
    assert not refusals.accept("a")
    assert refusals.refuse("a", 2)


def test_one_message_per_pause_and_pauses_double() -> None:
    """A refused topic is tried with one message after 5, 10, 20, ... seconds, at most every 30."""
    refusals = Refusals(first_s=5, longest_s=30)
    refusals.refuse("a", 0)
    tried = []
    for now in range(120):
        refusals.release(now)
        allowed = [refusals.may_send("a") for _ in range(3)]
        assert allowed[1:] == [False, False]
        if allowed[0]:
            tried.append(now)
            refusals.refuse("a", now)
    assert tried == [5, 15, 35, 65, 95]


def test_other_topics_are_free() -> None:
    """A refusal holds back its own topic only, and a new connection forgets it."""
    refusals = Refusals()
    assert refusals.next_at() is None
    refusals.refuse("a", 10)
    assert refusals.may_send("b")
    assert not refusals.may_send("a")
    assert refusals.next_at() == 15
    refusals.clear()
    assert refusals.may_send("a")
    assert refusals.next_at() is None
