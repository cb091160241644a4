"""What the screen shows while an agent speaks: real broker, real dashboard, real Chromium."""

from __future__ import annotations

import dataclasses
import time

import pytest
from playwright.sync_api import Page, expect

from agent.messages import ProfileRef
from agent.results import PatientPosterior, SlideFinal
from models.decision import Decision
from tests.brokers import wait_until
from tests.browser import scenes
from tests.browser.conftest import Theatre
from tests.browser.scenes import Said, Speaker

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

PIXEL = """
([x, y, side]) => {
  const canvas = document.getElementById("canvas");
  const place = JSON.parse(canvas.dataset.place);
  const at = (value, origin, shift) => Math.round(shift + (value - origin) * place.scale);
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const box = copy.getImageData(
    at(x, place.left, place.x) + 2, at(y, place.top, place.y) + 2,
    Math.round(side * place.scale) - 4, Math.round(side * place.scale) - 4);
  const pixels = [];
  for (let i = 0; i < box.data.length; i += 4) pixels.push([...box.data.slice(i, i + 4)]);
  return pixels;
}
"""
LINES_OF_NAME = """
(name) => {
  const shown = document.getElementById("answer-name");
  shown.textContent = name;
  return Math.round(shown.clientHeight / parseFloat(getComputedStyle(shown).lineHeight));
}
"""


def pixels_of(page: Page, strip: int, x: int, y: int) -> list[tuple[int, int, int, int]]:
    """RGBA of every pixel inside one cell of the heat map."""
    box = page.evaluate(PIXEL, [strip * scenes.STRIDE_PX + x, y, scenes.SIZE_PX])
    return [tuple(pixel) for pixel in box]


def hue_of(pixels: list[tuple[int, int, int, int]]) -> tuple[float, float, float]:
    """Their mean colour."""
    means = [sum(pixel[i] for pixel in pixels) / len(pixels) for i in range(3)]
    return means[0], means[1], means[2]


def test_an_answer_appears_as_soon_as_it_is_said(theatre: Theatre) -> None:
    """Nothing, then too little tissue, then a provisional answer: each within 1.5 s of its message."""
    page, agent = theatre.open(), theatre.agent
    theatre.play(scenes.opening)
    expect(page.locator("#decision-words")).to_have_text("Waiting for the first patches")
    expect(page.locator("#answer-name")).to_have_text("No answer yet")
    theatre.play(scenes.insufficient)
    expect(page.locator("#decision-words")).to_have_text("Not enough tissue yet")
    expect(page.locator("#answer-name")).to_have_text("No answer yet")
    expect(page.locator("#reason")).to_have_text("13 of at least 20 patches with usable tissue so far.")
    said = time.monotonic()
    theatre.play(scenes.running)
    expect(page.locator("#answer-name")).to_have_text("Schwannoma", timeout=1500)
    print(f"from message to screen: {time.monotonic() - said:.2f} s")
    expect(page.locator("#decision-words")).to_have_text("Provisional")
    expect(page.locator("#reason")).to_have_text("68 % is below the line of 77 %.")
    expect(page.locator("#patient")).to_contain_text("Patient")
    expect(page.locator("#patient-id")).to_have_text(agent.patient[:6])
    expect(page.locator("#imager-word")).to_have_text("Receiving")
    expect(page.locator("#strip-words")).to_have_text("2 of 4 strips complete")
    expect(page.locator("#rejected")).to_contain_text("15 no tissue, 4 blood")
    expect(page.locator("#not-current")).to_be_hidden()
    expect(page.locator("#alerts")).to_contain_text("missing channel")


