"""The pictures of docs/dashboard.md: `python -m tests.browser.pictures [NAME...]` makes them again in docs/pictures.

Those of the demo come from a real run of it (embedded broker, agent, dashboard, Chromium); the others are scenes on a
real broker, since a demo has neither foreign tissue nor a broker that dies.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from agent.messages import Payload
from tests.brokers import Mosquitto, need
from tests.browser import scenes
from tests.browser.conftest import ARGUMENTS, THEATRE, DashboardProcess
from tests.browser.scenes import Speaker, Stage
from tests.system.processes import ROOT

FOLDER = ROOT / "docs" / "pictures"
LARGEST_BYTES = 200_000
RUN_MS = 240_000
DEMO = ["--headless", "--slides", "3", "--rate", "4", "--height", "4000"]


def take(page: Page, name: str) -> None:
    """Write one picture in its 256 most frequent colours, unless it is too large for a repository."""
    path = FOLDER / f"{name}.png"
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    counted: list[tuple[int, Any]] = list(whole.getcolors(whole.width * whole.height) or [])
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in sorted(counted, reverse=True)[:256] for part in colour])
    whole.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size // 1000} kB")
    assert size <= LARGEST_BYTES, f"{path.name} has {size} bytes"


@contextlib.contextmanager
def demo() -> Iterator[str]:
    """A run of the demo; the page's address."""
    words = [sys.executable, "-u", "-m", "agent", "demo", *DEMO]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        found = next(filter(None, (re.match(r"dashboard (http\S+)", line) for line in process.stdout)))
        rest = threading.Thread(target=process.stdout.read, name="rest")
        rest.start()
        try:
            yield found.group(1)
        finally:
            process.terminate()
            process.wait()
            rest.join()


def of_the_demo(browser: Browser) -> None:
    """In the middle of a slide, at high confidence, and with a history."""
    with demo() as url:
        page = browser.new_page(viewport={"width": THEATRE[0], "height": THEATRE[1]})
        page.goto(url)
        expect(page.locator("#decision-words")).to_have_text("Provisional", timeout=RUN_MS)
        expect(page.locator("#strip-words")).to_contain_text("2 of 4", timeout=RUN_MS)
        take(page, "dashboard-running")
        expect(page.locator("#decision-words")).to_have_text("High confidence", timeout=RUN_MS)
        take(page, "dashboard-high-confidence")
        expect(page.locator("#history > li").nth(2)).to_be_visible(timeout=RUN_MS)
        expect(page.locator("#legend li").nth(4)).to_be_visible(timeout=RUN_MS)
        take(page, "dashboard-history")
        page.close()


def of_scenes(browser: Browser) -> None:
    """What a demo does not show."""
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        broker = Mosquitto(Path(home)).start()
        stack.callback(broker.kill)
        dashboard = DashboardProcess(Path(home), broker.port).start()
        stack.callback(dashboard.kill)
        speakers = map(Speaker, range(1, 100))

        def play(
            scene: Callable[[Speaker], list[Payload]], name: str, width: int = THEATRE[0], height: int = THEATRE[1]
        ) -> Page:
            speaker, stage = next(speakers), Stage(broker.port)
            stack.callback(stage.close)
            stage.say(*scene(speaker))
            page = browser.new_page(viewport={"width": width, "height": height})
            page.emulate_media(reduced_motion="reduce")
            page.goto(dashboard.url)
            expect(page.locator("#patient-id")).to_have_text(speaker.patient[:6])
            expect(page.locator("#legend li").first).to_be_visible()
            take(page, name)
            return page

        play(scenes.insufficient, "dashboard-insufficient").close()
        play(scenes.out_of_domain, "dashboard-out-of-domain").close()
        play(scenes.corrected, "dashboard-past").close()
        play(scenes.running, "dashboard-tablet", 820, 1180).close()
        page = play(scenes.running, "dashboard-phone", 390, 844)
        page.set_viewport_size({"width": THEATRE[0], "height": THEATRE[1]})
        broker.kill()
        expect(page.locator("#banner-title")).to_have_text("Message broker lost")
        take(page, "dashboard-broker-lost")


def main() -> None:
    """Every picture."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=need("chromium", "chromium"), args=ARGUMENTS)
        of_scenes(browser)
        of_the_demo(browser)
        browser.close()


if __name__ == "__main__":
    main()
