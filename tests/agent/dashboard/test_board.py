"""The board: which message replaces which, who is shown, what is past, stale or missing. Pure, so no broker here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.dashboard import heat_maps, patients
from agent.dashboard.board import NOTHING_HEARD_S, Board
from agent.dashboard.heard import MAX_BYTES, MOST, Now
from agent.dashboard.missing import FETCH_AFTER_S, FETCH_PAUSE_S, LASTS_S
from agent.messages import ProfileRef
from agent.results import Latency, Parts
from agent.topics import CURRENT_EXPIRY_S, Message
from tests.agent.dashboard.sayings import TOPICS, Saying

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DAY_S = 86_400.0


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self, at: datetime = NOON) -> None:
        self.wall_s = at.timestamp()
        self.steady_s = 1000.0

    def now(self) -> Now:
        """This moment."""
        return Now(self.wall_s, self.steady_s)

    def forward(self, seconds: float) -> None:
        """Both clocks go on."""
        self.wall_s += seconds
        self.steady_s += seconds


class Screen:
    """A board with its clock, and an agent that speaks to it at the present time."""

    def __init__(self, at: datetime = NOON) -> None:
        self.clock = Clock(at)
        self.board = Board(TOPICS.base, "boot", self.clock.now(), UTC)
        self.board.link("connected", "", self.clock.now())
        self.agent = Saying(at)

    def hear(self, *messages: Message, retained: bool = False) -> Screen:
        """Messages arrive."""
        for message in messages:
            self.board.hear(message.topic, message.payload, retained=retained, now=self.clock.now())
        return self

    def forward(self, seconds: float) -> Screen:
        """Time goes on, for the agent too."""
        self.clock.forward(seconds)
        self.agent.time = datetime.fromtimestamp(self.clock.wall_s, UTC)
        return self

    def view(self) -> dict[str, Any]:
        """What is shown; it must be JSON."""
        view = self.board.view(self.clock.now())
        json.dumps(view, allow_nan=False)
        return view

    def cells(self, slide: str) -> dict[str, Any]:
        """The whole heat map of a slide, as a new screen gets it."""
        held = next(held for held in self.board.heat_maps if held.slide == slide)
        return self.board.patches(held, 0)


# The agent itself


def test_an_empty_board_shows_nothing_and_says_so() -> None:
    """Before any message every part of the view is there, empty, and nothing counts as arriving."""
    view = Screen().view()
    assert (view["agent"], view["health"], view["current"], view["patient"]) == (None, None, None, None)
    assert (view["slides"], view["history"], view["alerts"], view["labels"]) == ([], [], [], {})
    assert (view["arriving"], view["demo"], view["patient_is_past"]) == ("unknown", False, False)


def test_a_late_will_of_an_earlier_session_changes_nothing() -> None:
    """The agent was restarted: the will of the session before arrives after the new birth, and is not believed."""
    screen = Screen()
    old, new = Saying(NOON - timedelta(hours=1), "old", 1), Saying(NOON, "new", 2)
    screen.hear(old.status(), new.status(), old.status("offline"))
    agent = screen.view()["agent"]
    assert (agent["state"], agent["session_id"], agent["boot_seq"]) == ("online", "new", 2)


def test_the_sessions_own_will_is_believed_each_time() -> None:
    """A will has the same event_id whenever the broker speaks it; the second loss shows like the first."""
    screen = Screen()
    will = screen.agent.status("offline")
    for _ in range(2):
        screen.hear(screen.agent.status())
        assert screen.view()["agent"]["state"] == "online"
        screen.forward(5).hear(will)
        assert screen.view()["agent"]["state"] == "offline"
    assert screen.view()["agent"]["since"] == datetime.fromtimestamp(screen.clock.wall_s, UTC).isoformat(
        timespec="milliseconds"
    )


def test_a_later_session_that_died_unseen_is_believed() -> None:
    """A whole session was missed: its will, kept by the broker, is newer than the birth that is known."""
    screen = Screen().hear(Saying(NOON - timedelta(hours=2), "old", 1).status())
    screen.hear(Saying(NOON - timedelta(hours=1), "new", 2).status("offline"), retained=True)
    assert (screen.view()["agent"]["session_id"], screen.view()["agent"]["state"]) == ("new", "offline")


def test_a_new_ledger_starts_boot_seq_anew_and_is_believed() -> None:
    """After a reinstallation boot_seq begins at 1; the birth counts, since it speaks of a later start."""
    screen = Screen().hear(Saying(NOON - timedelta(hours=2), "old", 57).status(), Saying(NOON, "new", 1).status())
    assert screen.view()["agent"]["session_id"] == "new"


def test_the_synthetic_phantom_is_called_a_demo() -> None:
    """`demo` follows the profile that the status names."""
    screen = Screen().hear(Screen().agent.status())
    assert screen.view()["demo"]
    agent = Saying(NOON, "other", 2)
    agent.profile = ProfileRef(name="spine", version=3, sha256="1" * 64)
    assert not screen.hear(agent.status()).view()["demo"]


def test_health_without_a_known_rhythm_is_stale_after_thirty_seconds() -> None:
    """One message says nothing of the next one's time."""
    screen = Screen().hear(Screen().agent.health())
    assert not screen.forward(30).view()["health"]["stale"]
    assert screen.forward(0.1).view()["health"]["stale"]


