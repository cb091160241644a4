"""Promises of a trace: every file, start, setting and revision that a result rests on, and none that it does not."""

from __future__ import annotations

from typing import Any

import pytest

from agent.audit_chain import START, Entry, Link, follow, seal
from agent.trace import Trace, Wanted, traces


class Log:
    """Entries, one after another."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._end: Link = START

    def add(self, kind: str, **facts: Any) -> Entry:
        """Add one."""
        line, end = seal(self._end, 1e9, kind, facts)
        entry = follow(self._end, line.encode())
        self._end = end
        self.entries.append(entry)
        return entry

    def start(self, session: str = "1") -> Entry:
        """The agent starts."""
        return self.add("start", session_id=session, settings_sha256=f"settings {session}")

    def file(self, name: str, slide: str = "s", sha256: str = "x", patient: str = "p") -> Entry:
        """A file was read to its end."""
        return self.add("file", file=name, patient=patient, slide=slide, outcome="whole", sha256=sha256)

    def final(self, event: str, slide: str | None = "s", **facts: Any) -> Entry:
        """A result is said; without a slide, the patient's."""
        known = {"session_id": "1", "patient": "p", "state": "complete", "supersedes": None, **facts}
        of = {"scope": "patient"} if slide is None else {"scope": "slide", "slide": slide}
        return self.add("final", event_id=event, **of, **known)

    def trace(self, event: str) -> Trace:
        """The trace of one result."""
        (found,) = traces(self.entries, Wanted(event=event))
        return found


@pytest.fixture
def log() -> Log:
    """An empty log."""
    return Log()


def test_a_result_rests_on_its_slides_files(log: Log) -> None:
    """Those of the same slide, whether entered before it or, having settled, a moment later."""
    start = log.start()
    files = [log.file("a"), log.file("b")]
    log.file("c", slide="other")
    log.file("d", patient="another")
    final = log.final("e")
    files.append(log.file("late"))
    trace = log.trace("e")
    assert (trace.final, trace.start, trace.settings) == (final, start, start)
    assert trace.files == tuple(files)
    assert (trace.reopened, trace.superseded, trace.superseded_by) == ((), None, None)


def test_a_patients_result_rests_on_all_slides(log: Log) -> None:
    """Files of every slide, and no file of another patient."""
    log.start()
    files = (log.file("a"), log.file("b", slide="other"))
    log.file("c", patient="another")
    log.final("e", slide=None)
    assert log.trace("e").files == files


def test_the_latest_standing_of_a_file_counts(log: Log) -> None:
    """A file that was refused and then replaced is shown as it was read."""
    log.start()
    log.add("file", file="a", patient="p", slide="s", outcome="refused", reason="malformed")
    whole = log.file("a")
    log.final("e")
    assert log.trace("e").files == (whole,)


def test_a_correction_has_files_of_its_own(log: Log) -> None:
    """After a slide was read again its first result keeps the first bytes, the second has the new ones."""
    log.start()
    log.file("a", sha256="old")
    other = log.file("b")
    first = log.final("e1")
    reopened = log.add("reopened", patient="p", slide="s")
    new = log.file("a", sha256="new")
    second = log.final("e2", supersedes="e1")
    before, after = log.trace("e1"), log.trace("e2")
    assert [file.facts["sha256"] for file in before.files] == ["old", "x"]
    assert after.files == (new, other)
    assert (before.superseded_by, after.superseded) == (second, first)
    assert (before.reopened, after.reopened) == ((), (reopened,))


def test_a_correction_that_is_sealed_late_has_the_new_files(log: Log) -> None:
    """A second result may come before its changed file has settled: what is entered then is the second's."""
    log.start()
    log.file("a", sha256="old")
    log.final("e1")
    log.add("reopened", patient="p", slide="s")
    log.final("e2", supersedes="e1")
    log.file("a", sha256="new")
    hashes = {event: [file.facts["sha256"] for file in log.trace(event).files] for event in ("e1", "e2")}
    assert hashes == {"e1": ["old"], "e2": ["new"]}
    assert not log.trace("e1").doubtful and not log.trace("e2").doubtful


def test_a_file_that_changed_about_then_is_doubtful(log: Log) -> None:
    """Entered again between two results of a slide that was not closed in between: both hashes are shown."""
    log.start()
    log.file("a", sha256="old")
    log.file("b")
    log.final("e1")
    log.file("a", sha256="new")
    log.final("e2", supersedes="e1")
    before, after = log.trace("e1"), log.trace("e2")
    assert [file.facts["sha256"] for file in before.files] == ["old", "new", "x"]
    assert (before.doubtful, after.doubtful) == (frozenset({"a"}), frozenset())
    assert [file.facts["sha256"] for file in after.files] == ["new", "x"]


def test_a_slide_that_stopped_rests_on_what_was_there(log: Log) -> None:
    """Files that were finished after a stalled result belong to the next one only."""
    log.start()
    early = log.file("a")
    log.final("e1", state="stalled")
    late = log.file("b")
    log.final("e2", supersedes="e1")
    assert log.trace("e1").files == (early,)
    assert log.trace("e2").files == (early, late)


def test_the_start_is_that_of_the_session(log: Log) -> None:
    """Of several starts the one that said it; settings that were taken over later are those in force."""
    log.start("0")
    log.add("settings", settings_sha256="of another start")
    start = log.start("1")
    settings = log.add("settings", settings_sha256="changed")
    log.final("e1")
    log.start("2")
    log.final("e2", session_id="2")
    assert (log.trace("e1").start, log.trace("e1").settings) == (start, settings)
    assert log.trace("e2").settings is log.trace("e2").start


def test_the_engine_is_the_one_in_service_then(log: Log) -> None:
    """One that took over counts for what is said after it, and for this start only."""
    first = log.start("1")
    log.final("e1")
    second = log.add("engine", session_id="1")
    log.final("e2")
    third = log.start("2")
    log.final("e3", session_id="2")
    assert [log.trace(event).engine for event in ("e1", "e2", "e3")] == [first, second, third]
    assert [log.trace(event).settings for event in ("e1", "e2", "e3")] == [first, first, third]


def test_a_result_from_before_the_log_has_no_start(log: Log) -> None:
    """What is not on record is not invented."""
    log.final("e")
    trace = log.trace("e")
    assert (trace.start, trace.settings, trace.files) == (None, None, ())


@pytest.mark.parametrize(
    ("wanted", "events"),
    [
        (Wanted(event="e2"), ["e2"]),
        (Wanted(slide="s"), ["e1", "e2"]),
        (Wanted(slide="other"), ["e3"]),
        (Wanted(patient="p"), ["e1", "e2", "e3", "e4"]),
        (Wanted(patient="another"), ["e5"]),
        (Wanted(event="none"), []),
    ],
)
def test_results_are_found_by_event_slide_or_patient(log: Log, wanted: Wanted, events: list[str]) -> None:
    """All revisions, in the order in which they were said."""
    log.final("e1")
    log.final("e2", supersedes="e1")
    log.final("e3", slide="other")
    log.final("e4", slide=None)
    log.final("e5", slide=None, patient="another")
    assert [trace.final.facts["event_id"] for trace in traces(log.entries, wanted)] == events
