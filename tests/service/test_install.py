"""install.sh and uninstall.sh as a packager, an administrator and a machine without a network use them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from agent.settings import load_settings
from tests.brokers import need
from tests.service.machine import SETTINGS, UNITS, install, script
from tests.service.units import NAMES, PREFIX, ROOT, Unit

STATE = "var/lib/spinextract-agent/ledger.sqlite"


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_it_installs_below_destdir_and_nowhere_else(tmp_path: Path) -> None:
    """Units, users, folders, settings and phantom profile lie in their places; the settings can be loaded."""
    said = install(tmp_path)
    found = files(tmp_path)
    for name in NAMES:
        assert f"{UNITS}/{name}.service" in found
    for kind in ("sysusers.d", "tmpfiles.d"):
        assert f"usr/local/lib/{kind}/spinextract-agent.conf" in found
    for name in ("agent.schema.json", "profiles/phantom/profile.yaml", "profiles/phantom/weights.safetensors"):
        assert f"etc/spinextract-agent/{name}" in found
    assert f"{PREFIX[1:]}/share/spinextract-agent/spinextract-agent.service.d/gpu.conf" in found
    settings = load_settings(tmp_path / SETTINGS)
    assert (str(settings.folder), str(settings.state_dir)) == ("/srv/imager", "/var/lib/spinextract-agent")
    assert settings.profile == tmp_path / "etc/spinextract-agent/profiles/phantom"
    assert str(tmp_path) in said and "systemd-sysusers" in said


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    """The second run leaves the same files."""
    install(tmp_path)
    before = files(tmp_path)
    install(tmp_path)
    assert files(tmp_path) == before


def test_changed_settings_are_kept(tmp_path: Path) -> None:
    """An upgrade lays the new version's settings beside those of the administrator, once they differ, and says so."""
    install(tmp_path)
    mine = (tmp_path / SETTINGS).read_text().replace("site: site", "site: north")
    (tmp_path / SETTINGS).write_text(mine)
    said = install(tmp_path)
    assert (tmp_path / SETTINGS).read_text() == mine
    assert "kept     /etc/spinextract-agent/agent.yaml (yours)" in said
    assert not (tmp_path / f"{SETTINGS}.new").exists()

    source = tmp_path / "newer"
    for name in ("systemd", "configs", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("engines"))
    with (source / "configs" / "agent.yaml").open("a") as file:
        file.write("\n# A new section.\n")
    for _ in range(2):
        words = [source / "systemd" / "install.sh"]
        environment = {"PATH": os.environ["PATH"], "DESTDIR": str(tmp_path), "PYTHON_ENV": "no"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / SETTINGS).read_text() == mine
        assert "# A new section." in (tmp_path / f"{SETTINGS}.new").read_text()


def test_unchanged_settings_follow_the_version(tmp_path: Path) -> None:
    """Who never touched the settings gets the new ones."""
    install(tmp_path)
    last = tmp_path / PREFIX[1:] / "share/spinextract-agent/last/etc/spinextract-agent/agent.yaml"
    for file in (last, tmp_path / SETTINGS):
        file.write_text("# as an older version shipped it\n")
    install(tmp_path)
    assert "folder: /srv/imager" in (tmp_path / SETTINGS).read_text()


def test_another_prefix_reaches_the_units(tmp_path: Path) -> None:
    """PREFIX and LIBDIR move programs and units, and the units name the new place everywhere."""
    install(tmp_path, PREFIX="/opt/other", LIBDIR="/usr/lib")
    unit = Unit(tmp_path / "usr/lib/systemd/system/spinextract-agent.service")
    assert unit.words("ExecStart")[0] == "/opt/other/bin/python"
    assert "/opt/other" in unit.words("BindReadOnlyPaths") and PREFIX not in unit.words("BindReadOnlyPaths")