def test_three_missing_health_messages_make_it_stale() -> None:
    """With a rhythm of ten seconds, and one message lost on the way, the limit stays thirty seconds."""
    screen = Screen()
    for pause in (10, 10, 20, 10, 0.3):
        screen.forward(pause).hear(screen.agent.health())
    assert not screen.forward(29.9).view()["health"]["stale"]
    view = screen.forward(0.2).view()
    assert view["health"]["stale"] and view["arriving"] == "unknown"
    assert view["health"]["age_s"] == pytest.approx(30.1)


def test_kept_health_is_as_old_as_it_says() -> None:
    """A broker of MQTT 3.1.1 keeps health for ever: yesterday's is stale at once."""
    old = Saying(NOON - timedelta(days=1))
    assert Screen().hear(old.health(), retained=True).view()["health"]["stale"]


def test_a_clock_that_differs_is_allowed_for() -> None:
    """The agent's clock is an hour behind: what it says now is still new, once a health message has shown it."""
    screen = Screen()
    behind = Saying(NOON - timedelta(hours=1))
    screen.hear(behind.health(), behind.current("p", "s"), behind.patient("p"))
    view = screen.view()
    assert view["current"] == {"patient": "p", "slide": "s", "since": "2026-11-21T12:00:00.000+00:00"}
    assert not view["patient_is_past"] and view["last_byte_age_s"] == pytest.approx(0.0, abs=0.3)


def test_a_clock_that_is_set_back_does_not_freeze_the_screen() -> None:
    """The agent's clock ran a day ahead and is put right: new posteriors replace those from the future."""
    screen = Screen()
    ahead = Saying(NOON + timedelta(days=1))
    screen.hear(ahead.health(), ahead.current("p", "s"), ahead.patient("p", used=40))
    screen.forward(10)
    ahead.time = NOON + timedelta(seconds=10)
    screen.hear(ahead.health(), ahead.current("p", "s"), ahead.patient("p", used=60))
    assert screen.view()["patient"]["counts"]["used"] == 60


# What is current


def test_a_renewed_pointer_stays_and_an_old_one_goes() -> None:
    """`current` holds for its expiry after the last renewal, and not longer; `since` is when the slide began."""
    screen = Screen().hear(Screen().agent.health())
    screen.hear(screen.agent.current("p", "s"))
    screen.forward(CURRENT_EXPIRY_S - 1).hear(screen.agent.current("p", "s"))
    screen.forward(CURRENT_EXPIRY_S - 1)
    assert screen.view()["current"]["since"].startswith("2026-11-21T12:00:00")
    assert screen.forward(1.1).view()["current"] is None


