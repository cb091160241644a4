"""The daemon as a process: real files that grow, a real broker, real signals."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from agent.finished import survey
from tests.brokers import Listener, Mosquitto, free_port, need, wait_until
from tests.system.processes import PROFILE, AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FINAL_S = 90.0


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom patients (three slides of two strips) as DICOM strips."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "3", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return out


def files_of(source: Path) -> dict[PurePosixPath, bytes]:
    """The image files of a folder, in the imager's order."""
    return {file.relative: (source / file.relative).read_bytes() for file in survey(source).placed}


def append(folder: Path, name: PurePosixPath, content: bytes) -> None:
    """Let a file grow."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(content)


def finals(listener: Listener, scope: str) -> dict[str, dict[str, Any]]:
    """The latest final of each slide or patient."""
    return {body[scope]: body for body in listener.bodies("/final") if body["kind"] == f"{scope}.final"}


def test_streaming_with_a_kill_and_a_restart_equals_score(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Files in random pieces and order, copies, kill -9 and a clean restart: score's posteriors, bit for bit."""
    out = tmp_path / "scores.json"
    scored = command("agent", "score", phantom, "--profile", PROFILE, "--backend", "eager", "--out", out)
    assert scored.returncode == 0, scored.stderr
    scores = json.loads(out.read_text())

    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    chance = random.Random(7)
    rest = files_of(phantom)
    pieces = 0
    while rest:
        name = chance.choice(sorted(rest))
        size = chance.choice([1, 40_000, 700_001, 5_000_000])
        append(agent.folder, name, rest[name][:size])
        rest[name] = rest[name][size:]
        if not rest[name]:
            del rest[name]
        pieces += 1
        if pieces == 15:
            wait_until(lambda: listener.bodies("/posterior"), "a posterior before the kill")
            agent.kill()
            agent.start()
        if pieces == 25:
            assert agent.stop() == 0
            agent.start()
    name, content = next(iter(files_of(phantom).items()))
    append(agent.folder, name.with_name("IMG000006.dcm"), content)

    def all_complete() -> bool:
        # The patients are interleaved, so that each of them "begins" again and again: early finals are superseded.
        said = [*finals(listener, "slide").values(), *finals(listener, "patient").values()]
        return len(said) == 3 + len(scores["patients"]) and all(final["state"] == "complete" for final in said)

    wait_until(all_complete, "a final on complete data for every slide and patient", FINAL_S)
    assert agent.stop() == 0
    assert len(finals(listener, "slide")) == len(scores["slides"]) == 3
    for row in scores["slides"]:
        final = finals(listener, "slide")[agent.pseudonym(row["patient"], row["slide"]).slide]
        assert final["probabilities"] == row["probabilities"]
        assert final["interval"] == row["interval"]
        assert final["counts"] == row["counts"]
        assert final["counts"]["seen"] == final["counts"]["used"] + sum(final["counts"]["rejected"].values()) == 42
        assert (final["state"], final["strips"]) == ("complete", {"done": 2, "expected": 2})
        assert final["predicted"] == row["predicted"]
    for row in scores["patients"]:
        key = agent.pseudonym(row["patient"], "").patient
        assert finals(listener, "patient")[key]["probabilities"] == row["probabilities"]
        assert finals(listener, "patient")[key]["counts"] == row["counts"]
    listener.close()


