"""The sandbox of a unit without systemd: bubblewrap and seccomp, derived from the unit's own lines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.brokers import need
from tests.service.machine import Machine, lent
from tests.service.seccomp import filters_of
from tests.service.units import Unit

USER = 990
BUILT_HERE = {
    "AmbientCapabilities", "BindPaths", "BindReadOnlyPaths", "CapabilityBoundingSet", "Environment", "ExecStart",
    "LoadCredential", "MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices", "PrivateNetwork", "PrivateTmp",
    "PrivateUsers", "RestrictAddressFamilies", "RestrictNamespaces", "StateDirectory", "SystemCallErrorNumber",
    "SystemCallFilter", "TemporaryFileSystem", "User", "Group", "WatchdogSec", "WorkingDirectory", "Type",
}  # fmt: skip
"""Lines of the units that the cage follows."""
LEFT_OUT = {
    "the service manager's own work": {
        "ExecReload", "KillMode", "NotifyAccess", "OOMPolicy", "Restart", "RestartPreventExitStatus", "RestartSec",
        "StandardError", "StandardOutput", "StateDirectoryMode", "SyslogIdentifier", "TimeoutStartSec",
        "TimeoutStopSec", "UMask",
    },
    "shares and bounds, which forbid nothing that the services do": {
        "CPUWeight", "IOWeight", "LimitCORE", "LimitNOFILE", "MemoryMax", "Nice", "OOMScoreAdjust", "TasksMax",
    },
    "given by the empty root, by having no capability, or by the filter of system calls": {
        "DevicePolicy", "KeyringMode", "MountAPIVFS", "ProcSubset", "ProtectClock", "ProtectControlGroups",
        "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
        "ProtectProc", "ProtectSystem", "RemoveIPC", "RestrictRealtime",
    },
    "small filters of their own in systemd, which forbid nothing that the services do": {
        "LockPersonality", "RestrictSUIDSGID", "SystemCallArchitectures",
    },
}  # fmt: skip
"""Lines of the units that the cage does not follow, by the reason."""


class Cage:
    """Starts programs of a machine under the restrictions of one of its units."""

    def __init__(self, machine: Machine, unit: Unit) -> None:
        """The unit decides what is seen and what is forbidden."""
        self.machine, self.unit = machine, unit
        known = BUILT_HERE.union(*LEFT_OUT.values())
        assert unit.keys() <= known, f"the cage does not know {sorted(unit.keys() - known)}"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setblocking(False)
        self._place = tempfile.TemporaryDirectory(prefix="notify")  # pytest's paths are too long for a socket
        self._notify.bind(f"{self._place.name}/socket")
        self.notified: list[str] = []
        self._inside = 0

    def close(self) -> None:
        """Stop listening for notifications."""
        self._notify.close()
        self._place.cleanup()

    def said(self, word: str) -> bool:
        """Whether the service manager has been told this."""
        while True:
            try:
                self.notified.append(self._notify.recv(4096).decode())
            except BlockingIOError:
                return any(word in said for said in self.notified)

    @contextmanager
    def run(self, *words: str, log: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
        """The unit's program, or another one, in the cage; it is killed at the end if it has not ended by itself."""
        filters = filters_of(self.unit)
        told, tell = os.pipe()
        command = [*self._bwrap(filters, tell), *(words or self.unit.words("ExecStart"))]
        process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[*filters, tell], env={})
        for descriptor in (*filters, tell):
            os.close(descriptor)
        with os.fdopen(told) as info:
            text = info.read()
        assert text, "bwrap could not build the cage, see the log"
        self._inside = int(json.loads(text)["child-pid"])
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the program in the cage: bwrap itself passes none on."""
        os.kill(self._inside, number)

    def _bwrap(self, filters: Sequence[int], tell: int) -> list[str]:
        words = [need("bwrap", "bubblewrap"), "--die-with-parent", "--new-session", "--unshare-ipc"]
        words += ["--unshare-pid", "--as-pid-1", "--info-fd", str(tell)]
        assert self.unit.one("User") and self.unit.words("CapabilityBoundingSet") == []
        words += ["--unshare-user", "--uid", str(USER), "--gid", str(USER), "--cap-drop", "ALL"]
        if self.unit.yes("PrivateNetwork"):
            words.append("--unshare-net")
        for descriptor in filters:
            words += ["--add-seccomp-fd", str(descriptor)]
        words += [*self._files(), "--clearenv"]
        for name, value in self._environment().items():
            words += ["--setenv", name, value]
        return [*words, "--chdir", self.unit.one("WorkingDirectory"), "--"]

    def _files(self) -> list[str]:
        assert self.unit.words("TemporaryFileSystem") == ["/:ro"]
        assert self.unit.yes("PrivateDevices") and self.unit.yes("PrivateTmp")
        words = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]
        for path in lent():
            words += ["--ro-bind", path, path]
        for path in self.unit.words("BindReadOnlyPaths"):
            words += self._bound("--ro-bind", path)
        for path in self.unit.words("BindPaths"):
            words += self._bound("--bind", path)
        words += ["--dir", self._credentials]
        for source, name in self._secrets():
            words += ["--ro-bind", str(source), f"{self._credentials}/{name}"]
        return [*words, "--remount-ro", "/"]

    def _bound(self, how: str, path: str) -> list[str]:
        optional, path = path.startswith("-"), path.removeprefix("-")
        if path == "/run/systemd/notify":
            return [how, f"{self._place.name}/socket", path]
        source = self.machine.root / path.lstrip("/")
        # The machine has no programs of its own: /usr is the real one.
        if path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system"):
            source = Path(path)
        return [how + "-try" * optional, str(source), path]

    @property
    def _credentials(self) -> str:
        return f"/run/credentials/{self.unit.name}"

    def _secrets(self) -> Iterator[tuple[Path, str]]:
        """Every file of the folder that LoadCredential=NAME:FOLDER names, as NAME_FILE."""
        for word in self.unit.words("LoadCredential"):
            name, _, folder = word.partition(":")
            for file in sorted((self.machine.root / folder.lstrip("/")).glob("*")):
                yield file, f"{name}_{file.name}"

    def _environment(self) -> Mapping[str, str]:
        given = dict(word.split("=", 1) for word in self.unit.words("Environment"))
        given["CREDENTIALS_DIRECTORY"] = self._credentials
        if self.unit.one("Type") == "notify":
            given["NOTIFY_SOCKET"] = "/run/systemd/notify"
        if seconds := self.unit.one("WatchdogSec"):
            given["WATCHDOG_USEC"] = str(int(seconds) * 1_000_000)
        return {"PATH": "/usr/bin:/bin", **given}