def test_yesterdays_patient_is_never_current() -> None:
    """Whatever the broker kept, even if the agent says it again today: an old pointer and its results are past."""
    yesterday = Saying(NOON - timedelta(days=1))
    messages = [yesterday.current("p", "s"), yesterday.slide("p", "s"), yesterday.patient("p")]
    for retained in (True, False):
        view = Screen().hear(*messages, retained=retained).view()
        assert (view["current"], view["patient"], view["slides"]) == (None, None, [])


def test_a_patient_without_an_open_slide_is_past() -> None:
    """After the end the last patient of the day stays on the screen, as past."""
    screen = Screen()
    screen.hear(screen.agent.current("p", "s"), screen.agent.patient("p"))
    assert not screen.view()["patient_is_past"]
    screen.hear(screen.agent.patient_final("p"), screen.agent.current(None, None))
    view = screen.view()
    assert (view["current"], view["patient"]["kind"], view["patient_is_past"]) == (None, "patient.final", True)


def test_the_last_patient_of_the_day_is_shown_even_after_a_correction_of_an_earlier_one() -> None:
    """A late correction does not bring the patient before back onto the screen."""
    screen = Screen()
    for patient in ("a", "b"):
        screen.forward(60).hear(screen.agent.patient(patient), screen.agent.patient_final(patient))
    screen.forward(60).hear(screen.agent.patient_final("a", revision=2))
    assert screen.view()["patient"]["patient"] == "b"


def test_a_new_current_patient_without_results_hides_the_one_before() -> None:
    """As soon as the next patient is on the table, nothing of the last one is shown as theirs."""
    screen = Screen().hear(Screen().agent.patient_final("a"))
    view = screen.forward(60).hear(screen.agent.current("b", "s")).view()
    assert (view["patient"], view["slides"], view["patient_is_past"]) == (None, [], False)
    assert view["labels"]["b"] == "Patient 2"


@pytest.mark.parametrize(("silent_s", "word"), [(1.0, "receiving"), (6.0, "silent")])
def test_what_arrives(silent_s: float, word: str) -> None:
    """Bytes within five seconds count as receiving; longer silence on an open slide is told."""
    screen = Screen()
    screen.hear(screen.agent.health(last_byte_age_s=silent_s), screen.agent.current("p", "s"))
    assert (screen.view()["arriving"], screen.view()["last_byte_age_s"]) == (word, silent_s)
    screen.hear(screen.agent.current(None, None))
    assert screen.view()["arriving"] == "idle"


def test_results_say_that_bytes_arrive_between_two_health_messages() -> None:
    """Health comes every ten seconds; a result whose last byte is newer counts."""
    screen = Screen()
    screen.hear(screen.agent.health(), screen.agent.current("p", "s")).forward(9)
    screen.hear(screen.agent.slide("p", "s", latency=Latency(last_byte_at=screen.agent.time)))
    assert screen.forward(1).view()["arriving"] == "receiving"


def test_without_a_broker_nothing_counts_as_arriving() -> None:
    """What is known about bytes is worth nothing once the connection is lost."""
    screen = Screen()
    screen.hear(screen.agent.health(), screen.agent.current("p", "s"))
    screen.board.link("lost", "Connection refused", screen.clock.now())
    view = screen.forward(1).view()
    assert (view["arriving"], view["broker"]["state"], view["broker"]["reason"]) == (
        "unknown",
        "lost",
        "Connection refused",
    )


def test_a_broker_with_nothing_to_tell_is_explained() -> None:
    """Connected, and no message under this site and instrument: the reason says what to look at."""
    screen = Screen()
    assert screen.forward(NOTHING_HEARD_S).view()["broker"]["reason"] == ""
    reason = screen.forward(0.1).view()["broker"]["reason"]
    assert TOPICS.base in reason and "may this user read" in reason
    assert screen.hear(screen.agent.status()).view()["broker"]["reason"] == ""


# Results


