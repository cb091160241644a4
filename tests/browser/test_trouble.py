"""What the screen says when something is wrong: lost broker, server or agent, silence, a late will."""

from __future__ import annotations

import re
import signal
import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from agent.results import PatientFinal
from tests.brokers import wait_until
from tests.browser import scenes
from tests.browser.conftest import Theatre
from tests.browser.scenes import Said, Speaker, Stage

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

NOTICED_MS = 3000
RIGHT_AGAIN_MS = 5000


def with_a_running_slide(theatre: Theatre) -> Page:
    """The page in the middle of a slide, with nothing wrong."""
    page = theatre.open()
    theatre.play(scenes.running)
    expect(page.locator("#answer-name")).to_have_text("Schwannoma")
    expect_current(page)
    return page


def expect_current(page: Page, limit_ms: float = RIGHT_AGAIN_MS) -> None:
    """The answer counts: no banner, no label, no grey."""
    expect(page.locator("#banner")).to_be_hidden(timeout=limit_ms)
    expect(page.locator("#not-current")).to_be_hidden()
    expect(page.locator("#answer")).to_have_attribute("data-current", "true")


def expect_not_current(page: Page, title: str | re.Pattern[str], limit_ms: float = NOTICED_MS) -> None:
    """The banner says why, the answer is grey and labelled; its words stay readable."""
    expect(page.locator("#banner-title")).to_have_text(title, timeout=limit_ms)
    expect(page.locator("#banner")).to_be_in_viewport()
    expect(page.locator("#not-current")).to_be_in_viewport()
    expect(page.locator("#not-current")).to_have_text("Not current")
    expect(page.locator("#answer")).to_have_attribute("data-current", "false")
    assert (
        page.evaluate("parseFloat(getComputedStyle(document.getElementById('banner-title')).fontSize)")
        >= 0.045 * 1080
    )


def test_a_lost_broker_is_told_and_a_new_one_is_found(theatre: Theatre) -> None:
    """Killed in the middle of a slide: told within 3 s; started again without any memory: right within 5 s."""
    page = with_a_running_slide(theatre)
    theatre.broker.kill()
    killed = time.monotonic()
    expect_not_current(page, "Message broker lost")
    told_s = time.monotonic() - killed
    for light in ("imager", "agent"):
        expect(page.locator(f"#{light}-word")).to_have_text("Unknown")
    wait_until(lambda: not theatre.stage.connected, "the stage has noticed")
    theatre.broker.start()
    started = time.monotonic()
    wait_until(lambda: theatre.stage.connected, "the stage is back")
    # As the agent does: retained state again, then what is new.
    patches = scenes.tissue(3, 3, (0, 1, 2, 3), 4000)
    said = Said((0.04, 0.1, 0.02, 0.84), "high_confidence", "meets_every_rule", scenes.counts_of(patches))
    theatre.stage.say(
        *scenes.opening(theatre.agent), *theatre.agent.answer(theatre.agent.patient, theatre.agent.slide, said)
    )
    expect(page.locator("#decision-words")).to_have_text("High confidence", timeout=RIGHT_AGAIN_MS)
    expect_current(page, RIGHT_AGAIN_MS - 1000 * (time.monotonic() - started))
    right_s = time.monotonic() - started
    print(f"broker lost: told after {told_s:.2f} s; back: right after {right_s:.2f} s")
    assert told_s < 3 and right_s < 5


def test_a_killed_server_is_told_and_a_new_one_is_found(theatre: Theatre) -> None:
    """The page says within 3 s that it has lost its server, and is right within 5 s of its return, by itself."""
    page = with_a_running_slide(theatre)
    theatre.dashboard.kill()
    killed = time.monotonic()
    expect_not_current(page, "This screen has lost its server")
    told_s = time.monotonic() - killed
    theatre.dashboard.start()
    started = time.monotonic()
    expect(page.locator("#answer-name")).to_have_text("Schwannoma", timeout=RIGHT_AGAIN_MS)
    expect_current(page)
    right_s = time.monotonic() - started
    print(f"server killed: told after {told_s:.2f} s; back: right after {right_s:.2f} s")
    assert told_s < 3 and right_s < 5


