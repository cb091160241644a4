"""The daemon as a process whose engine breaks in the middle of a slide: the next one goes on, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agent.engine import BACKENDS
from agent.engine.manifest import engine_folder
from agent.profile_folder import load_profile_folder
from tests.agent.engine.small_profile import need_openvino
from tests.agent.engine.unproven import build_unproven
from tests.brokers import Listener, Mosquitto, wait_until
from tests.system.processes import PROFILE, ROOT, AgentProcess, command
from tests.system.test_run import FINAL_S, append, files_of, finals

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
LABEL = "openvino-fp32-b1"
HOOK = """
import os, pathlib, threading
from agent.engine.openvino import OpenVinoEngine
healthy = OpenVinoEngine.predict
def predict(self, x_BCHW):
    order = pathlib.Path(os.environ["BREAK_WHEN"])
    how = order.read_text() if order.exists() else ""
    if how == "hangs":
        threading.Event().wait()
    if how == "raises":
        raise RuntimeError("device lost")
    return healthy(self, x_BCHW)
OpenVinoEngine.predict = predict
"""
"""In the agent's process, as its sitecustomize: no real engine breaks when it is told to."""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom profile with an OpenVINO engine beside it."""
    need_openvino()
    folder = tmp_path_factory.mktemp("profile") / "phantom"
    shutil.copytree(PROFILE, folder, ignore=shutil.ignore_patterns("engines"))
    target = engine_folder(folder, "openvino", "fp32", 1)
    build_unproven(BACKENDS["openvino"], load_profile_folder(folder), target, "fp32", 1)
    return folder


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom slide of two strips."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "1", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_an_engine_that_breaks_mid_slide(
    how: str, profile: Path, phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Half of the slide by OpenVINO, half by eager: one final of all 42 patches, an alert, the status, the figure and
    the audit log; and the agent ends well, although a thread is left behind.
    """
    hook, order = tmp_path / "hook", tmp_path / "order"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    listener = Listener(broker.port)
    engine = {"order": ["openvino", "eager"], "threads": 1, "batch_limit_s": 3.0}
    agent = AgentProcess(tmp_path / "agent", broker.port, profile=str(profile), engine=engine)
    agents.append(agent.start(environment={"PYTHONPATH": f"{hook}:{ROOT}", "BREAK_WHEN": str(order)}))
    files = files_of(phantom)
    first, rest = list(files.items())[:2], list(files.items())[2:]
    for name, content in first:
        append(agent.folder, name, content)
    wait_until(lambda: listener.bodies("/posterior"), "a posterior of the first engine", FINAL_S)
    assert listener.bodies("/posterior")[0]["engine"] == {"name": "openvino", "precision": "fp32"}
    order.write_text(how)
    for name, content in rest:
        append(agent.folder, name, content)
    wait_until(lambda: finals(listener, "slide") and finals(listener, "patient"), "the finals", FINAL_S)
    wait_until(lambda: listener.bodies("/health")[-1]["engine_replacements"] == 1, "the figure", FINAL_S)
    assert agent.stop() == 0
    for final in (*finals(listener, "slide").values(), *finals(listener, "patient").values()):
        assert final["counts"]["seen"] == 42 == final["counts"]["used"] + sum(final["counts"]["rejected"].values())
        assert "engine_failed" not in final["counts"]["rejected"]
        assert (final["state"], final["engine"]["name"]) == ("complete", "eager")
    (alert,) = [body for body in listener.bodies("/alert") if body["reason"] == "engine_replaced"]
    assert alert["detail"].startswith(f"engine {LABEL} failed and eager has taken over")
    online = [body for body in listener.bodies("/status") if body["state"] == "online"]
    assert [body["engine"]["name"] for body in online] == ["openvino", "eager"]
    assert [list(body["passed_over"]) for body in online] == [[], [LABEL]]
    entries = [
        json.loads(line) for path in agent.state.glob("audit-*.jsonl") for line in path.read_text().splitlines()
    ]
    kinds = [entry["kind"] for entry in entries if entry["kind"] in ("start", "engine", "final", "stop")]
    assert kinds[:2] == ["start", "engine"] and kinds.count("engine") == 1 and kinds[-1] == "stop"
    assert [line["engine"] for line in agent.events("engine")] == ["openvino", "eager"]
    listener.close()