def test_finals_are_superseded_and_never_replaced() -> None:
    """A correction is shown in place of the final; the history keeps both, and marks the first."""
    screen = Screen()
    screen.hear(screen.agent.slide_final("p", "s"), screen.agent.slide_final("p", "s", revision=2, used=60))
    (slide,) = screen.view()["slides"]
    assert (slide["is_final"], slide["revision"], slide["corrected"]) == (True, 2, True)
    assert slide["result"]["counts"]["used"] == 60
    history = screen.view()["history"]
    assert [(entry["revision"], entry["superseded"]) for entry in history] == [(2, False), (1, True)]


def test_a_correction_counts_even_if_it_comes_first() -> None:
    """A first revision that is heard after the second stays superseded."""
    screen = Screen()
    first, second = screen.agent.slide_final("p", "s"), screen.agent.slide_final("p", "s", revision=2)
    screen.hear(second, first)
    assert [(entry["revision"], entry["superseded"]) for entry in screen.view()["history"]] == [(2, False), (1, True)]
    assert screen.view()["slides"][0]["revision"] == 2


def test_more_of_a_finished_slide_shows_as_running_again() -> None:
    """A posterior after a final is the newest word, and the slide is no longer final."""
    screen = Screen()
    screen.hear(screen.agent.slide_final("p", "s"), screen.agent.slide("p", "s", used=44))
    (slide,) = screen.view()["slides"]
    assert (slide["is_final"], slide["revision"], slide["result"]["kind"]) == (False, 1, "slide.posterior")


def test_a_posterior_of_the_same_data_does_not_undo_the_final() -> None:
    """The agent says both of a finished slide at once; whichever is stamped later, the slide is final."""
    screen = Screen()
    screen.hear(screen.agent.slide_final("p", "s"), screen.agent.slide("p", "s", state="complete"))
    assert screen.view()["slides"][0]["is_final"]


def test_what_comes_twice_counts_once() -> None:
    """QoS 1 may deliver again: an old posterior does not come back, an alert is shown once."""
    screen = Screen()
    old, new, alert = screen.agent.patient("p", used=40), screen.agent.patient("p", used=60), screen.agent.alert()
    view = screen.hear(screen.agent.current("p", "s"), old, new, alert, old, alert).view()
    assert view["patient"]["counts"]["used"] == 60 and len(view["alerts"]) == 1


def test_history_is_of_today_by_the_local_date() -> None:
    """At local midnight the finals of the day before leave, and labels start again; older ones get their date."""
    screen = Screen(datetime(2026, 11, 21, 23, 50, tzinfo=UTC))
    screen.hear(screen.agent.patient_final("a"), screen.agent.patient("b"), screen.agent.current("b", "s"))
    assert [entry["patient"] for entry in screen.view()["history"]] == ["a"]
    screen.forward(1200).hear(screen.agent.patient_final("b"), screen.agent.current("c", "s2"))
    view = screen.view()
    assert [entry["patient"] for entry in view["history"]] == ["b"]
    assert (view["labels"]["b"], view["labels"]["c"]) == ("Patient 2 of 21 Nov", "Patient 1")


def test_history_and_alerts_are_bounded_and_newest_first() -> None:
    """At most fifty finals and twenty alerts are shown."""
    screen = Screen()
    for number in range(70):
        screen.forward(1).hear(screen.agent.slide_final(f"p{number % 50}", f"s{number}"), screen.agent.alert())
    view = screen.view()
    assert (len(view["history"]), len(view["alerts"])) == (50, 20)
    assert view["history"][0]["slide"] == "s69"
    assert [entry["time"] for entry in view["alerts"]] == sorted((a["time"] for a in view["alerts"]), reverse=True)


def test_alerts_of_yesterday_are_not_shown() -> None:
    """A dashboard that ran through the night starts the day without old alerts."""
    screen = Screen().hear(Screen().agent.alert())
    assert screen.view()["alerts"] and not screen.forward(DAY_S).view()["alerts"]


def test_slides_are_in_the_order_of_first_sight() -> None:
    """Slide 1 stays Slide 1 when it is spoken of again."""
    screen = Screen()
    for slide in ("zz", "aa", "zz"):
        screen.forward(1).hear(screen.agent.slide("p", slide), screen.agent.current("p", slide))
    view = screen.view()
    assert [(s["slide"], s["label"]) for s in view["slides"]] == [("zz", "Slide 1"), ("aa", "Slide 2")]
    assert view["labels"] == {"zz": "Slide 1", "aa": "Slide 2", "p": "Patient 1"}


