"""A preloaded library makes the agent's own system calls fail, crawl or hang, for real and from outside.

    shim = Shim(tmp_path, library)          # `library`: a fixture of tests/faults/conftest.py, or `build(folder)`
    agent.start(environment=shim.environment)
    fault = shim.cause(agent.folder, Call.LOOKING, hang=True)
    wait_until(lambda: fault.waiting, "a thread of the agent hangs")
    ...                                     # what the agent must do meanwhile
    fault.end()                             # the folder answers again; calls that hung go on
    assert fault.hits

One fault of: `error=errno.EIO` (the call fails), `short=True` (half is written), `delay_s=0.5` (it crawls),
`hang=True` (it returns when the fault ends; no signal but SIGKILL ends it earlier). `skip` lets so many calls pass
first, `most` ends after so many hits, `ending` takes only paths with this ending (`-wal`). `shim.jump(86_400)` sets
the agent's clock: the time of day jumps, monotonic time does not. Faults may come and go while the agent runs.

What is not caught: memory-mapped access, and what libc does inside itself (`fopen`, a directory that was listed
before into its buffer). Paths are compared as the agent opens them, so give a folder without symbolic links in it.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from enum import IntFlag
from pathlib import Path

from tests.brokers import need

SOURCE = Path(__file__).with_name("shim.c")
RULES = 16


class Call(IntFlag):
    """Kinds of system calls."""

    OPEN = 1
    """open of a file that is there."""
    CREATE = 2
    """open that may make a file; mkdir."""
    READ = 4
    WRITE = 8
    SYNC = 16
    TRUNCATE = 32
    RENAME = 64
    """rename and unlink."""
    STAT = 128
    """stat in all its forms, access, statvfs."""
    LIST = 256
    SEND = 512
    """send to a port: see Shim.hold_back."""

    STORING = CREATE | WRITE | SYNC | TRUNCATE | RENAME
    """What needs a disk with room."""
    LOOKING = OPEN | READ | STAT | LIST
    """What the agent does to the imager's folder."""


class _Rule(ctypes.Structure):
    _fields_ = [
        ("active", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("delay_us", ctypes.c_uint64),
        ("skip", ctypes.c_uint64),
        ("most", ctypes.c_uint64),
        ("seen", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("waiting", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("folder", ctypes.c_char * 1024),
        ("ending", ctypes.c_char * 64),
    ]


class _Control(ctypes.Structure):
    _fields_ = [("clock_offset_ns", ctypes.c_int64), ("clock_hits", ctypes.c_uint64), ("rules", _Rule * RULES)]


class Fault:
    """A fault that is on until `end`."""

    def __init__(self, rule: _Rule) -> None:
        self._rule: _Rule | None = rule
        self._hits = 0

    @property
    def hits(self) -> int:
        """How many calls it has hit."""
        return self._hits if self._rule is None else int(self._rule.hits)

    @property
    def waiting(self) -> int:
        """How many threads it holds just now; those that were killed in it stay counted."""
        return 0 if self._rule is None else int(self._rule.waiting)

    def end(self) -> None:
        """Turn it off; calls that hang go on. Its place may be used again."""
        if self._rule is not None:
            self._hits = int(self._rule.hits)
            self._rule.active = 0
            self._rule = None


class Shim:
    """The faults of one agent, over all its starts."""

    def __init__(self, folder: Path, library: Path) -> None:
        """`folder` takes the file that is shared with the agent; see `build` for the library."""
        path = folder / "faults.control"
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self._control = _Control.from_buffer(self._shared)
        self._caused = 0
        self.environment = {"LD_PRELOAD": str(library), "FAULT_CONTROL": str(path)}
        """What the agent must be started with."""

    def hold_back(self, port: int, *, skip: int = 0, most: int = 0) -> Fault:
        """From now on what the agent sends to this TCP port of IPv4 hangs; see the module's docstring."""
        return self._cause("", Call.SEND, hang=True, skip=skip, most=most, ending=str(port))

    def cause(
        self,
        folder: Path,
        calls: Call,
        *,
        error: int = 0,
        short: bool = False,
        delay_s: float = 0.0,
        hang: bool = False,
        skip: int = 0,
        most: int = 0,
        ending: str = "",
    ) -> Fault:
        """From now on these calls on the folder and all below it go wrong; see the module's docstring."""
        return self._cause(
            str(folder.resolve()),
            calls,
            error=error,
            short=short,
            delay_s=delay_s,
            hang=hang,
            skip=skip,
            most=most,
            ending=ending,
        )

    def _cause(
        self,
        folder: str,
        calls: Call,
        *,
        error: int = 0,
        short: bool = False,
        delay_s: float = 0.0,
        hang: bool = False,
        skip: int = 0,
        most: int = 0,
        ending: str = "",
    ) -> Fault:
        chosen = [bool(error), short, delay_s > 0, hang]
        assert sum(chosen) == 1, "one fault at a time: error, short, delay_s or hang"
        self._caused += 1
        places = (self._control.rules[(self._caused + n) % RULES] for n in range(RULES))  # the longest unused first
        rule = next((place for place in places if not place.active), None)
        assert rule is not None, f"a shim has room for {RULES} faults at a time"
        rule.seen = rule.hits = rule.waiting = 0
        rule.calls, rule.action, rule.error = int(calls), 1 + chosen.index(True), error
        rule.delay_us, rule.skip, rule.most = round(1e6 * delay_s), skip, most
        rule.folder, rule.ending = folder.encode(), ending.encode()
        rule.active = self._caused  # last: the agent may look at any moment
        return Fault(rule)

    def jump(self, seconds: float) -> None:
        """Set the agent's time of day to so many seconds from the true one."""
        self._control.clock_offset_ns = round(1e9 * seconds)

    @property
    def clock_hits(self) -> int:
        """How often the agent was told a wrong time."""
        return int(self._control.clock_hits)


def build(folder: Path) -> Path:
    """Compile the library into this folder; without gcc the test fails in CI and skips elsewhere."""
    library = folder / "shim.so"
    words = [
        need("gcc", "gcc libc6-dev"),
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        str(library),
        str(SOURCE),
    ]
    done = subprocess.run([*words, "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
