"""The real agent, a real broker and the dashboard: a screen that is switched on late, and an agent that dies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.dashboard.processes import DashboardProcess, Events
from tests.brokers import Listener, Mosquitto, wait_until
from tests.system.processes import AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running broker."""
    mosquitto = Mosquitto(tmp_path).start()
    yield mosquitto
    mosquitto.kill()


def test_a_screen_that_is_switched_on_late_shows_the_whole_picture(tmp_path: Path, broker: Mosquitto) -> None:
    """The slide has arrived before: kept results show at once, the heat map is asked for and comes without a hole;
    when the agent is killed, its will shows within three seconds, and the patient does not count as ended.
    """
    slides = tmp_path / "slides"
    done = command("agent", "phantom", "--out", slides, "--slides", "1", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    agent = AgentProcess(
        tmp_path / "agent", broker.port, mqtt={"commands": ["replay-state"]}, patient={"quiet_s": 600.0}
    )
    listener = Listener(broker.port)
    dashboard = DashboardProcess(tmp_path, broker.port, commands=["replay-state"])
    dashboard.config.write_text(dashboard.config.read_text() + "site: test\n")
    try:
        agent.start()
        shutil.copytree(slides, agent.folder, dirs_exist_ok=True)
        wait_until(lambda: listener.bodies("/final"), "the slide's final", 90)
        dashboard.start()
        with Events(dashboard) as browser:
            view = browser.wait("the patient", agent__state="online", patient__kind="patient.posterior")
            (slide,) = view["slides"]
            seen = slide["result"]["counts"]["seen"]
            assert slide["is_final"] and seen == 42 and view["demo"]
            wait_until(lambda: browser.patches and browser.patches[-1]["known"] == seen, "the whole heat map")
            assert listener.bodies("reply/replay-state")[0]["ok"] is True
            agent.kill()
            view = browser.wait("its end", limit_s=3.0, agent__state="offline")
            assert view["current"] is not None and not view["patient_is_past"]
        assert dashboard.events("message_ignored") == []
    finally:
        dashboard.kill()
        if not agent.ended:
            agent.kill()
        listener.close()