def test_results_are_bounded_and_the_current_patient_stays() -> None:
    """Beyond 64 patients those spoken of least lately go, but not the one on the table."""
    screen = Screen()
    screen.hear(screen.agent.current("table", "s"), screen.agent.slide("table", "s"), screen.agent.patient("table"))
    for number in range(patients.MAX_PATIENTS + 40):
        screen.forward(1).hear(*(screen.agent.slide_final(f"p{number}", f"s{number}-{i}") for i in range(5)))
    view = screen.view()
    assert view["patient"]["patient"] == "table" and len(view["slides"]) == 1
    held = screen.board._patients._held  # what is held is not all shown
    assert len(held) <= patients.MAX_PATIENTS
    assert sum(len(one.slides) for one in held.values()) <= patients.MAX_SLIDES


# Heat maps


def test_cells_are_placed_and_counted_once() -> None:
    """X is strip × stride + x; a cell that comes again replaces itself; the rejected ones name their reason."""
    screen = Screen()
    patches = screen.agent.patches("p", "s", strip=2, rows=2)
    screen.hear(patches, patches, screen.agent.slide("p", "s", used=6, rejected=3, strips=Parts(done=1, expected=8)))
    event = screen.cells("s")
    assert event["reset"] and (event["known"], event["seen"]) == (6, 9)
    assert event["cells"][0] == (1800, 0, 0, 200) and event["cells"][2] == (2400, 0, -1, 0)
    assert (event["reasons"], event["strips"]) == (["empty"], {"done": 1, "expected": 8})


def test_reasons_are_one_growing_list_a_slide() -> None:
    """Messages number their reasons each for itself; codes are brought to the slide's own list."""
    screen = Screen()
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=1, reasons=("empty",)))
    more: dict[str, Any] = {"reasons": ("blurred", "empty"), "predicted": (-1, -2, 0), "confidence": (0, 0, 9)}
    screen.hear(screen.agent.patches("p", "s", strip=1, rows=1, **more))
    event = screen.cells("s")
    assert event["reasons"] == ["empty", "blurred"]
    assert [cell[2] for cell in event["cells"]] == [0, 1, -1, -2, -1, 0]


def test_a_screen_is_sent_what_it_lacks() -> None:
    """Only cells after the last one sent, in the order in which they came, and everything after a new grid."""
    screen = Screen().hear(Screen().agent.patches("p", "s", strip=0, rows=1))
    (held,) = screen.board.heat_maps
    sent = held.serial
    screen.hear(screen.agent.patches("p", "s", strip=1, rows=1))
    event = screen.board.patches(held, sent)
    assert not event["reset"] and [cell[0] for cell in event["cells"]] == [900, 1200, 1500]
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=1, stride_px=1000))
    (held,) = screen.board.heat_maps
    assert screen.board.patches(held, sent)["reset"] and len(held.cells) == 3


def test_what_is_retracted_leaves_the_picture() -> None:
    """The screen begins anew with the cells that are left; nothing is missing then, and no reason names it."""
    screen = Screen().hear(Screen().agent.patches("p", "s", strip=0, rows=2))
    (held,) = screen.board.heat_maps
    sent = held.serial
    gone: dict[str, Any] = {"reasons": ("retracted",), "predicted": (-1,) * 3, "confidence": (0,) * 3}
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=1, before=3, **gone))
    event = screen.board.patches(held, sent)
    assert event["reset"] and [cell[:2] for cell in event["cells"]] == [(0, 300), (300, 300), (600, 300)]
    assert (event["known"], event["reasons"], held.told) == (3, ["empty"], 3)


