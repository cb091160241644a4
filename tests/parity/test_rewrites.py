"""Whatever befalls the files on the way, the last word is that of the files as they stand in the end.

Compared: the last final of every slide and patient, with one reading of the finished files. Files are written in
pieces, overwritten in place, cut, replaced, touched, copied, taken away and put back, while the agent is killed, time
passes, other things happen in the folder and another patient begins. Not compared: how many revisions there were
before the last one.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.imager import Layout, plan
from tests.parity.test_restarts import Ward
from tests.reading import slide_files

EXAMPLES = int(os.environ.get("REWRITES_EXAMPLES", "6"))
"""Of each layout; the long run asks for more."""
STEPS = 14
PAUSES_S = (0.01, 0.3, 0.7, 1.5, 5.0, 30.0, 150.0, 1000.0)
COPIES = {"IMG00006.dcm": "IMG6.dcm", "strip_0.tif": "strip_00.tif"}
"""File → a second name for the same pixels."""
Files = dict[PurePosixPath, bytes]


def other(content: bytes) -> bytes:
    """The same image with some of its last rows inverted: written anew, with the same header and size."""
    at = int(len(content) * 0.7) // 2 * 2
    return content[:at] + bytes(255 - byte for byte in content[at : at + 20_000]) + content[at + 20_000 :]


@functools.cache
def rescan(layout: Layout) -> Files:
    """The files of the first strip, scanned again with twice as many rows; none where there are no strips."""
    if "strip" not in layout:
        return {}
    chance = np.random.default_rng(77)
    strips = [chance.integers(3_000, 20_000, (2, height, 1000)).astype(np.uint16) for height in (4000, 2000)]
    first = [file for file in plan(strips, layout, "PAT", "1") if file.group == 0]
    return {file.relative: file.content for file in first}


class Disk:
    """A slide's files being written by somebody who cannot make up his mind; tells a ward of every change."""

    def __init__(self, ward: Ward, files: Files, taller: Files, chance: random.Random) -> None:
        self._ward = ward
        self._chance = chance
        self._choices = {name: (content, other(content)) for name, content in files.items()}
        self._taller = taller
        """The same strip with more rows; in the end both of its channels have them, or neither."""
        for name in files:
            if name.name in COPIES and chance.random() < 0.3:
                self._choices[name.with_name(COPIES[name.name])] = self._choices[name]
        self.steps = [self.append, self.append, self.whole, self.overwrite, self.cut, self.replace]
        self.steps += [self.touch, self.remove, self.begin_another]

    def append(self) -> None:
        """Some more bytes."""
        name, content = self._pick()
        path = self._path(name)
        held = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(content[held : held + self._chance.choice([1000, 500_001, 2_000_003])])
        self._tell(name)

    def whole(self) -> None:
        """All of one file, in place."""
        name, content = self._pick()
        self._write(name, content)

    def overwrite(self) -> None:
        """A stretch in the middle, in place."""
        name, content = self._pick()
        path = self._path(name)
        if path.exists():
            start = self._chance.randrange(path.stat().st_size + 1)
            with path.open("r+b") as file:
                file.seek(start)
                file.write(content[start : start + 400_000])
            self._tell(name)

    def cut(self) -> None:
        """Fewer bytes than before."""
        name, _ = self._pick()
        path = self._path(name)
        if path.exists():
            os.truncate(path, self._chance.choice([0, path.stat().st_size // 2]))
            self._tell(name)

    def replace(self) -> None:
        """Another file under the same name, whole at once, with an older time."""
        name, content = self._pick()
        aside = self._ward.folder.folder.with_name("aside")
        aside.write_bytes(content)
        os.utime(aside, (1_500_000_000, 1_500_000_000))
        aside.rename(self._path(name))
        self._tell(name)

    def touch(self) -> None:
        """Another time, the same bytes."""
        name, _ = self._pick()
        if self._path(name).exists():
            self._path(name).touch()
            self._tell(name)

    def remove(self) -> None:
        """Taken away; a later step may put it back."""
        name, _ = self._pick()
        if self._path(name).exists():
            self._path(name).unlink()
            self._ward.folder.touched = [path for path in self._ward.folder.touched if path != str(name)]
            self._ward.folder.removed.append(str(name))

    def begin_another(self) -> None:
        """A file of another patient, which may end this one; it is never finished."""
        number = self._chance.randrange(3)
        name = PurePosixPath(f"OTHER{number}/1/strips/CH2/IMG00006.dcm")
        self._path(name).write_bytes(b"\0" * 200)
        self._tell(name)

    def finish(self) -> Files:
        """Every file whole, with one content or the other; a copy is equal to its original."""
        whole: Files = {}
        second = {name: self._chance.random() < 0.5 for name in self._choices}
        is_taller = self._chance.random() < 0.4
        for name, contents in self._choices.items():
            original = next((o for o, copy in COPIES.items() if copy == name.name), name.name)
            whole[name] = contents[second[name.with_name(original)]]
            if is_taller:
                whole[name] = self._taller.get(name.with_name(original), whole[name])
        for name in self._chance.sample(sorted(whole), len(whole)):
            path = self._path(name)
            if not path.exists() or path.read_bytes() != whole[name]:
                self._write(name, whole[name])
        return whole

    def _pick(self) -> tuple[PurePosixPath, bytes]:
        name = self._chance.choice(sorted(self._choices))
        content = self._chance.choice(self._choices[name])
        return name, self._taller.get(name, content) if self._chance.random() < 0.3 else content

    def _path(self, name: PurePosixPath) -> Path:
        path = self._ward.folder.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, name: PurePosixPath, content: bytes) -> None:
        self._path(name).write_bytes(content)
        self._tell(name)

    def _tell(self, name: PurePosixPath) -> None:
        self._ward.folder.touched.append(str(name))


def answers(ward: Ward) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What was said last of the patient whose files are whole in the end."""
    return {key: answer for key, answer in ward.answers().items() if key[1] == "PAT"}


def chain_holds(history: list[dict[str, Any]]) -> bool:
    """Whether each final is one revision after the one it supersedes, and no id was used twice."""
    last: dict[tuple[str, str | None], tuple[int, str | None]] = {}
    for final in history:
        of = (final["patient"], final.get("slide"))
        revision, event_id = last.get(of, (0, None))
        if (final["revision"], final["supersedes"]) != (revision + 1, event_id):
            return False
        last[of] = (final["revision"], final["event_id"])
    return len({final["event_id"] for final in history}) == len(history)


@pytest.mark.parametrize("layout", ["strips-b", "tiff-strip", "tiff-mosaic", "opensrh"])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.integers(0, 2**32).map(random.Random))
def test_the_last_word_is_that_of_the_files_as_they_stand(
    layout: Layout, tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    """Finals, counts and strips equal those of one reading; no patch is counted twice; revisions form a chain; and
    afterwards nothing is left to do, also not for the next start."""
    files = dict(sorted(slide_files(layout, "1").items())[:8])
    ward, now = Ward(tmp_path_factory.mktemp("ward") / "watched"), 0.0
    disk, ward.folder.busy = Disk(ward, files, rescan(layout), chance), chance.random() < 0.5
    for _ in range(STEPS):
        for _ in range(chance.choice([1, 1, 2, 4])):
            chance.choice(disk.steps)()
        now += chance.choice(PAUSES_S)
        if chance.random() < 0.2:  # killed in the middle of a turn
            ward.take(itertools.islice(ward.reader.poll(now), chance.choice([0, 1, 5, 30])))
            ward.restart()
        if chance.random() < 0.3:  # one turn, after which more may wait
            ward.take(ward.reader.poll(now))
        else:
            ward.poll(now)
    whole, ward.folder.busy = disk.finish(), False
    ward.poll(now)
    ward.let_time_pass(now)
    ward.let_time_pass(now + 3000)

    calm = Ward(tmp_path_factory.mktemp("calm"))
    for name, content in whole.items():
        (calm.folder.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (calm.folder.folder / name).write_bytes(content)
    calm.restart()
    calm.poll(0.0)
    calm.let_time_pass(0.0)
    assert answers(ward) == answers(calm)
    assert len({row.key for row in ward.ledger}) == len(ward.ledger)
    assert chain_holds(ward.history)
    assert ward.reader.wait_s(now + 6000) > 1
    assert ward.assembler.held == 0

    said, reopened = len(ward.history), len(ward.reopened)
    ward.restart()
    ward.poll(now + 6000)
    ward.let_time_pass(now + 6000)
    assert len(ward.history) == said
    assert ward.reopened[reopened:] == []
