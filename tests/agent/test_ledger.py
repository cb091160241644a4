"""The ledger against a slow model, a kill, a full disk, a second process and damaged files."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.errors import LedgerError
from agent.ledger import LATE_S, RETAINED_KEPT, CountedPatch, FinalRow, Ledger, Record
from agent.ledger_marker import marker_of
from agent.ledger_records import RETRACTED, PartRead
from agent.topics import Message
from models.contract import Part, PatchKey, SlideKey
from models.domain import MARKS

A, B = "a" * 64, "b" * 64


def message(topic: str = "t", event_id: str = "e", **changes: Any) -> Message:
    """A final unless the test says otherwise."""
    fields: dict[str, Any] = {
        "topic": topic,
        "payload": json.dumps({"event_id": event_id}).encode(),
        "event_id": event_id,
        "kind": "slide.final",
        "qos": 1,
        "retain": True,
        "coalesce": False,
        "durable": True,
    }
    return Message(**{**fields, **changes})


def patch(number: int, patient: str = "p", slide: str = "s") -> CountedPatch:
    """The patch at x = `number`."""
    return CountedPatch(PatchKey(patient, slide, 0, number, 0), (number, -number), None)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


_names = st.sampled_from(["p", "q", "r"])
_pixels = st.sampled_from([None, 0, 1, -(2**63), 2**63 - 1])
_patches = st.builds(
    CountedPatch,
    st.builds(PatchKey, _names, _names, st.integers(0, 2), st.integers(0, 3), st.just(0)),
    st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3),
    st.none(),
    st.sampled_from([None, (), MARKS[:1], MARKS[1:], MARKS]),
    _pixels,
) | st.builds(
    CountedPatch,
    st.builds(PatchKey, _names, _names, st.integers(0, 2), st.integers(0, 3), st.just(0)),
    st.none(),
    st.sampled_from(["empty", "blood", "", RETRACTED]),
    st.none(),
    _pixels,
)
_messages = st.builds(
    message,
    topic=st.sampled_from(["t/1", "t/2", "t/3"]),
    event_id=st.uuids().map(str),
    retain=st.booleans(),
    coalesce=st.booleans(),
    durable=st.sampled_from([True, True, True, False]),
)
_finals = st.builds(
    FinalRow,
    st.sampled_from(["slide", "patient"]),
    _names,
    _names,
    st.integers(1, 9),
    st.text(max_size=3),
    st.just("f"),
)
_reads = st.builds(
    lambda slide, strip, xs: PartRead(
        Part(slide, "strip", strip), frozenset(PatchKey(slide.patient, slide.slide, strip, x, 0) for x in xs)
    ),
    st.builds(SlideKey, _names, _names),
    st.integers(0, 2),
    st.sets(st.integers(0, 3)),
)
_records = st.builds(
    Record,
    st.sampled_from([A, B]),
    st.lists(_patches, max_size=4).map(tuple),
    st.lists(_messages, max_size=4).map(tuple),
    st.lists(_finals, max_size=2).map(tuple),
    settled=st.lists(_reads, max_size=2).map(tuple),
)


class LedgerAgainstModel(RuleBasedStateMachine):
    """Any sequence of calls, with restarts in between, leaves what plain dicts and lists say."""

    def __init__(self) -> None:
        """Start both empty."""
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name, "ledger.db")
        self.ledger = Ledger.open(self.path)
        self.patches: dict[str, dict[PatchKey, CountedPatch]] = {A: {}, B: {}}
        self.finals: dict[str, dict[tuple[str, str, str], FinalRow]] = {A: {}, B: {}}
        self.outbox: list[Message] = []
        self.retained: dict[str, Message] = {}
        self.pruned: set[tuple[str, SlideKey]] = set()
        self.boots = 0

    @rule(record=_records)
    def append(self, record: Record) -> None:
        """One record."""
        self.ledger.append(record)
        for each in record.patches:
            self._model_patch(record.profile_sha256, each)
        for read in record.settled:
            counted = self.patches[record.profile_sha256]
            of = {key for key in counted if (key.of_slide, key.strip) == (read.part.slide, read.part.strip)}
            for key in of - read.keys:
                del counted[key]
        for final in record.finals:
            self.finals[record.profile_sha256][(final.scope, final.patient, final.slide)] = final
        for said in record.messages:
            self._model_message(said)

    def _model_patch(self, profile: str, new: CountedPatch) -> None:
        counted = self.patches[profile]
        if new.rejected == RETRACTED:
            return
        old = counted.get(new.key)
        changed = old is not None and None not in (old.pixels, new.pixels) and old.pixels != new.pixels
        if (old is None or changed) and (profile, new.key.of_slide) not in self.pruned:
            counted[new.key] = new

    def _model_message(self, said: Message) -> None:
        if not said.durable:
            return
        if said.coalesce:
            self.outbox = [old for old in self.outbox if not (old.topic == said.topic and old.coalesce)]
        self.outbox.append(said)
        if said.retain:
            self.retained.pop(said.topic, None)
            self.retained[said.topic] = said

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Acknowledgements in any order, some of them for rows that are gone."""
        rows = self.ledger.unsent(0, 1000)
        chosen = data.draw(st.lists(st.sampled_from(rows), unique=True) if rows else st.just([]))
        self.ledger.forget([row.seq for row in chosen] + [10**9])
        gone = {row.message.event_id for row in chosen}
        self.outbox = [said for said in self.outbox if said.event_id not in gone]

    @rule(patient=_names)
    def prune(self, patient: str) -> None:
        """The patches of a patient."""
        removed = self.ledger.prune([patient])
        for profile, counted in self.patches.items():
            kept = {key: each for key, each in counted.items() if key.patient != patient}
            removed -= len(counted) - len(kept)
            self.pruned |= {(profile, key.of_slide) for key in counted.keys() - kept.keys()}
            self.patches[profile] = kept
        assert removed == 0

    @rule()
    def restart(self) -> None:
        """Close and open again."""
        self.ledger.close()
        self.ledger = Ledger.open(self.path)
        self.boots += 1
        assert self.ledger.next_boot() == self.boots

    @invariant()
    def agrees(self) -> None:
        """Everything that can be asked."""
        for profile in (A, B):
            assert list(self.ledger.patches.restore(profile)) == sorted(
                self.patches[profile].values(), key=lambda each: each.key
            )
            finals = [row for _, row in sorted(self.finals[profile].items())]
            assert self.ledger.finals(profile) == finals
            assert self.ledger.finals(profile, "p") == [row for row in finals if row.patient == "p"]
            slides = Counter(key.of_slide for key in self.patches[profile])
            assert all(self.ledger.patches.count(profile, slide) == count for slide, count in slides.items())
        rows = self.ledger.unsent(0, 1000)
        assert [row.message for row in rows] == self.outbox
        assert [row.seq for row in rows] == sorted({row.seq for row in rows})
        assert self.ledger.outbox_length() == len(self.outbox)
        waiting = {said.topic for said in self.outbox}
        assert self.ledger.retained() == [said for said in self.retained.values() if said.topic not in waiting]

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.ledger.close()
        self.folder.cleanup()


LedgerAgainstModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedgerAgainstModel = LedgerAgainstModel.TestCase


def test_a_late_acknowledgement_cannot_remove_a_newer_message(ledger: Ledger) -> None:
    """A row that was in flight when its topic was coalesced: its PUBACK leaves the newer message alone."""
    ledger.append(Record(A, messages=(message(event_id="old", coalesce=True),)))
    (in_flight,) = ledger.unsent()
    ledger.append(Record(A, messages=(message(event_id="new", coalesce=True),)))
    ledger.forget([in_flight.seq])
    assert [row.message.event_id for row in ledger.unsent()] == ["new"]


def test_a_seq_is_never_used_again(tmp_path: Path) -> None:
    """Not even when the outbox was empty in between and the agent was restarted."""
    seqs = []
    for _ in range(3):
        ledger = Ledger.open(tmp_path / "ledger.db")
        ledger.append(Record(A, messages=(message(),)))
        (row,) = ledger.unsent()
        seqs.append(row.seq)
        ledger.forget([row.seq])
        ledger.close()
    assert len(set(seqs)) == 3


def test_unsent_pages_through_the_outbox(ledger: Ledger) -> None:
    """`after_seq` and `limit` visit every row once, in order."""
    ledger.append(Record(A, messages=tuple(message(event_id=str(number)) for number in range(10))))
    seen: list[str] = []
    after = 0
    while rows := ledger.unsent(after, 3):
        assert len(rows) <= 3
        seen += [row.message.event_id for row in rows]
        after = rows[-1].seq
    assert seen == [str(number) for number in range(10)]


