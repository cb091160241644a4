"""What the daemon asks of Python and the kernel from its start to the final answer: nothing without need."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.brokers import Listener, Mosquitto, need, wait_until
from tests.system.processes import AgentProcess
from tests.system.telling import good_files

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FINAL_S = 90.0

HOOK = '''
"""Loaded by the interpreter before anything else: writes every audit event that matters to a file."""
import json, os, sys

_out = os.open(os.environ["AUDIT_TO"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_quiet = ("object.", "sys._getframe", "import", "code.__new__", "builtins.id", "gc.", "sys.set", "cpython.")

def _write(event, args):
    if event.startswith(_quiet) or (event == "exec" and _by_import(2)):
        return
    if event == "marshal.loads" and _by_import(2):
        return
    told = [item if isinstance(item, (str, int, type(None))) else
            item.decode("utf-8", "replace") if isinstance(item, bytes) and len(item) < 4096 else repr(item)[:200]
            for item in args]
    if event == "compile":
        told = [str(told[1])]
    os.write(_out, (json.dumps([event, told]) + "\\n").encode())

def _by_import(depth):
    frame = sys._getframe(depth)
    return "importlib" in frame.f_code.co_filename

sys.addaudithook(_write)
'''
UNPICKLING = {"pickle.find_class", "marshal.loads", "marshal.load"}
PROCESSES = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn",
}  # fmt: skip
CHANGES = {
    "os.rename", "os.remove", "os.unlink", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.utime", "os.truncate", "os.setxattr", "os.removexattr", "fcntl.flock", "fcntl.lockf", "fcntl.fcntl",
    "shutil.move",    "shutil.rmtree", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp",
}  # fmt: skip
"""Audit events of whatever changes or locks a path."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Stamp(NamedTuple):
    """What would show that somebody touched a file. (Reading may set the time of access.)"""

    inode: int
    mode: int
    links: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Watched:
    """A start-to-final of the daemon, with every audit event that it raised."""

    def __init__(self, home: Path, broker: Mosquitto) -> None:
        self.broker = broker
        self.agent = AgentProcess(home / "agent", broker.port, dicom_out={"folder": str(home / "dicom")})
        (home / "hook").mkdir()
        (home / "hook" / "sitecustomize.py").write_text(HOOK)
        for name, content in good_files().items():
            if "strips" in name:
                path = self.agent.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.before = stamps(self.agent.folder)
        listener = Listener(broker.port)
        environment = {"PYTHONPATH": str(home / "hook"), "AUDIT_TO": str(home / "events"), "HOME": str(home)}
        try:
            self.agent.start(environment=environment)
            wait_until(lambda: len(listener.bodies("/final")) >= 2, "finals of slide and patient", FINAL_S)
            assert self.agent.stop() == 0
        finally:
            listener.close()
            if not self.agent.ended:
                self.agent.kill()
        self.after = stamps(self.agent.folder)
        self.events: list[tuple[str, list[Any]]] = [
            (event, args) for event, args in map(json.loads, (home / "events").read_text().splitlines())
        ]

    def of(self, *names: str) -> list[tuple[str, list[Any]]]:
        """The events of these names."""
        return [event for event in self.events if event[0] in names]


def stamps(folder: Path) -> dict[str, Stamp]:
    """Every file and folder below, and the folder itself."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        s = path.lstat()
        found[str(path)] = Stamp(s.st_ino, s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One run for all of these tests."""
    home = tmp_path_factory.mktemp("watched")
    (home / "broker").mkdir()
    broker = Mosquitto(home / "broker").start()
    try:
        yield Watched(home, broker)
    finally:
        broker.kill()


def test_nothing_is_unpickled(watched: Watched) -> None:
    """No unpickler runs, and nothing but an import reads marshalled code."""
    assert len(watched.events) > 100, "the hook saw nothing"
    assert watched.of(*UNPICKLING) == []


def test_no_process_is_started(watched: Watched) -> None:
    """Neither a shell nor any other program, nor a fork."""
    assert watched.of(*PROCESSES) == []


def test_it_talks_to_the_broker_and_to_nobody_else(watched: Watched) -> None:
    """Every connection goes to the broker or to the service manager's socket, and no other name is looked up."""
    allowed = (f"('127.0.0.1', {watched.broker.port})", str(watched.agent.home))
    connections = [args[1] for _, args in watched.of("socket.connect", "socket.sendto", "socket.sendmsg")]
    assert allowed[0] in connections
    others = [address for address in connections if not any(word in str(address) for word in allowed)]
    # paho wakes its own thread through a pair of sockets that it connects with each other.
    own_pairs = [args for _, args in watched.of("socket.bind") if str(args[1]) == "('127.0.0.1', 0)"]
    assert len(others) == len(own_pairs) and all(address.startswith("('127.0.0.1', ") for address in others)
    assert {args[0] for _, args in watched.of("socket.getaddrinfo", "socket.gethostbyname")} <= {"127.0.0.1"}
    assert watched.of("urllib.Request", "ftplib.connect", "smtplib.connect", "http.client.connect") == []


def test_the_folder_is_only_read(watched: Watched) -> None:
    """No file of the imager's folder is opened for writing, renamed, removed, locked or given other rights; every
    file and folder in it has the inode, size, links, mode and times that it had."""
    folder = str(watched.agent.folder)
    opened = [args for _, args in watched.of("open") if str(args[0]).startswith(folder)]
    assert len(opened) > 10, "the files were not read"
    assert [args for args in opened if _for_writing(args)] == []
    assert [event for event in watched.of(*CHANGES) if any(str(arg).startswith(folder) for arg in event[1])] == []
    assert watched.after == watched.before


def _for_writing(args: list[Any]) -> bool:
    """`open` tells path, mode (None for os.open) and flags."""
    return bool(set(str(args[1] or "r")) & set("wax+")) or bool(int(args[2] or 0) & WRITING)


def test_it_writes_below_its_state_folder_only(watched: Watched) -> None:
    """Every path that it opens for writing lies in state_dir, or is a device."""
    paths = {str(args[0]) for _, args in watched.of("open") if _for_writing(args)}
    allowed = (str(watched.agent.state), "/dev/")
    assert [path for path in paths if not path.startswith(allowed) and not path.isdecimal()] == []


def test_a_mount_that_cannot_be_written_makes_no_difference(tmp_path: Path, broker: Mosquitto) -> None:
    """As a user of its own, without any right of root, on a read-only mount: the same answers, and no complaint."""
    bwrap = need("bwrap", "bubblewrap")
    agent = AgentProcess(tmp_path / "agent", broker.port)
    for name, content in good_files().items():
        if "strips" in name:
            path = agent.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    words = [bwrap, "--die-with-parent", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    words += ["--ro-bind", str(agent.folder), str(agent.folder), "--unshare-user", "--uid", "1234", "--gid", "1234"]
    listener = Listener(broker.port)
    try:
        agent.start(inside=[*words, "--cap-drop", "ALL", "--"])
        wait_until(lambda: len(listener.bodies("/final")) >= 2, "finals of slide and patient", FINAL_S)
    finally:
        agent.kill()
        listener.close()
    assert {body["state"] for body in listener.bodies("/final")} == {"complete"}
    assert not listener.bodies("/alert")
