"""The screen for everybody: keyboard, screen reader, contrast, less motion; and for hostile messages: harmless."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from agent.messages import Counts
from agent.results import PatientPosterior, SlidePatches
from tests.browser import scenes
from tests.browser.conftest import Theatre
from tests.browser.scenes import Said

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

LISTEN = """() => {
  const region = document.getElementById("spoken");
  window.heard = [];
  new MutationObserver(() => heard.push(region.textContent)).observe(region, {childList: true, subtree: true});
}"""
NAME_OF_STOP = """() => {
  const at = document.activeElement;
  return at.getAttribute("aria-labelledby") || at.id || at.className;
}"""
MARKUP = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def check_with_axe(page: Page, state: str) -> None:
    """No violation of WCAG 2.2 A, AA or AAA contrast, nor of axe's best practices."""
    options: dict[str, Any] = {
        "resultTypes": ["violations"],
        "rules": {"color-contrast-enhanced": {"enabled": True}},
    }
    results = Axe().run(page, options=options)
    assert results.violations_count == 0, f"{state}: {results.generate_report()}"


def test_axe_finds_nothing_to_complain_of(theatre: Theatre) -> None:
    """Before the first slide, with an answer, as a table, out of domain, past, and with the broker lost; the smaller
    screens too."""
    page, agent = theatre.open(), theatre.agent
    check_with_axe(page, "before anything was said")
    theatre.play(scenes.running)
    expect(page.locator("#answer-name")).to_have_text("Schwannoma")
    check_with_axe(page, "running")
    page.locator("#table-switch").click()
    check_with_axe(page, "table")
    page.locator("#table-switch").click()
    for size in ((820, 1180), (390, 844)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        check_with_axe(page, f"{size}")
    page.set_viewport_size({"width": 1920, "height": 1080})
    theatre.stage.last_byte_age_s = 42.0
    theatre.play(scenes.out_of_domain)
    expect(page.locator("#silence")).to_be_visible()
    check_with_axe(page, "out of domain and silent")
    theatre.play(scenes.corrected)
    expect(page.locator("#corrected")).to_be_visible()
    check_with_axe(page, "past and corrected")
    theatre.stage.say(agent.status("stopped"))
    expect(page.locator("#banner-title")).to_have_text("Agent switched off")
    check_with_axe(page, "agent switched off")


def test_everything_is_reached_by_keyboard(theatre: Theatre) -> None:
    """Tab goes through slides, table switch and lists, always visibly; Enter and Space press."""
    page = theatre.open()
    theatre.play(scenes.running)
    expect(page.locator("#slide-tabs button")).to_have_count(1)
    stops: list[str] = []
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            continue  # the browser's own controls
        stops.append(page.evaluate(NAME_OF_STOP))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", stops
    assert stops[:5] == ["tab", "table-switch", "slides-title", "history-title", "alerts-title"]
    page.locator("#table-switch").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#map-table-frame")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "map-table-frame", "it scrolls by keyboard"
    page.locator("#table-switch").focus()
    page.keyboard.press("Space")
    expect(page.locator("#map-frame")).to_be_visible()


def test_the_heat_map_is_there_in_numbers(theatre: Theatre) -> None:
    """The table holds each scan strip's patches by class and by reason; the picture has a text of its own."""
    page = theatre.open()
    theatre.play(scenes.running)
    said = "4 ependymoma, 5 meningioma, 3 metastasis, 70 schwannoma, 15 no tissue, 4 blood"
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile(rf"^Heat map: {said}\."))
    page.locator("#table-switch").click()
    heads = page.locator("#map-table thead th").all_inner_texts()
    assert heads == ["Strip", "Ependymoma", "Meningioma", "Metastasis", "Schwannoma", "No tissue", "Blood"]
    numbers = [
        [int(text) for text in row.locator("th, td").all_inner_texts()]
        for row in page.locator("#map-table tbody tr").all()
    ]
    assert [row[0] for row in numbers] == [1, 2, 3]
    assert sum(sum(row[1:]) for row in numbers) == 42 * 2 + 17


