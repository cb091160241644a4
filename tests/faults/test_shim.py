"""The preloaded library itself: it hits what it should, counts it, and nothing else."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers import wait_until
from tests.faults.shim import Call, Shim

PROGRAM = textwrap.dedent(
    """
    import os, socket, sqlite3, sys, time
    from pathlib import Path

    folder = Path(sys.argv[1])

    def read():
        descriptor = os.open(folder / "a", os.O_RDONLY)
        try:
            return os.pread(descriptor, 10, 0)
        finally:
            os.close(descriptor)

    def ledger():
        database = sqlite3.connect(folder / "ledger", isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE IF NOT EXISTS t (x)")
            database.execute("INSERT INTO t VALUES (zeroblob(20000))")
        finally:
            database.close()

    def send(port):
        with socket.create_connection(("127.0.0.1", int(port))) as here:
            return here.send(b"abc")

    def sync():
        with (folder / "s").open("wb") as file:
            file.write(bytes(100))
            file.flush()
            os.fsync(file.fileno())

    deeds = {
        "open": lambda: (folder / "a").open().close(),
        "read": read,
        "stat": lambda: os.stat(folder / "a"),
        "list": lambda: list(os.scandir(folder)),
        "create": lambda: os.close(os.open(folder / "new", os.O_WRONLY | os.O_CREAT)),
        "write": lambda: (folder / "new").write_bytes(bytes(1000)),
        "sync": sync,
        "truncate": lambda: open(folder / "a", "r+b").truncate(6),
        "rename": lambda: (folder / "new").replace(folder / "newer"),
        "ledger": ledger,
        "send": send,
        "time": lambda: time.time(),
        "monotonic": lambda: time.monotonic(),
    }
    for line in sys.stdin:
        try:
            deed, *rest = line.split()
            print("ok", deeds[deed](*rest), flush=True)
        except OSError as error:
            print("OSError", error.errno, flush=True)
        except sqlite3.Error as error:
            print("sqlite", error, flush=True)
    """
)


class Doer:
    """A process under the library that does one thing at a time."""

    def __init__(self, shim: Shim, folder: Path) -> None:
        """Starts it."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **shim.environment},
        )

    def begin(self, deed: str) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{deed}\n")

    def end(self) -> str:
        """What came of it."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def do(self, deed: str) -> str:
        """Both."""
        self.begin(deed)
        return self.end()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def shim(library: Path, tmp_path: Path) -> Shim:
    """A shim without faults."""
    return Shim(tmp_path, library)


@pytest.fixture
def doer(shim: Shim, folder: Path) -> Iterator[Doer]:
    """A process under the shim."""
    doer = Doer(shim, folder)
    yield doer
    doer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"abcdef")
    return folder


@pytest.mark.parametrize(
    ("deed", "call"),
    [
        ("open", Call.OPEN),
        ("read", Call.OPEN),
        ("read", Call.READ),
        ("stat", Call.STAT),
        ("list", Call.LIST),
        ("create", Call.CREATE),
        ("write", Call.WRITE),
        ("sync", Call.SYNC),
        ("truncate", Call.TRUNCATE),
        ("rename", Call.RENAME),
    ],
)
def test_a_call_fails_while_its_fault_is_on(deed: str, call: Call, shim: Shim, doer: Doer, folder: Path) -> None:
    """The call fails with the wanted error, is counted, and works again when the fault has ended."""
    (folder / "new").touch()
    assert doer.do(deed).startswith("ok")
    (folder / "new").touch()
    fault = shim.cause(folder, call, error=errno.EIO)
    assert doer.do(deed) == f"OSError {errno.EIO}"
    assert fault.hits >= 1
    fault.end()
    assert doer.do(deed).startswith("ok")


@pytest.mark.parametrize("call", [Call.WRITE, Call.SYNC, Call.CREATE])
def test_sqlite_meets_the_faults_too(call: Call, shim: Shim, doer: Doer, folder: Path) -> None:
    """The ledger's library calls the kernel where the shim stands: full disks and I/O errors reach it."""
    fault = shim.cause(folder, call, error=errno.ENOSPC, ending="-wal" if call is not Call.CREATE else "")
    assert doer.do("ledger").startswith("sqlite")
    assert fault.hits >= 1
    fault.end()
    assert doer.do("ledger").startswith("ok")


def test_a_short_write_writes_half(shim: Shim, doer: Doer, folder: Path) -> None:
    """Half arrives and the caller is told so: whoever looks goes on with the rest."""
    fault = shim.cause(folder, Call.WRITE, short=True)
    assert doer.do("ledger").startswith("ok")
    assert fault.hits > 2
    fault.end()


def test_a_hanging_call_returns_when_the_fault_ends(shim: Shim, doer: Doer, folder: Path) -> None:
    """It hangs for as long as the fault is on, then does what was asked."""
    fault = shim.cause(folder, Call.LOOKING, hang=True)
    doer.begin("read")
    wait_until(lambda: fault.waiting == 1, "it hangs")
    fault.end()
    assert doer.end() == "ok b'abcdef'"


def test_sending_hangs(shim: Shim, doer: Doer) -> None:
    """What goes to the network can be held, too, and goes on afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        fault = shim.hold_back(port)
        doer.begin(f"send {port}")
        wait_until(lambda: fault.waiting == 1, "it hangs")
        fault.end()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10) == b"abc"
        assert doer.end() == "ok 3"


def test_only_the_chosen_calls_are_hit(shim: Shim, doer: Doer, folder: Path) -> None:
    """`skip` and `most` pick calls by number, `ending` picks files; another folder is left alone."""
    fault = shim.cause(folder, Call.READ, error=errno.ESTALE, skip=1, most=1)
    other = shim.cause(folder.parent / "fold", Call.READ, error=errno.EIO)
    third = shim.cause(folder, Call.READ, error=errno.EIO, ending="-wal")
    assert [doer.do("read") for _ in range(3)] == ["ok b'abcdef'", f"OSError {errno.ESTALE}", "ok b'abcdef'"]
    assert (fault.hits, other.hits, third.hits) == (1, 0, 0)


def test_slow_calls_take_their_time(shim: Shim, doer: Doer, folder: Path) -> None:
    """Each call is held for so long."""
    shim.cause(folder, Call.STAT, delay_s=0.2)
    begun = time.monotonic()
    assert doer.do("stat").startswith("ok")
    assert time.monotonic() - begun >= 0.2


def test_the_clock_jumps_and_monotonic_time_does_not(shim: Shim, doer: Doer) -> None:
    """The time of day is set forward and back; what only counts up goes on as before."""
    said: Callable[[str], float] = lambda deed: float(doer.do(deed).split()[1])  # noqa: E731
    before = said("monotonic")
    shim.jump(86_400)
    assert 86_300 < said("time") - time.time() < 86_500
    shim.jump(-86_400)
    assert -86_500 < said("time") - time.time() < -86_300
    assert 0 <= said("monotonic") - before < 60
    assert shim.clock_hits >= 2


def test_places_of_ended_faults_are_used_again(shim: Shim, doer: Doer, folder: Path) -> None:
    """Any number of faults may come one after the other, and each keeps its own count."""
    faults = []
    for _ in range(40):
        faults.append(shim.cause(folder, Call.STAT, error=errno.EACCES))
        assert doer.do("stat") == f"OSError {errno.EACCES}"
        faults[-1].end()
    assert [fault.hits for fault in faults] == [1] * 40