DECISIONS: dict[Decision, tuple[str, str, str, tuple[float, ...]]] = {
    "insufficient": ("too_few_patches", "No answer yet", "Not enough tissue yet", (0.9, 0.04, 0.03, 0.03)),
    "provisional": ("interval_too_wide", "Ependymoma", "Provisional", (0.8, 0.1, 0.05, 0.05)),
    "high_confidence": ("meets_every_rule", "Meningioma", "High confidence", (0.02, 0.94, 0.02, 0.02)),
    "out_of_domain": (
        "intensity_outside",
        "No answer",
        "Unlike anything the model was made for – do not use",
        (0.02, 0.94, 0.02, 0.02),
    ),
    "final": ("below_operating_point", "Metastasis", "Final – below high confidence", (0.1, 0.1, 0.7, 0.1)),
}


def test_every_decision_is_said_in_words_that_are_readable_from_afar(theatre: Theatre) -> None:
    """Name and decision are at least 6 % of the screen's height, nothing is cut off and nothing scrolls, and a class
    is named only where the decision allows it."""
    page, agent = theatre.open(), theatre.agent
    theatre.play(scenes.opening)
    counts = scenes.counts_of(scenes.tissue(1, 1))
    for decision, (reason, name, words, probabilities) in DECISIONS.items():
        theatre.stage.say(
            agent.result(PatientPosterior, agent.patient, Said(probabilities, decision, reason, counts), slides=1)
        )
        expect(page.locator("#decision-words")).to_have_text(words)
        expect(page.locator("#answer-name")).to_have_text(name)
        for size in ((1920, 1080), (1366, 768)):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            for element in ("#answer-name", "#decision"):
                height = float(
                    page.evaluate(f"parseFloat(getComputedStyle(document.querySelector('{element}')).fontSize)")
                )
                assert height >= 0.06 * size[1], (decision, element)
            fits(page)


def fits(page: Page) -> None:
    """Nothing of the main content is cut off, and the page does not scroll."""
    cut = page.evaluate(
        """() => [...document.querySelectorAll("html, body, #answer, #bar-list, .strip, footer, .map")]
        .filter((e) => e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1)
        .map((e) => `${e.tagName} ${e.id} ${e.scrollWidth} ${e.clientWidth} ${e.scrollHeight} ${e.clientHeight}`)"""
    )
    assert cut == [], cut


@pytest.mark.parametrize("size", [(820, 1180), (390, 844)])
def test_small_screens_show_everything_without_sideways_scrolling(theatre: Theatre, size: tuple[int, int]) -> None:
    """A tablet and a phone show answer, map and lists one below the other; the notice stays in sight."""
    page = theatre.open()
    page.set_viewport_size({"width": size[0], "height": size[1]})
    theatre.play(scenes.running)
    expect(page.locator("#answer-name")).to_have_text("Schwannoma")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for name in ("Schwannoma", "Ependymoma", "Meningioma", "Metastasis"):
        assert page.evaluate(LINES_OF_NAME, name) == 1, name
    expect(page.locator(".notice")).to_be_in_viewport()
    page.locator("#alerts").scroll_into_view_if_needed()
    expect(page.locator(".notice")).to_be_in_viewport()
    expect(page.locator("#canvas")).to_be_visible()


def test_bars_show_share_interval_and_line(theatre: Theatre) -> None:
    """Each bar is as long as its probability, its whisker spans the interval, and the line stands at 77 %."""
    page = theatre.open()
    theatre.play(scenes.running)
    page.emulate_media(reduced_motion="reduce")
    expect(page.locator("#used")).to_contain_text("82")
    expect(page.locator(".bar.leading .bar-name")).to_have_text("Schwannoma")
    expect(page.locator("#line-label")).to_have_text("77 %")
    expect(page.locator(".bar .mark").last).to_be_visible()
    low, high = scenes.interval_of(0.68, 82)
    for row in page.locator(".bar").all():
        box = row.locator(".track").bounding_box()
        mark = row.locator(".mark").bounding_box()
        assert box and mark
        assert (mark["x"] + mark["width"] / 2 - box["x"]) / box["width"] == pytest.approx(0.77, abs=0.005)
    leading = page.locator(".bar.leading")
    track, fill, whisker = (leading.locator(name).bounding_box() for name in (".track", ".fill", ".whisker"))
    assert track and fill and whisker
    assert fill["width"] / track["width"] == pytest.approx(0.68, abs=0.005)
    assert (whisker["x"] - track["x"]) / track["width"] == pytest.approx(low, abs=0.005)
    assert whisker["width"] / track["width"] == pytest.approx(high - low, abs=0.005)
    expect(leading).to_contain_text(f"68 % {int(low * 100)} to {int(high * 100) + 1} %")


