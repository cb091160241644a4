"""Ledgers with something in them, ways to damage their files, and deaths at any line: what ledger tests share."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from agent.ledger import CountedPatch, FileStanding, FinalRow, Ledger, Record
from agent.ledger_file import PARTS
from agent.messages import Alert
from agent.results import PatientFinal, SlideFinal
from agent.topics import Message, Topics, final_event_id
from models.contract import PatchKey
from tests.agent.dicom_out.results import final_fields

PROFILE = "ab" * 32
TOPICS = Topics()
NOW = 1_780_000_000.0
TALLY = '{"sums": [5, 6, 7, 8], "used": 30, "rejected": {"dim": 2}, "judged": 30, "marks": {}}'


def final(patient: str, slide: str, revision: int = 1, at: float = NOW) -> tuple[Message, FinalRow]:
    """What the reporter makes of a slide, or of a patient when `slide` is empty."""
    scope: Any = "slide" if slide else "patient"
    event_id = final_event_id(PROFILE, scope, patient, slide, revision)
    time = datetime.fromtimestamp(at, UTC)
    fields = final_fields(event_id=event_id, patient=patient, revision=revision, time=time)
    fields["supersedes"] = None if revision == 1 else "e" * 32
    payload = SlideFinal(**fields, slide=slide) if slide else PatientFinal(**fields, slides=1)
    tally = TALLY if slide else ""
    row = FinalRow(scope, patient, slide, revision, event_id, f"{revision:064x}", "complete", 2, 2, "{}", tally, at)
    return TOPICS.message(payload), row


def alert(event_id: str, reason: str = "malformed") -> Message:
    """An alert about a file."""
    stamp = {"event_id": event_id, "session_id": "session", "time": datetime.fromtimestamp(NOW, UTC)}
    return TOPICS.message(Alert(**stamp, severity="error", reason=reason, detail="cut in the middle", file="f" * 16))


def patches(patient: str, slide: str, count: int, strip: int = 0) -> tuple[CountedPatch, ...]:
    """Patches of four classes, with marks and digests."""
    return tuple(
        CountedPatch(PatchKey(patient, slide, strip, 300 * x, 0), (x, 2 * x, 3 * x, 1 << 40), None, (), 7 * x)
        for x in range(count)
    )


def standing(file_id: str, outcome: Any = "whole", at: float = NOW, **fields: Any) -> FileStanding:
    """What was made of a file."""
    return FileStanding(file_id, 1000, 5, outcome, at=at, **fields)


def fill(ledger: Ledger, patients: int = 4, slides: int = 3, each: int = 120, at: float = NOW) -> None:
    """Patients with slides that are complete, each said; some finals sent, some alerts said, some files refused."""
    for number in range(patients):
        patient = f"patient{number:09}"
        for place in range(slides):
            slide = f"slide{number:05}{place:06}"
            said, row = final(patient, slide, 1 + place, at)
            file = standing(f"file{number:06}{place:06}", patient=patient, slide=slide, sha256="cd" * 32, at=at)
            ledger.append(Record(PROFILE, patches(patient, slide, each), (said,), (row,), (file,)))
        said, row = final(patient, "", 2, at)
        refused = standing(f"refused{number:09}", "refused", reason="malformed", detail="cut", at=at)
        ledger.append(Record(PROFILE, (), (said, alert(f"{number:032x}")), (row,), (refused,)))


def snapshot(ledger: Ledger) -> dict[str, Any]:
    """What must come through a rescue: finals by their places, unsent event_ids, alerts that are not said again."""
    rows = {(row.scope, row.patient, row.slide): (row.revision, row.event_id) for row in ledger.finals(PROFILE)}
    return {
        "finals": rows,
        "unsent": {row.message.event_id: row.message.payload for row in ledger.unsent(0, 10_000)},
        "files": {each.file_id for each in ledger.files.all()},
    }


def crash(ledger: Ledger, to: Path) -> None:
    """Leave the files of an open ledger as kill -9 would, under another name."""
    for part in PARTS:
        source = ledger.path.with_name(f"{ledger.path.name}{part}")
        if source.exists():
            to.with_name(f"{to.name}{part}").write_bytes(source.read_bytes())


def overwrite(path: Path, start: int, size: int, seed: int = 0) -> None:
    """Other bytes in a file's place."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(random.Random(seed).randbytes(size))


def dies_at(line: int, modules: str, run: Callable[[], object]) -> bool:
    """Run in a child that gets kill -9 after so many lines of modules whose path has this; False: it ended before."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _until(line, modules, run)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return False


def _until(line: int, modules: str, run: Callable[[], object]) -> None:
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if modules not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    run()
    sys.settrace(None)
    os._exit(0)
