"""The watched folder at its worst, with the daemon as a process: it hangs, goes away and comes back, is hostile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from agent.finished import survey
from tests.brokers import Listener, Mosquitto, wait_until
from tests.faults.shim import Call, Shim, build
from tests.system.processes import AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FINAL_S = 90.0
LIMIT_S = 1.0
"""`watch.answer_limit_s` of these tests."""
WATCHED = {"WATCHDOG_USEC": "2000000"}
"""As systemd would say it: feed me every second."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that causes faults, compiled."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides (two strips each) of one synthetic phantom patient as DICOM strips."""
    out = tmp_path_factory.mktemp("phantom") / "slides"
    done = command("agent", "phantom", "--out", out, "--slides", "2", "--seed", "41000", "--layout", "strips-b")
    assert done.returncode == 0, done.stderr
    return out


def agent_on(home: Path, port: int, agents: list[AgentProcess], **watch: Any) -> AgentProcess:
    """An agent whose folder counts as hanging after a second, not yet started."""
    watch = {"scan_interval_s": 0.5, "settle_s": 0.3, "answer_limit_s": LIMIT_S, **watch}
    agent = AgentProcess(home, port, watch=watch, patient={"quiet_s": 60.0})
    agents.append(agent)
    return agent


def files_of(source: Path) -> list[PurePosixPath]:
    """The image files of a folder, in the imager's order."""
    return [file.relative for file in survey(source).placed]


def copy(source: Path, folder: Path, names: list[PurePosixPath]) -> None:
    """Write these files into the watched folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def finals(listener: Listener) -> dict[str, dict[str, Any]]:
    """The latest final of each slide."""
    return {body["slide"]: body for body in listener.bodies("/final") if body["kind"] == "slide.final"}


def all_complete(listener: Listener, slides: int = 2) -> bool:
    """Whether every slide has a final that counts each of its patches once."""
    said = finals(listener).values()
    return len(said) == slides and all(
        (final["state"], final["counts"]["seen"]) == ("complete", 42) for final in said
    )


def test_a_folder_that_hangs_is_told_and_read_when_it_answers(
    phantom: Path, library: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Listing, stat and open hang: the watchdog is fed, health and one alert say so; then all is counted once."""
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents, mode="scan")
    shim = Shim(tmp_path, library)
    agent.start(environment={**shim.environment, **WATCHED})
    names = files_of(phantom)
    copy(phantom, agent.folder, names[:4])
    wait_until(lambda: len(finals(listener)) == 1, "the first slide's final", FINAL_S)
    fault = shim.cause(agent.folder, Call.LOOKING, hang=True)
    copy(phantom, agent.folder, names[4:])
    wait_until(lambda: not listener.bodies("/health")[-1]["folder_readable"], "health says that it cannot be read")
    assert "does not answer" in listener.bodies("/health")[-1]["folder_trouble"]
    wait_until(lambda: agent.said("STATUS=the watched folder hangs"), "the service manager is told")
    fed = len([said for said in agent.notified if said == "WATCHDOG=1"])
    wait_until(
        lambda: agent.said("") or agent.notified.count("WATCHDOG=1") >= fed + 3, "the watchdog is fed all the while"
    )
    alerts = [body for body in listener.bodies("/alert") if body["reason"] == "folder_hangs"]
    assert len(alerts) == 1 and alerts[0]["severity"] == "error"
    assert len(finals(listener)) == 1
    fault.end()
    wait_until(lambda: all_complete(listener), "both slides are complete, each patch counted once", FINAL_S)
    wait_until(lambda: listener.bodies("/health")[-1]["folder_readable"], "health says that it answers")
    assert listener.bodies("/health")[-1]["folder_trouble"] is None
    assert listener.bodies("/health")[-1]["alerts"] == {"folder_hangs": 1}
    assert len(agent.events("folder_hangs")) == len(agent.events("folder_answers")) == 1
    assert agent.said("STATUS=the folder answers again")
    assert [body["reason"] for body in listener.bodies("/alert")] == ["folder_hangs"]
    assert agent.stop() == 0
    listener.close()