def test_heat_maps_are_bounded_and_the_current_patients_stay() -> None:
    """Four slides, those of other patients go first; 20,000 cells, the oldest go first."""
    screen = Screen().hear(Screen().agent.current("p", "s"), Screen().agent.patches("p", "s", strip=0, rows=1))
    for number in range(6):
        screen.hear(screen.agent.patches(f"other{number}", f"s{number}", strip=0, rows=1))
    assert sorted(held.slide for held in screen.board.heat_maps) == ["s", "s3", "s4", "s5"]
    for strip in range(7):
        screen.hear(screen.agent.patches("p", "s", strip=strip, rows=1000))
    assert screen.cells("s")["known"] == heat_maps.MAX_CELLS


def test_a_cell_beyond_all_reason_is_no_cell() -> None:
    """Coordinates that no slide has are left out: a browser could not draw them."""
    screen = Screen().hear(Screen().agent.patches("p", "s", strip=10**12, rows=1))
    assert screen.cells("s")["cells"] == []


def holes(screen: Screen) -> Screen:
    """The dashboard was started in mid-slide: 48 patches seen, none known."""
    return screen.hear(screen.agent.status(), screen.agent.current("p", "s"), screen.agent.slide("p", "s"))


def test_missing_cells_are_asked_for_once_a_connection() -> None:
    """Holes that last are asked for, not again on this connection, and again on the next one or of a new agent."""
    screen = holes(Screen())
    assert not screen.board.wants_replay(screen.clock.now())
    asked = [screen.forward(LASTS_S / 2).board.wants_replay(screen.clock.now()) for _ in range(10)]
    assert asked == [False, True, *[False] * 8]
    for state in ("lost", "connected"):
        screen.board.link(state, "", screen.clock.now())
    assert not screen.board.wants_replay(screen.clock.now())
    assert screen.forward(LASTS_S).board.wants_replay(screen.clock.now())
    screen.hear(Saying(NOON + timedelta(minutes=1), "session-2", 2).status())
    screen.board.wants_replay(screen.clock.now())
    assert screen.forward(LASTS_S).board.wants_replay(screen.clock.now())


def test_a_whole_heat_map_is_not_asked_for() -> None:
    """Nothing is missing, or only for a moment: nothing is asked."""
    screen = holes(Screen())
    assert not screen.board.wants_replay(screen.clock.now())
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=16))
    assert not screen.forward(LASTS_S + 1).board.wants_replay(screen.clock.now())


def test_patches_that_wait_to_be_told_are_no_hole() -> None:
    """A running slide has seen more than it has told; a message that speaks of patches before it shows a hole."""
    screen = holes(Screen())
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=5))
    for _ in range(3):
        assert not screen.forward(LASTS_S).board.wants_replay(screen.clock.now())
    screen.hear(screen.agent.patches("p", "s", strip=1, rows=5, before=21))
    assert not screen.board.wants_replay(screen.clock.now())
    assert screen.forward(LASTS_S).board.wants_replay(screen.clock.now())


def test_the_last_patches_of_a_slide_that_ended_are_asked_for() -> None:
    """Nothing comes after them that could show the hole."""
    screen = holes(Screen())
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=5), screen.agent.slide_final("p", "s"))
    assert not screen.board.wants_replay(screen.clock.now())
    assert screen.forward(LASTS_S).board.wants_replay(screen.clock.now())


def test_a_slide_that_the_patients_result_counts_and_nobody_told_is_asked_for() -> None:
    """The patient's posterior speaks of two slides; only one is known, with its whole heat map."""
    screen = Screen()
    screen.hear(screen.agent.status(), screen.agent.current("p", "s"), screen.agent.slide("p", "s"))
    screen.hear(screen.agent.patches("p", "s", strip=0, rows=16), screen.agent.patient("p", slides=2))
    assert not screen.board.wants_replay(screen.clock.now())
    assert screen.forward(LASTS_S).board.wants_replay(screen.clock.now())