def test_the_heat_map_fills_as_strips_arrive(theatre: Theatre) -> None:
    """A used patch has its class's colour and a rejected one grey hatching; nothing is drawn where nothing came."""
    page, agent = theatre.open(), theatre.agent
    patches = scenes.tissue(3, 3)
    first, second = patches[: len(patches) // 2], patches[len(patches) // 2 :]
    theatre.stage.say(*scenes.running(agent)[:5], *agent.patches(agent.patient, agent.slide, first))
    expect(page.locator("#legend")).to_contain_text("Schwannoma")
    sure = max((p for p in first if p.predicted == 3), key=lambda p: p.confidence)
    empty = next(p for p in first if p.rejected == "empty")
    red, green, blue = hue_of(pixels_of(page, 0, sure.x, sure.y))
    assert red > green and blue > green and red > 120, "reddish purple, darkened by pattern and letter"
    hatched = pixels_of(page, 0, empty.x, empty.y)
    assert all(max(pixel[:3]) - min(pixel[:3]) < 40 for pixel in hatched), "no class colour in it"
    assert len({pixel[:3] for pixel in hatched}) >= 2, "hatched"
    later = next(p for p in second if p.predicted == 3)
    assert {pixel[3] for pixel in pixels_of(page, 1, later.x, later.y)} == {0}, "nothing has come there"
    expect(page.locator("#legend")).to_contain_text("Still to come")

    theatre.stage.say(*agent.patches(agent.patient, agent.slide, second))
    expect(page.locator("#legend li", has_text="Schwannoma")).to_contain_text(
        str(sum(patch.predicted == 3 for patch in patches))
    )
    red, green, blue = hue_of(pixels_of(page, 1, later.x, later.y))
    assert red > green and blue > green
    counted = page.locator(".entry-count").all_inner_texts()
    assert sum(int(text) for text in counted if text) == len(patches)


def test_strips_lie_side_by_side_whatever_their_numbers(theatre: Theatre) -> None:
    """An imager that numbers its strips 6 and 11 gives the same picture as one that numbers them 0 and 1."""
    page, agent = theatre.open(), theatre.agent
    patches = scenes.tissue(3, 3)
    numbered = [dataclasses.replace(patch, strip=(6, 11)[patch.strip]) for patch in patches]
    said = Said((0.1, 0.1, 0.1, 0.7), "provisional", "below_operating_point", scenes.counts_of(patches))
    theatre.stage.say(
        *scenes.opening(agent),
        *agent.answer(agent.patient, agent.slide, said),
        *agent.patches(agent.patient, agent.slide, numbered),
    )
    expect(page.locator("#holes")).to_be_hidden()
    sure = max((p for p in patches if p.predicted == 3 and p.strip == 1), key=lambda p: p.confidence)

    def is_drawn() -> bool:
        red, green, blue = hue_of(pixels_of(page, 1, sure.x, sure.y))
        return red > green and blue > green

    wait_until(is_drawn, "the second strip's patch has its class's colour")
    page.locator("#table-switch").click()
    assert page.locator("#map-table tbody th").all_inner_texts() == ["1", "2"]


def test_lost_heat_map_messages_are_told(theatre: Theatre) -> None:
    """The screen says how many patches of the result are not in the picture: on their way while the slide is open,
    missing once it has ended."""
    page, agent = theatre.open(), theatre.agent
    patches = scenes.tissue(3, 3)
    messages = agent.patches(agent.patient, agent.slide, patches)
    said = Said((0.1, 0.1, 0.1, 0.7), "provisional", "below_operating_point", scenes.counts_of(patches))
    theatre.stage.say(*scenes.opening(agent), *agent.answer(agent.patient, agent.slide, said), messages[0])
    expect(page.locator("#holes")).to_have_text("21 patches on their way")
    theatre.stage.say(agent.result(SlideFinal, agent.patient, said, slide=agent.slide, revision=1))
    expect(page.locator("#holes")).to_have_text("21 patches not shown")


def test_the_phantom_is_called_so_in_large_letters(theatre: Theatre) -> None:
    """With the phantom's profile the screen says that this is no tissue; with another it does not."""
    page, agent = theatre.open(), theatre.agent
    theatre.play(scenes.running)
    expect(page.locator("#phantom")).to_have_text("Synthetic phantom, not tissue")
    expect(page.locator("#phantom")).to_be_in_viewport()
    size = float(page.evaluate("parseFloat(getComputedStyle(document.getElementById('phantom')).fontSize)"))
    assert size >= 0.03 * 1080
    other = Speaker(agent.boot_seq + 1, profile=ProfileRef(name="spine", version=1, sha256="1" * 64))
    theatre.stage.say(*scenes.running(other))
    expect(page.locator("#phantom")).to_be_hidden()
    expect(page.locator(".notice")).to_have_text("Research use only. Not for diagnosis.")


def test_a_correction_is_shown_and_the_patient_is_past(theatre: Theatre) -> None:
    """A superseded final stays in the history, marked; the corrected one is labelled; a patient who has ended is
    shown as past and greyed out."""
    page, agent = theatre.open(), theatre.agent
    theatre.play(scenes.corrected)
    expect(page.locator("#corrected")).to_have_text("Corrected: revision 2")
    expect(page.locator("#banner-title")).to_contain_text("Past result: ended")
    expect(page.locator("#not-current")).to_be_visible()
    expect(page.locator("#answer")).to_have_attribute("data-current", "false")
    replaced = page.locator("#history > li[data-mark=superseded]")
    expect(replaced).to_have_count(2)
    expect(replaced.first).to_contain_text("replaced by a later one")
    expect(page.locator("#slides")).to_contain_text("corrected, revision 2")
    fits(page)
    # Somebody else lies down: the old patient leaves the screen at once.
    theatre.stage.say(agent.current(agent.id("next patient"), agent.id("next slide")))
    expect(page.locator("#patient-id")).to_have_text(agent.id("next patient")[:6])
    expect(page.locator("#answer-name")).to_have_text("No answer yet")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_person_may_look_at_an_earlier_slide(theatre: Theatre) -> None:
    """The slide being imaged is shown until somebody chooses another; a slide that begins is shown again."""
    page, agent = theatre.open(), theatre.agent
    second, third = agent.id("second slide"), agent.id("third slide")
    theatre.play(scenes.high_confidence)
    patches = scenes.tissue(8, 1, (0,))
    said = Said((0.1, 0.7, 0.1, 0.1), "provisional", "below_operating_point", scenes.counts_of(patches))
    theatre.stage.say(
        agent.current(agent.patient, second),
        *agent.answer(agent.patient, second, said),
        *agent.patches(agent.patient, second, patches),
    )
    tabs = page.locator("#slide-tabs button")
    expect(tabs).to_have_count(2)
    expect(tabs.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#strip-words")).to_have_text("1 of 2 strips complete")
    tabs.nth(0).click()
    expect(page.locator("#strip-words")).to_have_text("4 of 4 strips complete, ended")
    expect(page.locator("#legend")).to_contain_text("123")
    theatre.stage.say(agent.current(agent.patient, third), *agent.answer(agent.patient, third, said))
    expect(tabs.nth(2)).to_have_attribute("aria-pressed", "true")