def test_it_starts_and_ends_with_a_folder_that_hangs(
    phantom: Path, library: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """READY comes although nothing answers, and says so; SIGTERM ends it in time with 1, and `stopped` is said."""
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents)
    shim = Shim(tmp_path, library)
    copy(phantom, agent.folder, files_of(phantom))
    fault = shim.cause(agent.folder, Call.LOOKING, hang=True)
    agent.start(environment={**shim.environment, **WATCHED})
    wait_until(lambda: agent.said("STATUS=the watched folder hangs"), "the service manager is told")
    wait_until(lambda: any(body["reason"] == "folder_hangs" for body in listener.bodies("/alert")), "an alert")
    begun = time.monotonic()
    assert agent.stop() == 1
    assert time.monotonic() - begun < 10.0, "pipeline.stop_limit_s"
    assert [line["room"] for line in agent.events("left_behind")] == ["reader"]
    assert not agent.events("stop_took_too_long") and not agent.events("room_failed")
    wait_until(lambda: listener.bodies("/status")[-1]["state"] == "stopped", "it says that it stopped")
    assert not list(agent.state.glob("*-wal")), "the ledger was closed"
    fault.end()
    agent.start(environment=shim.environment)
    wait_until(lambda: all_complete(listener), "everything is read once it answers", FINAL_S)
    assert agent.stop() == 0
    listener.close()


def test_work_in_hand_goes_out_when_the_end_comes_during_a_hang(
    phantom: Path, library: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Reads hang in the middle of a slide: what was read is told and kept, and nothing counts twice afterwards."""
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents)
    shim = Shim(tmp_path, library)
    fault = shim.cause(agent.folder, Call.READ, hang=True, skip=24)
    agent.start(environment={**shim.environment, **WATCHED})
    copy(phantom, agent.folder, files_of(phantom))
    wait_until(lambda: agent.events("folder_hangs"), "a read hangs", FINAL_S)
    told = max([body["counts"]["seen"] for body in listener.bodies("/posterior")], default=0)
    agent.signal(signal.SIGTERM)
    agent.signal(signal.SIGTERM)  # somebody is impatient
    assert agent.wait(10.0) == 1
    assert fault.hits
    fault.end()
    agent.start(environment=shim.environment)
    wait_until(lambda: all_complete(listener), "both slides are complete, each patch counted once", FINAL_S)
    assert told < 84
    assert agent.stop() == 0
    listener.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A real file system that can be mounted at (second) and keeps its files (first) while it is not."""
    home, point = tmp_path / "share", tmp_path / "agent" / "imager"
    for folder in (home, point):
        folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "none", str(home)]
    if subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode:
        message = "a share cannot be mounted: this test needs root"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    yield home, point
    for folder in (point, home):
        subprocess.run(["umount", "--lazy", str(folder)], check=False, stderr=subprocess.DEVNULL)


def test_a_share_is_unmounted_and_mounted_again(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path, mounted: tuple[Path, Path]
) -> None:
    """In mid-slide: told once for as long as it lasts, nothing is called gone, then all is counted once."""
    home, point = mounted
    subprocess.run(["mount", "--bind", str(home), str(point)], check=True)
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents)
    agent.start()
    names = files_of(phantom)
    copy(phantom, home, names[:6])
    wait_until(lambda: len(finals(listener)) == 1, "the first slide's final", FINAL_S)
    wait_until(lambda: any(b["counts"]["seen"] == 21 for b in listener.bodies("/posterior")), "half of the second")
    subprocess.run(["umount", "--lazy", str(point)], check=True)
    wait_until(lambda: not listener.bodies("/health")[-1]["folder_readable"], "health says that it cannot be read")
    since = len(listener.bodies("/health"))
    wait_until(lambda: len(listener.bodies("/health")) > since + 20, "several scans")
    assert not any(body["folder_readable"] for body in listener.bodies("/health")[since:])
    assert "unmounted" in listener.bodies("/health")[-1]["folder_trouble"]
    assert [body["reason"] for body in listener.bodies("/alert")] == ["folder_unavailable"]
    copy(phantom, home, names[6:])
    subprocess.run(["mount", "--bind", str(home), str(point)], check=True)
    wait_until(lambda: all_complete(listener), "both slides are complete, each patch counted once", FINAL_S)
    assert [body["reason"] for body in listener.bodies("/alert")] == ["folder_unavailable"]
    assert len([body for body in listener.bodies("/final") if body["kind"] == "slide.final"]) == 2
    assert agent.stop() == 0
    listener.close()