def test_uninstall_keeps_settings_and_state(tmp_path: Path) -> None:
    """Programs and units go; what belongs to the site stays until PURGE=1; a second run is no error."""
    install(tmp_path)
    (tmp_path / STATE).parent.mkdir(parents=True)
    (tmp_path / STATE).write_text("ledger")
    for _ in range(2):
        done = script("uninstall.sh", DESTDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "kept: " in done.stdout
        left = files(tmp_path)
        assert {STATE, SETTINGS} <= set(left)
        assert not [name for name in left if name.startswith(("opt/", "usr/"))]
    install(tmp_path)
    assert (tmp_path / STATE).read_text() == "ledger"
    assert script("uninstall.sh", DESTDIR=str(tmp_path), PURGE="1").returncode == 0
    assert files(tmp_path) == {}


def test_uninstall_removes_only_what_was_installed(tmp_path: Path) -> None:
    """A PREFIX that install.sh never made is left alone."""
    precious = tmp_path / "opt/database/file"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    assert script("uninstall.sh", DESTDIR=str(tmp_path), PREFIX="/opt/database").returncode == 0
    assert precious.exists()


@pytest.mark.parametrize(
    ("variables", "code", "reason"),
    [
        ({"PREFIX": "/data/agent"}, 2, "below /opt and /usr only"),
        ({"DESTDIR": "relative"}, 2, "absolute path"),
        ({"PREFIX": "/opt/my agent"}, 2, "no spaces"),
        ({"PYTHON": "/nowhere/python"}, 1, "does not run"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    variables: dict[str, str], code: int, reason: str, tmp_path: Path
) -> None:
    """Bad variables end with one line before anything is written."""
    done = script("install.sh", **{"DESTDIR": str(tmp_path), **variables})
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith("error: ") and reason in done.stderr
    assert files(tmp_path) == {}


def test_a_python_that_the_services_cannot_see_is_refused(tmp_path: Path) -> None:
    """An interpreter in somebody's home would not run in the sandbox: it is told before anything is built."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '/data/me/python True'\n")
    python.chmod(0o755)
    done = script("install.sh", DESTDIR=str(tmp_path / "root"), PYTHON=str(python))
    assert done.returncode == 1 and "which the services cannot see" in done.stderr
    assert not (tmp_path / "root").exists()


def test_the_scripts_explain_themselves() -> None:
    """--help exits with 0 and names the variables; an unknown word exits with 2."""
    for name, variable in (("install.sh", "DESTDIR"), ("uninstall.sh", "PURGE"), ("wheels.sh", "EXTRAS")):
        done = script(name, "--help")
        assert done.returncode == 0 and variable in done.stdout
        assert script(name, "--now").returncode == 2


BACKEND = """
import zipfile
def get_requires_for_build_wheel(config_settings=None):
    return []
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name, info = "spinextract_agent-9.9.9-py3-none-any.whl", "spinextract_agent-9.9.9.dist-info"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("agent/__init__.py", "")
        wheel.writestr("agent/__main__.py", "def main(): print('9.9.9')\\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: spinextract-agent\\nVersion: 9.9.9\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nspinextract-agent = agent.__main__:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
"""Builds a package of our name without dependencies, so that the scripts are tested without hundreds of megabytes."""


def machine_python() -> str:
    """The machine's own interpreter, which the services can see."""
    python = need("python3", "python3") if not Path("/usr/bin/python3").exists() else "/usr/bin/python3"
    fits = "import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"
    if subprocess.run([python, "-c", fits], capture_output=True, check=False).returncode:
        message = f"{python} is not 3.11 to 3.13 with ensurepip: apt-get install python3-venv"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return python


def wheel_set(folder: Path) -> Path:
    """The tar file that wheels.sh makes of a tiny package of our name."""
    source = folder / "source"
    for name in ("systemd", "configs", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("engines"))
    for name in ("tests/supply", "agent/dashboard/page"):  # what the bill of materials needs
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "LICENSE", "tests/__init__.py"):
        shutil.copy(ROOT / name, source / name)
    (source / "backend.py").write_text(BACKEND)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "spinextract-agent"\nversion = "9.9.9"\n'
    )
    words = [source / "systemd" / "wheels.sh"]
    environment = {"PATH": os.environ["PATH"], "PYTHON": machine_python(), "OUT": str(folder / "out")}
    environment["TOOLS"] = sys.executable
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "out").glob("spinextract-agent-9.9.9-python3.*-linux*.tar")
    return made


@pytest.mark.timeout(240)
def test_a_wheel_set_installs_without_a_network(tmp_path: Path) -> None:
    """install.sh needs nothing but what wheels.sh packed; a damaged or incomplete set changes nothing."""
    with tarfile.open(fileobj=io.BytesIO(wheel_set(tmp_path).read_bytes())) as tar:
        tar.extractall(tmp_path / "stick", filter="data")
    (unpacked,) = (tmp_path / "stick").iterdir()
    (own,) = (unpacked / "wheels").glob("spinextract_agent-*.whl")
    listed = json.loads((unpacked / "sbom.cdx.json").read_text())["metadata"]["component"]
    assert (listed["version"], listed["hashes"][0]["content"]) == ("9.9.9", sha256(own.read_bytes()).hexdigest())
    assert "sbom.cdx.json" in (unpacked / "SHA256SUMS").read_text()
    root = tmp_path / "root"
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": "/dev/null"}
    environment = {"PATH": os.environ["PATH"], "DESTDIR": str(root), "PYTHON": machine_python(), **nowhere}

    def run() -> subprocess.CompletedProcess[str]:
        words = [unpacked / "systemd" / "install.sh"]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    prefix = root / PREFIX[1:]
    assert (prefix / "bin" / "spinextract-agent").read_text().splitlines()[0] == f"#!{PREFIX}/bin/python"
    assert list((prefix / "lib").glob("python3.*/site-packages/agent/__main__.py"))
    assert str(root) not in (prefix / "pyvenv.cfg").read_text()
    assert load_settings(root / SETTINGS)

    before = files(root)
    (wheel,) = (unpacked / "wheels").glob("*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"x")
    done = run()
    assert done.returncode == 1 and "damaged" in done.stderr
    assert files(root) == before

    wheel.unlink()
    sums = unpacked / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if wheel.name not in line))
    done = run()
    assert done.returncode == 1 and "pip failed" in done.stderr and "nothing was changed" in done.stderr
    assert files(root) == before