def test_a_screen_reader_hears_decisions_once(theatre: Theatre) -> None:
    """The polite region says name and decision when they have stood for a moment, not every figure that moves."""
    page, agent = theatre.open(), theatre.agent
    theatre.play(scenes.running)
    expect(page.locator("#spoken")).to_have_text("Schwannoma. Provisional.")
    assert page.locator("#spoken").get_attribute("aria-live") == "polite"
    page.evaluate(LISTEN)
    counts = scenes.counts_of(scenes.tissue(3, 3))
    for share in (0.70, 0.72, 0.74):
        rest = (1 - share) / 3
        said = Said((rest, rest, rest, share), "provisional", "below_operating_point", counts)
        theatre.stage.say(agent.result(PatientPosterior, agent.patient, said, slides=1))
        expect(page.locator(".leading .bar-value")).to_have_text(f"{int(share * 100 + 1e-9)} %")
    theatre.play(scenes.out_of_domain)
    expect(page.locator("#spoken")).to_contain_text("No answer. Unlike anything")
    assert len(page.evaluate("heard")) == 1


def test_less_motion_means_none(theatre: Theatre) -> None:
    """With prefers-reduced-motion nothing moves by itself."""
    theatre.page.emulate_media(reduced_motion="reduce")
    page = theatre.open()
    theatre.play(scenes.running)
    expect(page.locator(".bar")).to_have_count(4)
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((e) => {
          const style = getComputedStyle(e);
          return parseFloat(style.transitionDuration) > 0 || style.animationName !== "none";
        }).length"""
    )
    assert moving == 0


def test_forced_colours_keep_the_answer(theatre: Theatre) -> None:
    """With the system's own contrast theme the page works, and the bars keep their colours."""
    theatre.page.emulate_media(forced_colors="active")
    page = theatre.open()
    theatre.play(scenes.running)
    expect(page.locator("#answer-name")).to_have_text("Schwannoma")
    assert "url(" in page.evaluate("getComputedStyle(document.querySelector('.leading .fill')).backgroundImage")


def test_hostile_words_are_only_words(theatre: Theatre) -> None:
    """Markup in class names, reasons, alerts and versions appears as text; words of any length break nothing."""
    page, agent = theatre.open(), theatre.agent
    long = "n" * 900
    classes = (MARKUP, long, "__proto__", "constructor")
    theatre.play(scenes.opening)
    counts = {"seen": 60, "used": 40, "rejected": {MARKUP: 10, long: 5, "__proto__": 5}}
    for probabilities in ((0.9, 0.04, 0.03, 0.03), (0.04, 0.9, 0.03, 0.03)):
        body = agent.result(
            PatientPosterior,
            agent.patient,
            Said(probabilities, "provisional", long, Counts.model_validate(counts)),
            slides=1,
            classes=classes,
            predicted=classes[probabilities.index(0.9)],
        )
        theatre.stage.say(body, agent.alert(MARKUP[:60], MARKUP + long[:800]))
        expect(page.locator("#alerts")).to_contain_text("<img src=x onerror=")
        expect(page.locator(".leading")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1920
        assert page.evaluate("document.documentElement.scrollHeight") <= 1080
        expect(page.locator(".notice")).to_be_in_viewport()
        expect(page.locator("#decision-words")).to_be_in_viewport()
    (told,) = agent.patches(agent.patient, agent.slide, scenes.tissue(3, 3, (0,)))
    hostile = SlidePatches.model_validate(
        {**told.model_dump(), "classes": classes, "reasons": tuple(MARKUP + reason for reason in told.reasons)}
    )
    theatre.stage.say(
        *agent.answer(
            agent.patient,
            agent.slide,
            Said((0.1, 0.1, 0.1, 0.7), "final", "x", scenes.counts_of(scenes.tissue(3, 3))),
        ),
        hostile,
    )
    expect(page.locator("#legend")).to_contain_text("<script>")
    assert page.title() == "SRH live result (research use only)"
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0
