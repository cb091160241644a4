"""A theatre for each test: real broker, real dashboard process, a stage in the agent's place, a page in Chromium."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from agent.messages import Payload
from tests.brokers import Mosquitto, free_port, need, wait_until
from tests.browser.scenes import Speaker, Stage
from tests.system.processes import PROFILE, ROOT

START_S = 30.0
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
"""Beyond what playwright sets by itself, which switches the browser's own traffic off."""
THEATRE = (1920, 1080)
LOST = re.compile("net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE)")
"""What a browser logs when a server goes away."""


class DashboardProcess:
    """`python -m agent dashboard` on a port that it keeps over restarts."""

    def __init__(self, home: Path, broker_port: int, **settings: object) -> None:
        """`settings` are further top-level sections of the settings file."""
        self._home = home
        self._config = home / "agent.yaml"
        document = {
            "folder": str(home / "imager"),
            "state_dir": str(home / "state"),
            "profile": str(PROFILE),
            "site": "test",
            "mqtt": {"port": broker_port},
            "dashboard": {"port": free_port()},
            "log": {"format": "json"},
            **settings,
        }
        self._config.write_text(yaml.safe_dump(document))
        self.url = ""
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> DashboardProcess:
        """Returns when it says where the page is."""
        self._starts += 1
        said = self._home / f"said-{self._starts}"
        words = [sys.executable, "-m", "agent", "dashboard", "--config", str(self._config)]
        with said.open("wb") as out, (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=out, stderr=log, cwd=ROOT)
        wait_until(lambda: "http://" in said.read_text() or self._ended, "the dashboard says its address", START_S)
        assert not self._ended, self.log()
        self.url = said.read_text().split()[2]
        return self

    def signal(self, number: int) -> None:
        """SIGSTOP freezes it, SIGCONT lets it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without any farewell."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(10)

    def log(self) -> str:
        """Everything that it has logged."""
        return (self._home / "log").read_text()

    @property
    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


@dataclass
class House:
    """What the tests of a module share: a broker, a dashboard, a browser, and a count of the agents that played."""

    broker: Mosquitto
    dashboard: DashboardProcess
    chromium: Browser
    agents: Iterator[int] = field(default_factory=lambda: itertools.count(1, 10))


@dataclass
class Theatre:
    """Everything that a test plays with, and what the browser complained of."""

    broker: Mosquitto
    dashboard: DashboardProcess
    stage: Stage
    agent: Speaker
    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self) -> Page:
        """The page, once it has heard the dashboard."""
        self.page.goto(self.dashboard.url)
        expect(self.page.locator("#broker-word")).to_have_text("Connected", timeout=10_000)
        return self.page

    def play(self, scene: Callable[[Speaker], list[Payload]]) -> None:
        """Say what happens in a scene, and wait until its patient is shown."""
        self.stage.say(*scene(self.agent))
        expect(self.page.locator("#patient-id")).to_have_text(self.agent.patient[:6])

    def watch(self) -> None:
        """Write down every request, and everything that the console or a script complains of."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._on_console)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not LOST.search(message.text):
            self.complaints.append(message.text)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """What is slow to start, once a module. The agent of each test is a later start with a patient of its own."""
    program, home = need("chromium", "chromium"), tmp_path_factory.mktemp("house")
    broker = Mosquitto(home).start()
    dashboard = DashboardProcess(home, broker.port)
    try:
        dashboard.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
            yield House(broker, dashboard, browser)
            browser.close()
    finally:
        dashboard.kill()
        broker.kill()


@pytest.fixture
def theatre(house: House) -> Iterator[Theatre]:
    """Ends with the promise that every page keeps: no request to another host, no complaint of the browser."""
    stage = Stage(house.broker.port)
    context = house.chromium.new_context(viewport={"width": THEATRE[0], "height": THEATRE[1]})
    made = Theatre(house.broker, house.dashboard, stage, Speaker(next(house.agents)), context.new_page())
    made.watch()
    stage.beat(made.agent)
    try:
        yield made
        assert [url for url in made.requests if not url.startswith((house.dashboard.url, "data:"))] == []
        assert made.complaints == []
    finally:
        context.close()
        stage.close()