def test_a_posterior_comes_while_the_strip_is_written(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """With under half of the first strip on disk, its first posterior is out, and says that it is receiving."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    (ch2, first), (ch3, second) = list(files_of(phantom).items())[:2]
    append(agent.folder, ch2, first[: int(len(first) * 0.47)])
    append(agent.folder, ch3, second[: int(len(second) * 0.47)])
    wait_until(
        lambda: any(body["counts"]["seen"] == 9 for body in listener.bodies("/posterior")),
        "a posterior of the three rows of patches that are on disk",
    )
    last = [body for body in listener.bodies("/posterior") if body["kind"] == "slide.posterior"][-1]
    assert last["state"] == "receiving" and last["strips"] == {"done": 0, "expected": 2}
    assert last["intended_use"] == "research use only"
    assert listener.bodies("/current")[-1]["slide"] == last["slide"]
    listener.close()


def test_a_broker_that_comes_late_and_goes_away_misses_no_final(
    phantom: Path, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """No broker at start, and one that dies in between: every final arrives, retained, under one event_id."""
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    files = list(files_of(phantom).items())
    for name, content in files[:4]:
        append(agent.folder, name, content)
    wait_until(lambda: agent.events("slide"), "the first slide is done", FINAL_S)
    broker.start()
    listener = Listener(broker.port)
    wait_until(lambda: len(finals(listener, "slide")) == 1, "the first final", FINAL_S)
    broker.kill()
    for name, content in files[4:]:
        append(agent.folder, name, content)
    wait_until(lambda: len(agent.events("slide")) >= 3, "the other slides are done", FINAL_S)
    listener.close()
    broker.start()
    late = Listener(broker.port)
    wait_until(lambda: len(finals(late, "slide")) == 3, "all finals, also the one of before", FINAL_S)
    assert len({body["event_id"] for body in late.bodies("/final") if body["kind"] == "slide.final"}) == 3
    assert agent.stop() == 0
    wait_until(lambda: late.bodies("/status")[-1]["state"] == "stopped", "the farewell")
    late.close()
    broker.kill()


def test_birth_will_and_stop(broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path) -> None:
    """`online` at start, `offline` after kill -9, `stopped` after SIGTERM with exit code 0; systemd hears of it."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start(environment={"WATCHDOG_USEC": "400000"}))
    wait_until(lambda: agent.said("WATCHDOG=1"), "the watchdog is fed")
    wait_until(lambda: listener.bodies("/status"), "the birth")
    agent.kill()
    wait_until(lambda: listener.bodies("/status")[-1]["state"] == "offline", "the will")
    agent.start()
    wait_until(lambda: listener.bodies("/status")[-1]["state"] == "online", "the second birth")
    assert agent.stop() == 0
    assert any("STOPPING=1" in said for said in agent.notified)
    wait_until(lambda: listener.bodies("/status")[-1]["state"] == "stopped", "the farewell")
    states = [(body["state"], body["boot_seq"]) for body in listener.bodies("/status")]
    assert states == [("online", 1), ("offline", 1), ("online", 2), ("stopped", 2)]
    listener.close()


def test_sigterm_finishes_what_is_in_hand(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """A stop in the middle of a slide ends cleanly and soon; all that was told is in the ledger afterwards."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    for name, content in list(files_of(phantom).items())[:2]:
        append(agent.folder, name, content)
    wait_until(lambda: any(body["counts"]["seen"] for body in listener.bodies("/posterior")), "a first posterior")
    started = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - started < 12
    agent.start()
    (first, second) = agent.events("restored")
    told = max(body["counts"]["seen"] for body in listener.bodies("/posterior"))
    assert first["patches"] == 0 and second["patches"] == told > 0
    assert agent.stop() == 0
    listener.close()


def test_a_dead_room_ends_the_process(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """When the ledger cannot grow any more the SENDER dies: the exit code is 1 and the log says which and why."""
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    assert agent.stop() == 0
    # A real error of the kernel: no file of this process may grow beyond what the ledger has already.
    agent.start(fsize=(agent.state / "ledger.sqlite").stat().st_size + 70_000)
    for name, content in files_of(phantom).items():
        append(agent.folder, name, content)
    assert agent.wait(FINAL_S) == 1
    (died,) = agent.events("room_died")
    assert died["room"] == "sender" and "ledger" in died["error"]
    assert "Traceback" not in agent.log()


def test_bad_files_alert_and_the_rest_goes_on(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """One truncated file, one that is no image: an alert and a log event each; the other strips count."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port, watch={"stall_after_s": 1.5, "settle_s": 0.3})
    agents.append(agent.start())
    files = list(files_of(phantom).items())
    for index, (name, content) in enumerate(files):
        bad = {1: content[:2_000_000], 4: b"Rar!" + bytes(range(1, 256)) * 40}
        append(agent.folder, name, bad.get(index, content))
    wait_until(lambda: len(finals(listener, "slide")) == 3, "three finals", FINAL_S)
    wait_until(
        lambda: {"truncated", "not_an_image"} <= {b["reason"] for b in listener.bodies("/alert")}, "the alerts"
    )
    reasons = [body["reason"] for body in listener.bodies("/alert")]
    assert reasons.count("truncated") == reasons.count("not_an_image") == 1
    logged = [event["reason"] for event in agent.events("problem")]
    assert sorted(logged) == sorted(reasons)
    for final in finals(listener, "slide").values():
        counts = final["counts"]
        assert counts["seen"] == counts["used"] + sum(counts["rejected"].values()) == 42
    lost = [final["counts"]["rejected"] for final in finals(listener, "slide").values()]
    assert sum(row.get("unreadable", 0) for row in lost) == 21
    assert 0 < sum(row.get("truncated", 0) for row in lost) < 21
    for said in [agent.log(), *[m.topic + m.payload.decode() for m in listener.messages]]:
        assert "PHANTOM" not in said
    listener.close()


def test_scanning_alone_finds_renamed_files(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """In scan mode, as on network mounts, files written under a temporary name and renamed are all found."""
    listener = Listener(broker.port)
    watch = {"mode": "scan", "scan_interval_s": 0.2, "settle_s": 0.3}
    agent = AgentProcess(tmp_path / "agent", broker.port, watch=watch)
    agents.append(agent.start())
    for name, content in list(files_of(phantom).items())[:4]:
        hidden = name.with_name(name.name + ".part")
        append(agent.folder, hidden, content)
        (agent.folder / hidden).rename(agent.folder / name)
    wait_until(lambda: finals(listener, "slide"), "the final", FINAL_S)
    assert not listener.bodies("/alert")
    listener.close()


def test_the_close_patient_command(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """mosquitto_pub on cmd/close-patient ends the patient when the settings allow it."""
    publish = need("mosquitto_pub", "mosquitto-clients")
    listener = Listener(broker.port)
    agent = AgentProcess(
        tmp_path / "agent", broker.port, patient={"quiet_s": 3600}, mqtt={"commands": ["close-patient"]}
    )
    agents.append(agent.start())
    for name, content in list(files_of(phantom).items())[:4]:
        append(agent.folder, name, content)
    wait_until(lambda: finals(listener, "slide"), "the slide's final", FINAL_S)
    assert not finals(listener, "patient")
    topic = "srh/v1/test/instrument/cmd/close-patient"
    subprocess.run([publish, "-p", str(broker.port), "-t", topic, "-m", "{}"], check=True)
    wait_until(lambda: finals(listener, "patient"), "the patient's final")
    wait_until(lambda: listener.bodies("/current")[-1]["patient"] is None, "nobody is on the table")
    listener.close()


def test_metrics_on_loopback(broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path) -> None:
    """With a metrics port the figures are served in Prometheus' format, and only on loopback."""
    port = free_port()
    agent = AgentProcess(tmp_path / "agent", broker.port, metrics={"port": port})
    agents.append(agent.start())
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    assert "srh_patches_used_total 0.0" in answer and "srh_resident_bytes" in answer
    assert agent.stop() == 0


def test_memory_stays_flat(phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path) -> None:
    """Over thirty slides the resident memory after a third of them and at the end differ by 10 % at most."""
    listener = Listener(broker.port)
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    names = list(files_of(phantom))[:4]
    for number in range(30):
        for name in names:
            target = agent.folder / f"PATIENT_{number}" / PurePosixPath(*name.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(phantom / name)
        wait_until(lambda n=number: len(finals(listener, "slide")) > n - 5, "the slides before", FINAL_S)  # type: ignore[misc]
    wait_until(lambda: len(finals(listener, "slide")) == 30, "every final", FINAL_S)
    sizes = [(body["patches"]["seen"], body["rss_bytes"]) for body in listener.bodies("/health")]
    early = max(rss for seen, rss in sizes if seen <= 10 * 42)
    assert max(rss for _, rss in sizes) <= 1.1 * early
    listener.close()


def test_wrong_settings_and_profiles_end_with_one_line(tmp_path: Path) -> None:
    """Unknown keys exit with 2 and name the line; a damaged profile exits with 1; neither shows a traceback."""
    agent = AgentProcess(tmp_path / "a", 1883, wacth={"mode": "scan"})
    done = command("agent", "run", "--config", agent.config)
    assert done.returncode == 2
    assert "wacth" in done.stderr and "watch" in done.stderr and "Traceback" not in done.stderr
    broken = tmp_path / "profile"
    shutil.copytree(PROFILE, broken, ignore=shutil.ignore_patterns("engines"))
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    agent = AgentProcess(tmp_path / "b", 1883, profile=str(broken))
    done = command("agent", "run", "--config", agent.config)
    assert done.returncode == 1
    assert "weights.safetensors has sha256" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_is_a_clean_stop(broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path) -> None:
    """SIGINT stops as SIGTERM does."""
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start())
    agent.signal(signal.SIGINT)
    assert agent.wait() == 0


def test_a_service_manager_that_cannot_be_reached_ends_it_in_one_line(
    broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """A dead notification socket: exit code 1 and the reason, no traceback, instead of being killed for silence."""
    agent = AgentProcess(tmp_path / "agent", broker.port)
    agents.append(agent.start(ready=False, environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")}))
    assert agent.wait(60) == 1
    (event,) = agent.events("room_died")
    assert "NOTIFY_SOCKET" in event["error"]
    assert "Traceback" not in agent.log()
    assert not agent.events("ready")
