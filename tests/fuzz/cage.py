"""What a case may cost and touch: memory, time, files. Laid around a worker process, which never gets out again.

Memory: address space by rlimit, and the growth of the resident peak since the warm-up. Files: an audit hook that
writes down whatever is opened, changed or started while a case runs and is not that case's own.
"""

from __future__ import annotations

import atexit
import os
import resource
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from tests.fuzz.parsing import LIMITS

CASE_CPU_S = 1.0
"""Most CPU seconds that one case may take. Cases are small: most take less than a millisecond."""
HANG_S = 20.0
"""A worker that has been at one case for so many CPU seconds is killed."""
PEAK_BYTES = (32 << 20) + 8 * (LIMITS.max_segment_bytes + LIMITS.max_header_bytes)
"""Most growth of the resident peak: eight decoded segments and headers, and what an allocator keeps for itself."""
ADDRESS_BYTES = 512 << 20
"""Most growth of the address space: an array for what a header merely claims is refused by the kernel."""

_HARMFUL = (
    *("os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "os.mkdir"),
    *("os.fork", "os.listdir", "os.scandir", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"),
    *("shutil.move", "socket.connect", "socket.bind", "pickle.find_class"),
)
_READS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_LIBRARIES = tuple(
    {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)

SCRATCH = "FUZZ_SCRATCH"
"""Environment variable: a folder for the folders of many processes, some of which are killed."""

escapes: list[str] = []
"""What the case that runs did and should not have done."""
_state = {"watching": False}
_reading: list[str] = []


@cache
def scratch() -> Path:
    """A folder for the cases of this process: within FUZZ_SCRATCH, which whoever sets it removes, or its own."""
    if within := os.environ.get(SCRATCH):
        return Path(os.path.realpath(mkdtemp(dir=within)))
    folder = TemporaryDirectory(prefix="fuzz-")
    atexit.register(folder.cleanup)
    return Path(os.path.realpath(folder.name))


def write(path: Path, contents: bytes) -> None:
    """A file of the case, in front of what is tried."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


@contextmanager
def only_within(folder: Path) -> Iterator[None]:
    """What is opened in this block lies in the folder, and is only read."""
    _reading.append(os.path.realpath(folder))
    try:
        yield
    finally:
        _reading.pop()


@contextmanager
def watched() -> Iterator[None]:
    """A case runs: what it opens is looked at."""
    escapes.clear()
    _state["watching"] = True
    try:
        yield
    finally:
        _state["watching"] = False


def lock() -> None:
    """Put the rlimits and the hook in place. Call it after the warm-up: both stay until the process ends."""
    scratch()
    ceiling = _address_bytes() + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
    forget_peak()  # whatever the warm-up met
    sys.addaudithook(_look)


def peak_bytes() -> int:
    """The largest resident size of this process since `forget_peak`. (What getrusage tells includes the process that
    started this one.)
    """
    return int(os.pread(_status(), 4096, 0).partition(b"VmHWM:")[2].split()[0]) * 1024


@cache
def _status() -> int:
    return os.open("/proc/self/status", os.O_RDONLY)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def forget_peak() -> None:
    """From here on the peak counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds(process: int | None) -> float:
    """What a process has used so far; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _look(event: str, arguments: tuple[object, ...]) -> None:
    if not _state["watching"]:
        return
    if event == "open":
        path, _, flags = arguments
        if not _may_open(path, flags if isinstance(flags, int) else 0):
            escapes.append(f"opened {path!r}")
    elif event in _HARMFUL and not (event == "os.mkdir" and not _reading):
        escapes.append(f"{event} {arguments!r}")


def _may_open(path: object, flags: int) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return True  # a descriptor
    text = os.path.realpath(os.fsdecode(path))
    reads = not flags & ~_READS
    if reads and (text.startswith(_LIBRARIES) or text == "/proc/cpuinfo"):
        return True  # a module that is imported late; the processor that an engine was built for
    if _reading:
        return reads and (text == _reading[-1] or text.startswith(f"{_reading[-1]}/"))
    return text.startswith(f"{scratch()}/")
