"""Spool → folder and service: each result is written, sent, and only then taken out of the spool.

A kill anywhere leaves the result in the spool; the same files and the same objects come again, under the same names
and UIDs. Knows no settings and no DICOM.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog
from pydantic import ValidationError

from agent.dicom_out.grid import NoSlide
from agent.dicom_out.naming import NameBook, NameUnknown
from agent.dicom_out.objects import DicomObject, objects_of
from agent.dicom_out.stow import Refused, StowClient, Unreachable
from agent.errors import AgentError
from agent.results import SlideFinal
from agent.spool import Spool, SpooledResult, write_whole

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """What became of one result in one turn."""

    event_id: str
    state: Literal["done", "waiting", "refused"]
    files: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Pause:
    """Doubles from one failure to the next, and ends with a success."""

    clock: Callable[[], float] = time.monotonic
    reason: str = ""
    _until: float = field(default=float("-inf"), init=False)
    _length_s: float = field(default=0.0, init=False)

    @property
    def lasts(self) -> bool:
        """Whether nothing should be tried yet."""
        return self.clock() < self._until

    def begin(self, reason: str) -> bool:
        """After a failure; True when its reason is another one than the last time."""
        self._length_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._length_s))
        self._until = self.clock() + self._length_s
        is_new, self.reason = reason != self.reason, reason
        return is_new

    def end(self) -> None:
        """After a success."""
        self._length_s, self._until, self.reason = 0.0, float("-inf"), ""


class Exporter:
    """See the module's docstring."""

    def __init__(
        self,
        spool: Spool,
        folder: Path,
        book: NameBook,
        *,
        pixel_um: float,
        stow: StowClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._folder = folder
        self._book = book
        self._pixel_um = pixel_um
        self._stow = stow
        self._disk, self._service = Pause(clock), Pause(clock)
        self._written: set[str] = set()
        """Results whose files are in the folder, and that wait for the service."""
        self._failures: Counter[str] = Counter()
        """Of results that wait: how often they could not be written or sent."""
        self._log = structlog.get_logger("dicom_out")

    def turn(self) -> Iterator[Outcome]:
        """Deal with everything that waits, as far as disk and service allow it now.

        What has failed more often comes later: one result that makes the service stumble must not hold up the rest.
        """
        for path in sorted(self._spool.waiting(), key=lambda path: self._failures[path.name]):
            if self._disk.lasts or (self._service.lasts and path.name in self._written):
                yield Outcome(path.stem, "waiting", reason=self._disk.reason or self._service.reason)
                continue
            try:
                yield self._export(path)
            except FileNotFoundError:
                continue  # somebody removed it
            except OSError as error:
                yield self._wait(path, self._disk, f"{error.filename or self._folder}: {error.strerror or error}")
            except AgentError as error:
                yield self._wait(path, self._disk, str(error))

    def _export(self, path: Path) -> Outcome:
        try:
            result = SpooledResult.model_validate_json(path.read_bytes())
            objects = objects_of(result, self._book.names_of(result), self._pixel_um)
        except ValidationError as error:
            return self._set_aside(path, f"not a result that this version knows: {_places(error)}")
        except (NameUnknown, NoSlide) as error:
            return self._set_aside(path, str(error))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # What highdicom and pydicom raise for values that DICOM cannot take: never a reason to end. What they
            # say may quote a name.
            return self._set_aside(path, f"no DICOM objects can be made of it ({type(error).__name__})")
        files = [self._write(item) for item in objects]
        self._written.add(path.name)
        self._disk.end()
        refused: list[str] = []
        for item in objects if self._stow is not None else ():
            if self._service.lasts:
                return Outcome(path.stem, "waiting", tuple(files), self._service.reason)
            try:
                self._send(item)
            except Unreachable as error:
                return self._wait(path, self._service, str(error), tuple(files))
            except Refused as error:
                refused.append(f"{item.path.name}: {error}")
        if refused:
            return self._set_aside(path, f"the service refused {'; '.join(refused)}", tuple(files))
        self._finish(path, result, files)
        return Outcome(path.stem, "done", tuple(files))

    def _write(self, item: DicomObject) -> str:
        path = self._folder / item.path
        if not path.exists() or path.read_bytes() != item.content:
            write_whole(path, item.content)
        return str(path)

    def _send(self, item: DicomObject) -> None:
        assert self._stow is not None
        self._stow.store(item.content)
        self._service.end()

    def _finish(self, path: Path, result: SpooledResult, files: list[str]) -> None:
        self._spool.remove(path)
        self._forget(path)
        final = result.final
        self._log.info(
            "result_written",
            event_id=final.event_id,
            kind=final.kind,
            patient=final.patient,
            slide=final.slide if isinstance(final, SlideFinal) else None,
            revision=final.revision,
            files=len(files),
            sent=self._stow is not None,
        )

    def _wait(self, path: Path, pause: Pause, reason: str, files: tuple[str, ...] = ()) -> Outcome:
        self._failures[path.name] += 1
        # Told once per reason: a service that is away for a night must not fill the journal.
        if pause.begin(reason):
            self._log.warning("results_wait", event_id=path.stem, reason=reason)
        return Outcome(path.stem, "waiting", files, reason)

    def _forget(self, path: Path) -> None:
        self._written.discard(path.name)
        del self._failures[path.name]

    def _set_aside(self, path: Path, reason: str, files: tuple[str, ...] = ()) -> Outcome:
        aside = self._spool.set_aside(path, reason)
        self._forget(path)
        self._log.error("result_set_aside", event_id=path.stem, reason=reason, kept=str(aside))
        return Outcome(path.stem, "refused", files, reason)


def _places(error: ValidationError) -> str:
    """Where it is wrong and how, without the values."""
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['type']}" for item in error.errors()[:5])