def test_finals_and_alerts_are_never_coalesced(ledger: Ledger) -> None:
    """A coalesced message of the same topic removes only messages that may be coalesced."""
    ledger.append(Record(A, messages=(message(event_id="1"), message(event_id="2"))))
    ledger.append(Record(A, messages=(message(event_id="3", coalesce=True), message(event_id="4", coalesce=True))))
    assert [row.message.event_id for row in ledger.unsent()] == ["1", "2", "4"]


def test_expired_messages_are_not_sent(tmp_path: Path) -> None:
    """A message that waited loses that time from its expiry, and is gone when it is over; others stay."""
    now = 1000.0
    ledger = Ledger.open(tmp_path / "ledger.db", clock=lambda: now)
    ledger.append(
        Record(A, messages=(message("t/current", "c", expiry_s=60, coalesce=True), message("t/final", "f")))
    )
    now = 1045.5
    assert [row.message.expiry_s for row in ledger.unsent()] == [15, None]
    now = 1060.0
    assert [row.message.event_id for row in ledger.unsent()] == ["f"]
    ledger.forget_expired()
    assert ledger.outbox_length() == 1
    ledger.forget([row.seq for row in ledger.unsent()])
    assert [kept.event_id for kept in ledger.retained()] == ["f"]
    ledger.close()


def test_a_final_waits_longer_than_its_time_at_the_broker(tmp_path: Path) -> None:
    """Nothing is lost to a broker that was away for months: a final is sent then, and kept there for a day."""
    now = 1000.0
    ledger = Ledger.open(tmp_path / "ledger.db", clock=lambda: now)
    ledger.append(Record(A, messages=(message("t/final", "f", expiry_s=2_592_000),)))
    assert [row.message.expiry_s for row in ledger.unsent()] == [2_592_000]
    now += 9_000_000
    ledger.forget_expired()
    assert [(row.message.event_id, row.message.expiry_s) for row in ledger.unsent()] == [("f", LATE_S)]
    ledger.close()


def test_only_the_latest_retained_topics_are_kept(ledger: Ledger) -> None:
    """A busy topic counts once, and beyond the limit the topics that were silent longest go."""
    ledger.append(Record(A, messages=tuple(message(f"t/{number}") for number in range(RETAINED_KEPT))))
    ledger.append(Record(A, messages=tuple(message("t/0", str(number)) for number in range(50))))
    ledger.append(Record(A, messages=(message("t/new"),)))
    ledger.forget(row.seq for row in ledger.unsent(0, 10_000))
    topics = [kept.topic for kept in ledger.retained()]
    assert topics == [*(f"t/{number}" for number in range(2, RETAINED_KEPT)), "t/0", "t/new"]


def test_a_record_that_makes_no_sense_leaves_nothing(ledger: Ledger) -> None:
    """A patch with neither values nor a reason raises, and nothing of its record is written."""
    wrong = CountedPatch(PatchKey("p", "s", 0, 0, 0), None, None)
    with pytest.raises(ValueError, match="either values or a reason"):
        ledger.append(Record(A, (patch(1), wrong), (message(),)))
    assert list(ledger.patches.restore(A)) == []
    assert ledger.outbox_length() == 0


