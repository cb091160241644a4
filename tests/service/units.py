"""Reads systemd units as systemd does, as far as ours need it: lists that add up, and single values that replace."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "systemd"
NAMES = ("spinextract-agent", "spinextract-dashboard", "spinextract-dicom-out")
PREFIX = "/opt/spinextract-agent"


class Unit:
    """A unit file and its drop-ins."""

    def __init__(self, *files: Path) -> None:
        """The unit itself, then its drop-ins in their order."""
        self.name = files[0].name
        self._values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for file in files:
            self._read(file)

    def _read(self, file: Path) -> None:
        section = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                assert value or key, f"{file}: {line}"
                self._values[section][key].append(value)

    def keys(self, section: str = "Service") -> set[str]:
        """Which keys are given."""
        return set(self._values[section])

    def one(self, key: str, section: str = "Service") -> str:
        """The value of a key that has one: the last one given, or nothing."""
        return (self._values[section].get(key) or [""])[-1]

    def words(self, key: str, section: str = "Service") -> list[str]:
        """The words of a key whose lines add up; an empty line forgets those before it."""
        found: list[str] = []
        for value in self._values[section].get(key, []):
            found = [*found, *value.split()] if value else []
        return found

    def lines(self, key: str, section: str = "Service") -> list[str]:
        """Each line of a key, e.g. of SystemCallFilter, where the sign in front counts for the whole line."""
        return list(self._values[section].get(key, []))

    def yes(self, key: str) -> bool:
        """Whether a switch is on."""
        return self.one(key) in ("yes", "true", "1", "on")


def unit_of(name: str, *drop_ins: str) -> Unit:
    """One of our units, with drop-ins of ours by their name."""
    folder = SYSTEMD / f"{name}.service.d"
    return Unit(SYSTEMD / f"{name}.service", *(folder / f"{drop_in}.conf" for drop_in in drop_ins))