def test_the_broker_is_asked_by_name_for_what_it_may_not_have_sent() -> None:
    """The current patient has no result: after a second its own topics are asked for, then from time to time."""
    screen = Screen().hear(Screen().agent.current("p", "s"))
    topics = [f"{TOPICS.base}/{name}" for name in ("patient/p/posterior", "patient/p/final")]
    slide_topics = [f"{TOPICS.base}/{name}" for name in ("slide/s/posterior", "slide/s/final")]
    assert screen.board.wants_kept(screen.clock.now()) == ()
    assert screen.forward(FETCH_AFTER_S).board.wants_kept(screen.clock.now()) == topics + slide_topics
    screen.hear(screen.agent.slide("p", "s"))
    assert screen.forward(FETCH_PAUSE_S / 2).board.wants_kept(screen.clock.now()) == ()
    assert screen.forward(FETCH_PAUSE_S / 2).board.wants_kept(screen.clock.now()) == topics
    assert screen.hear(screen.agent.patient("p")).forward(60).board.wants_kept(screen.clock.now()) == ()


# What is not shown

BAD: Sequence[tuple[str, bytes, str]] = [
    ("status", b"", "empty"),
    ("status", b"{", "invalid"),
    ("status", b"\xff\xfe", "invalid"),
    ("current", b'{"kind":"current"}', "invalid"),
    ("slide/s/posterior", b" " * (MOST + 1), "too_large"),
    ("slide/s/patches", b" " * (MAX_BYTES + 1), "too_large"),
    ("cmd/close-patient", b"{}", "unknown_topic"),
    ("slide/s/unheard-of", b"{}", "unknown_topic"),
    ("reply/engine", b"{}", "unknown_topic"),
    ("", b"{}", "unknown_topic"),
    ("current", b'{"kind":"current","event_id":"e","session_id":"s","time":"0001-01-01T00:00:00+14:00"}', "invalid"),
    ("current", b'{"kind":"current","event_id":"e","session_id":"s","time":"9999-12-31T23:59:59-14:00"}', "invalid"),
]


@pytest.mark.parametrize(("topic", "payload", "why"), BAD)
def test_what_cannot_be_shown_is_counted(topic: str, payload: bytes, why: str) -> None:
    """One word says why; nothing is shown, and nothing of the payload is in the word."""
    board = Screen().board
    assert board.hear(f"{TOPICS.base}/{topic}", payload, retained=False, now=Clock().now()) == why
    assert board.ignored == {why: 1}


def test_a_payload_on_the_topic_of_another_is_not_shown() -> None:
    """What speaks of slide s must come on the topic of slide s, and under our site and instrument."""
    screen = Screen()
    message = screen.agent.slide("p", "s")
    at = screen.clock.now()
    assert screen.board.hear(f"{TOPICS.base}/slide/t/posterior", message.payload, retained=False, now=at) == (
        "wrong_topic"
    )
    assert screen.board.hear("srh/v1/site/other/slide/s/posterior", message.payload, retained=False, now=at) == (
        "unknown_topic"
    )
    assert screen.view()["slides"] == []


def test_a_newer_agents_further_fields_do_not_matter() -> None:
    """New optional fields do not count as a change of the contract, so they are left out, not refused."""
    screen = Screen()
    said = json.loads(screen.agent.patient("p").payload)
    said["mood"] = "fine"
    said["counts"]["lost"] = 3
    topic = f"{TOPICS.base}/patient/p/posterior"
    screen.board.hear(topic, json.dumps(said).encode(), retained=False, now=screen.clock.now())
    assert screen.view()["patient"]["counts"]["used"] == 40 and "mood" not in screen.view()["patient"]


def test_figures_that_are_not_finite_are_shown_as_unknown() -> None:
    """Infinity is no JSON: a browser would refuse the whole view."""
    screen = Screen()
    said = json.loads(screen.agent.health().payload) | {"uptime_s": float("inf")}
    topic = f"{TOPICS.base}/health"
    screen.board.hear(topic, json.dumps(said).encode(), retained=False, now=screen.clock.now())
    assert screen.view()["health"]["uptime_s"] is None


def test_views_are_numbered() -> None:
    """`seq` grows by one with each view."""
    screen = Screen()
    assert [screen.view()["seq"] for _ in range(3)] == [1, 2, 3]