WRITER = """
    import sys
    from pathlib import Path
    from agent.ledger import FinalRow, Ledger, Record
    from tests.agent.test_ledger import A, message, patch
    ledger = Ledger.open(Path(sys.argv[1]))
    print("open", flush=True)
    for number in range(int(sys.argv[2])):
        patches = tuple(patch(10 * number + k) for k in range(10))
        final = FinalRow("patient", str(number), "", 1, str(number), "f")
        ledger.append(Record(A, patches, (message(event_id=str(number)),), (final,)))
        print(number, flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer(path: Path, records: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that opens the ledger, appends records, tells each, and stays."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(records)]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": root}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process
        process.kill()


@pytest.mark.system
@pytest.mark.parametrize("told", [1, 7, 40])
def test_a_killed_writer_leaves_whole_records(tmp_path: Path, told: int) -> None:
    """After SIGKILL each record is there whole or not at all, and every one that was confirmed is there."""
    path = tmp_path / "ledger.db"
    with writer(path, 1_000_000) as process:
        assert process.stdout is not None
        for number in range(told):
            assert int(process.stdout.readline()) == number
        process.kill()
        process.wait()
        last = max([told - 1, *(int(line) for line in process.stdout.read().split())])
    ledger = Ledger.open(path)
    count = ledger.outbox_length()
    assert count in (last + 1, last + 2)
    assert [row.message.event_id for row in ledger.unsent(0, count + 1)] == [str(number) for number in range(count)]
    assert list(ledger.patches.restore(A)) == [patch(x) for x in range(10 * count)]
    assert {row.patient for row in ledger.finals(A)} == {str(number) for number in range(count)}
    ledger.close()


@pytest.mark.system
def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A ledger in use is refused with that reason; when the other process is gone, however, it opens."""
    path = tmp_path / "ledger.db"
    with writer(path, 1) as process:
        with pytest.raises(LedgerError, match="is the agent already running"):
            Ledger.open(path)
        process.kill()
        process.wait()
        Ledger.open(path).close()


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a few hundred KiB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """On a full disk `append` raises LedgerError; all earlier records are whole, and with space it goes on."""
    with tiny_disk(tmp_path / "disk", "512k") as disk:
        ledger = Ledger.open(disk / "ledger.db")
        count = 0
        with pytest.raises(LedgerError, match=r"disk is full|free space"):
            while True:
                ledger.append(Record(A, (patch(count),), (message(event_id=str(count), payload=b"x" * 4000),)))
                count += 1
        assert 5 < count < 200
        assert [row.message.event_id for row in ledger.unsent(0, 1000)] == [str(number) for number in range(count)]
        assert list(ledger.patches.restore(A)) == [patch(number) for number in range(count)]
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        ledger.append(Record(A, (patch(count),)))
        ledger.close()
        ledger = Ledger.open(disk / "ledger.db")
        assert len(list(ledger.patches.restore(A))) == count + 1
        ledger.close()


def test_no_space_to_begin_with(tmp_path: Path) -> None:
    """A ledger that cannot even be created for want of space says so."""
    with (
        tiny_disk(tmp_path / "disk", "16k") as disk,
        pytest.raises(LedgerError, match=r"disk is full|free space"),
    ):
        Ledger.open(disk / "ledger.db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A ledger written by a later version is left alone, and the text says so."""
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(LedgerError, match=r"newer version \(schema 99"):
        Ledger.open(path)
    assert not marker_of(path).exists()


def test_places_where_no_ledger_can_be(tmp_path: Path) -> None:
    """A folder, a path below a file, and a place that takes no files are refused with a reason."""
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path, "something else than a file is in its place"),
        (tmp_path / "file" / "ledger.db", "exists|Not a directory"),
        (Path("/proc/ledger.db"), "No such file|cannot be opened or created"),
    ):
        with pytest.raises(LedgerError, match=reason):
            Ledger.open(path)


def test_the_folder_is_made(tmp_path: Path) -> None:
    """The first start needs no preparation."""
    Ledger.open(tmp_path / "state" / "ledger.db").close()
    assert (tmp_path / "state" / "ledger.db").is_file()


def test_the_promised_durability_is_set(ledger: Ledger, tmp_path: Path) -> None:
    """WAL with synchronous=FULL, as the module promises."""
    (mode,) = ledger._db.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = ledger._db.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
