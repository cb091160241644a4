"""A hospital's machine as a folder: the services installed by the real script, without building an environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.service.units import PREFIX, ROOT, Unit

SETTINGS = "etc/spinextract-agent/agent.yaml"
UNITS = "usr/local/lib/systemd/system"
ETC = ("passwd", "group", "hosts", "nsswitch.conf", "ld.so.cache", "resolv.conf", "localtime")
"""What programs read in /etc, besides our settings."""


def script(name: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script of systemd/ to its end."""
    kept = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [ROOT / "systemd" / name, *words],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def install(root: Path, **variables: str) -> str:
    """Run install.sh with DESTDIR and no Python environment; returns what it said."""
    done = script("install.sh", DESTDIR=str(root), **{"PYTHON_ENV": "no", **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout


class Machine:
    """Its root folder, with the settings and units that install.sh wrote and the Python of these tests."""

    def __init__(self, root: Path, **settings: Any) -> None:
        """`settings` replace top-level sections of the installed file."""
        self.root = root
        install(root)
        self._lend_python()
        for name in ETC:
            if (real := Path("/etc", name)).exists():
                shutil.copyfile(real, root / "etc" / name)
        self.file("home/surgeon/diary.txt").write_text("private")
        self.folder = self.file("srv/imager/.keep").parent
        self.settings = root / SETTINGS
        document = yaml.safe_load(self.settings.read_text())
        assert (document["folder"], document["state_dir"]) == ("/srv/imager", "/var/lib/spinextract-agent")
        document |= {name: {**(document[name] or {}), **values} for name, values in settings.items()}
        self.settings.write_text(yaml.safe_dump(document))

    def file(self, path: str) -> Path:
        """A path of this machine whose folder exists."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def unit(self, name: str) -> Unit:
        """An installed unit; its state folder is made, as systemd would before a start."""
        unit = Unit(self.root / UNITS / f"{name}.service")
        for folder in unit.words("StateDirectory"):
            self.file(f"var/lib/{folder}/.").mkdir(parents=True, exist_ok=True)
        return unit

    def _lend_python(self) -> None:
        """PREFIX becomes an environment whose interpreter and packages are the tests' own, lent by `lent`."""
        prefix = self.file(f"{PREFIX}/pyvenv.cfg").parent
        (prefix / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
        (prefix / "bin").mkdir()
        (prefix / "bin" / "python").symlink_to(Path(sys.base_prefix, "bin", Path(sys.executable).resolve().name))
        (prefix / "lib").symlink_to(Path(sys.prefix, "lib"))


def lent() -> list[str]:
    """The folders outside the machine that its Python needs: interpreter, packages and this checkout."""
    return list(dict.fromkeys([sys.base_prefix, sys.prefix, str(ROOT)]))