def test_a_frozen_server_is_told(theatre: Theatre) -> None:
    """A server that holds its connections but says nothing is noticed by the page's own clock."""
    page = with_a_running_slide(theatre)
    theatre.dashboard.signal(signal.SIGSTOP)
    try:
        expect_not_current(page, "This screen has lost its server", 3200)
        expect(page.locator("#agent-word")).to_have_text("Unknown")
        expect(page.locator("#spoken-alarm")).to_contain_text("This screen has lost its server")
    finally:
        theatre.dashboard.signal(signal.SIGCONT)
    expect_current(page)


def test_a_silent_agent_is_told(theatre: Theatre) -> None:
    """When its signs of life stop, the answer is not current any more; when they return, it is."""
    page = with_a_running_slide(theatre)
    theatre.stage.fall_silent()
    expect_not_current(page, "Agent silent", 6000)
    expect(page.locator("#banner-detail")).to_contain_text(re.compile(r"No sign of life from it for \d"))
    theatre.stage.say(theatre.agent.health())
    expect_current(page)


def test_the_will_of_an_agent_is_told(theatre: Theatre) -> None:
    """An agent whose connection breaks has left a will: the screen calls it lost at once."""
    page, agent = theatre.open(), theatre.agent
    mortal = Stage(theatre.broker.port, will=agent.status("offline"))
    try:
        mortal.say(*scenes.running(agent))
        expect_current(page)
        mortal.vanish()
        expect_not_current(page, "Agent lost")
        expect(page.locator("#agent-word")).to_have_text("Lost")
    finally:
        mortal.close()


def test_an_agent_that_was_switched_off_is_told(theatre: Theatre) -> None:
    """A clean end is called by its name."""
    page = with_a_running_slide(theatre)
    theatre.stage.say(theatre.agent.status("stopped"))
    expect_not_current(page, "Agent switched off")


def test_a_late_will_of_an_earlier_start_changes_nothing(theatre: Theatre) -> None:
    """The will of a session that has been replaced does not make the new one look lost."""
    page = with_a_running_slide(theatre)
    earlier = Speaker(theatre.agent.boot_seq - 1, since=theatre.agent.since.replace(year=2020))
    theatre.stage.say(earlier.status("offline"), theatre.agent.alert("marker", "said after the will"))
    expect(page.locator("#alerts")).to_contain_text("marker")
    expect(page.locator("#agent-word")).to_have_text("Online")
    expect_current(page)


def test_a_silent_imager_is_told(theatre: Theatre) -> None:
    """Nothing arriving while a slide is open: said with the time since the last byte; the answer stays current. After
    a complete slide the silence is no trouble."""
    page = with_a_running_slide(theatre)
    theatre.stage.last_byte_age_s = 42.0
    expect(page.locator("#imager-word")).to_have_text("Nothing arriving")
    expect(page.locator("#imager-age")).to_have_text(re.compile(r"4\d s ago"))
    expect(page.locator("#silence")).to_have_text(re.compile(r"Nothing arriving for 4\d s"))
    expect_current(page)
    theatre.play(scenes.high_confidence)
    expect(page.locator("#imager-word")).to_have_text("Slide complete")
    expect(page.locator("#silence")).to_be_hidden()


def test_an_old_patient_never_looks_current(theatre: Theatre) -> None:
    """After the final, with nobody on the table, the answer is shown as past, with the time of its end."""
    page = with_a_running_slide(theatre)
    agent = theatre.agent
    counts = scenes.counts_of(scenes.tissue(3, 3))
    end: dict[str, Any] = {"slides": 1, "revision": 1, "state": "complete", "strips": {"done": 4, "expected": 4}}
    said = Said((0.03, 0.03, 0.02, 0.92), "high_confidence", "meets_every_rule", counts)
    theatre.stage.say(agent.result(PatientFinal, agent.patient, said, **end), agent.current(None, None))
    expect_not_current(page, re.compile(r"^Past result: ended \d\d:\d\d$"))
    expect(page.locator("#banner")).to_have_attribute("data-tone", "calm")
    expect(page.locator("#answer-scope")).to_have_text("Final answer from 1 slide")
    expect(page.locator("#imager-word")).to_have_text("No slide open")


def test_nothing_is_claimed_before_anything_is_known(theatre: Theatre) -> None:
    """A page without a server, and one whose agent was never heard, say so instead of showing an empty answer."""
    theatre.page.route("**/events", lambda route: route.abort())
    theatre.page.goto(theatre.dashboard.url)
    expect(theatre.page.locator("#banner-title")).to_have_text("Connecting")
    expect(theatre.page.locator("#banner-title")).to_have_text("This screen has lost its server", timeout=4000)
    theatre.complaints.clear()
