"""Promises of doctor about the audit log: whole, unfinished, broken or not to be written, and nothing is changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.audit_log import log_files
from agent.doctor.audit import LARGEST_BYTES, look_at_audit
from agent.ledger import Ledger
from tests.agent.doctor.site import Site, only
from tests.agent.test_ledger import tiny_disk


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine whose agent has entered three things."""
    site = Site(tmp_path)
    site.state.mkdir(mode=0o700)
    ledger = Ledger.open(site.state / "ledger.sqlite")
    for number in range(3):
        ledger.audit.add("test", {"number": number})
    ledger.audit.export()
    ledger.close()
    return site


def test_before_the_first_start_there_is_none(tmp_path: Path) -> None:
    """It is begun by the agent, not by doctor."""
    site = Site(tmp_path)
    site.state.mkdir()
    assert "will be begun" in only(site.look(look_at_audit), "audit").found
    assert list(site.state.iterdir()) == []


def test_a_whole_log_is_told_with_its_length(site: Site) -> None:
    """One finding, and no byte is changed."""
    (path,) = log_files(site.state)
    before = path.read_bytes(), path.stat().st_mtime_ns
    finding = only(site.look(look_at_audit), "audit")
    assert finding.verdict == "ok" and finding.found.startswith("whole, entries 1 to 3 in 1 file")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_broken_log_fails_with_its_place(site: Site) -> None:
    """File and line of the first fault, and how far the log still proves anything."""
    (path,) = log_files(site.state)
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":7'))
    finding = only(site.look(look_at_audit), "audit")
    assert finding.verdict == "fail"
    assert f"{path}, line 2" in finding.found and "after entry 1" in finding.why


def test_an_unfinished_line_is_a_warning(site: Site) -> None:
    """A kill leaves it, and the next start finishes it."""
    (path,) = log_files(site.state)
    path.write_bytes(path.read_bytes()[:-30])
    finding = only(site.look(look_at_audit), "audit")
    assert (finding.verdict, finding.mend) == ("warn", "start the agent: it finishes the line")


def test_a_link_in_its_place_fails(site: Site) -> None:
    """The agent does not write through it."""
    (path,) = log_files(site.state)
    path.rename(site.home / "elsewhere")
    path.symlink_to(site.home / "elsewhere")
    whole, linked = site.look(look_at_audit)["audit"]
    assert (whole.verdict, linked.verdict) == ("ok", "fail")
    assert "no ordinary file" in linked.found


def test_a_log_that_cannot_be_written_fails(tmp_path: Path) -> None:
    """Entries would wait in the ledger: here on a file system that has become read-only."""
    with tiny_disk(tmp_path / "state", "2m") as state:
        ledger = Ledger.open(state / "ledger.sqlite")
        ledger.audit.add("test", {})
        ledger.audit.export()
        ledger.close()
        subprocess.run(["mount", "-o", "remount,ro", state], check=True)
        whole, closed = Site(tmp_path).look(look_at_audit)["audit"]
    assert (whole.verdict, closed.verdict) == ("ok", "fail")
    assert "cannot be written" in closed.found


def test_a_very_large_log_is_left_to_verify(site: Site) -> None:
    """Doctor answers soon, whatever the log's size."""
    (path,) = log_files(site.state)
    os.truncate(path, LARGEST_BYTES + 1)
    finding = only(site.look(look_at_audit), "audit")
    assert finding.verdict == "ok" and "too large to be read here" in finding.found
