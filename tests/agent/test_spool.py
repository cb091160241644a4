"""The spool's files: whole or not there, in order, kept with a reason when they cannot be used."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agent.spool import Spool, SpooledResult, write_whole
from tests.agent.dicom_out.results import EVENT, patient_result, slide_result


@pytest.mark.parametrize("result", [slide_result(), patient_result()], ids=["slide", "patient"])
def test_a_result_comes_back_as_it_was(result: SpooledResult) -> None:
    """JSON and back: every number to the last bit."""
    assert SpooledResult.model_validate_json(result.model_dump_json()) == result


def test_results_wait_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """Oldest first; hidden files, reasons and folders are no results."""
    spool = Spool(tmp_path / "results")
    assert spool.waiting() == []
    for age, name in enumerate(["c", "a", "b"]):
        spool.put(name, "{}")
        os.utime(spool.folder / f"{name}.json", (age, age))
    (spool.folder / ".d.json.part").write_text("half")
    spool.set_aside(spool.folder / "a.json", "why")
    assert [path.stem for path in spool.waiting()] == ["c", "b"]
    assert (spool.folder / "refused" / "a.json").read_text() == "{}"
    assert (spool.folder / "refused" / "a.reason.txt").read_text() == "why\n"
    spool.remove(spool.folder / "b.json")
    spool.remove(spool.folder / "b.json")
    assert [path.stem for path in spool.waiting()] == ["c"]


def test_the_same_result_again_replaces_itself(tmp_path: Path) -> None:
    """One file an event, however often it is put."""
    spool = Spool(tmp_path)
    spool.put(EVENT, "1")
    spool.put(EVENT, "2")
    assert [path.read_text() for path in spool.waiting()] == ["2"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """No space: the old content stays, no half of the new one does."""
    path = tmp_path / "file"
    write_whole(path, b"old")
    code = "import sys; from pathlib import Path; from agent.spool import write_whole\n"
    code += "try:\n    write_whole(Path(sys.argv[1]), bytes(10_000))\nexcept OSError as error: print(error.errno)"
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.stdout.split() == [str(errno.EFBIG)]
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("file", b"old")]