def test_more_events_than_the_kernel_keeps(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """A stopped agent's inotify queue overflows for real: what was lost is found by the scan, and counted as such."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 65_536:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}: that many files are too many for a test")
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents, mode="events")
    agent.start()
    agent.signal(signal.SIGSTOP)
    for number in range(limit // 2):
        (agent.folder / f"{number}.part").touch()
    copy(phantom, agent.folder, files_of(phantom))
    agent.signal(signal.SIGCONT)
    wait_until(lambda: all_complete(listener), "both slides are complete, each patch counted once", FINAL_S)
    assert "Inotify queue overflowed" in agent.log()
    wait_until(
        lambda: listener.bodies("/health")[-1]["scan_only_finds"] > 0, "health counts what only the scan found"
    )
    assert agent.stop() == 0
    listener.close()


def test_a_hostile_tree_neither_stops_nor_misleads_the_agent(
    phantom: Path, broker: Mosquitto, agents: list[AgentProcess], tmp_path: Path
) -> None:
    """Too deep, too long, no UTF-8, pipes, loops, links out: the slide beside it is read, and nothing outside."""
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents)
    names = files_of(phantom)
    copy(phantom, tmp_path / "outside", names[4:])
    folder = agent.folder
    for name, levels in (("d", 1500), ("n" * 250, 20)):
        here = os.open(folder, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir(name, dir_fd=here)
            here, above = os.open(name, os.O_RDONLY, dir_fd=here), here
            os.close(above)
        os.close(os.open("IMG000006.dcm", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)
    for raw in (b"m\xfcller.dcm", b"\xff\xfe.tif", b"two\nlines.dcm"):
        os.close(os.open(os.fsencode(folder) + b"/" + raw, os.O_CREAT | os.O_WRONLY))
    os.mkfifo(folder / "pipe.dcm")
    (folder / "loop").symlink_to(folder)
    (folder / "self.dcm").symlink_to(folder / "self.dcm")
    (folder / "out").symlink_to(tmp_path / "outside")
    for file in names[4:]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to(tmp_path / "outside" / file)
    try:
        agent.start()
        copy(phantom, folder, names[:4])
        wait_until(lambda: all_complete(listener, slides=1), "the slide that lies in the folder", FINAL_S)
        assert [line["detail"] for line in agent.events("no_events")] == ["the folders are nested too deep"]
        assert any("File name too long" in line["detail"] for line in agent.events("not_permitted"))
        assert not agent.events("room_failed") and listener.bodies("/health")[-1]["folder_readable"]
        assert agent.stop() == 0
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)  # shutil is not up to the depth
    assert len(finals(listener)) == 1, "nothing outside was read"
    listener.close()


@pytest.mark.parametrize("how", ["hang", "unmount"])
def test_nobody_is_silent_while_the_folder_is_away(
    how: str,
    phantom: Path,
    library: Path,
    broker: Mosquitto,
    agents: list[AgentProcess],
    tmp_path: Path,
    mounted: tuple[Path, Path],
) -> None:
    """Away for longer than a slide may be silent: it stalls only after as long a silence that could be seen."""
    home, point = mounted
    subprocess.run(["mount", "--bind", str(home), str(point)], check=True)
    listener = Listener(broker.port)
    agent = agent_on(tmp_path / "agent", broker.port, agents, stall_after_s=8.0)
    shim = Shim(tmp_path, library)
    agent.start(environment=shim.environment)
    names = files_of(phantom)
    copy(phantom, home, names[:2])
    wait_until(lambda: any(b["counts"]["seen"] == 21 for b in listener.bodies("/posterior")), "half of a slide")
    fault = shim.cause(agent.folder, Call.LOOKING, hang=True) if how == "hang" else None
    if how == "unmount":
        subprocess.run(["umount", "--lazy", str(point)], check=True)
    wait_until(lambda: not listener.bodies("/health")[-1]["folder_readable"], "health says that it cannot be read")
    since = time.monotonic()
    wait_until(lambda: time.monotonic() > since + 10.0, "longer than the limit")
    if fault is not None:
        fault.end()
    else:
        subprocess.run(["mount", "--bind", str(home), str(point)], check=True)
    wait_until(lambda: listener.bodies("/health")[-1]["folder_readable"], "it is back")
    back = time.monotonic()
    wait_until(lambda: agent.events("slide") or time.monotonic() > back + 2.0, "some scans")
    assert not agent.events("slide"), "nobody could see whether it was silent"
    wait_until(lambda: any(b["reason"] == "stalled" for b in listener.bodies("/alert")), "and then it is stalled")
    listener.close()
