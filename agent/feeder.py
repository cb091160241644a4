"""The READER room's loop: polls the reader, fills batches, and hands everything on in order."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable

from agent.batching import Batch, Batcher
from agent.handover import CancelToken, Handover, Wakeup
from agent.intake import PatientClosed, SlideClosed, Told
from agent.ledger_records import FileStanding, PartRead
from agent.reader import Reader
from agent.topics import Message
from agent.worker import Work
from models.contract import ModelInput

LONGEST_WAIT_S = 1.0
SHORTEST_WAIT_S = 0.01
"""A writing imager raises an event for every few KiB; so many polls a second are enough."""

TellClosed = Callable[[tuple[str, ...]], Message]
"""Makes the message that says which patients were closed."""


class Feeder:
    """One thread's loop; owns the reader and the batcher. `close_patient` may be called from any thread."""

    def __init__(
        self,
        reader: Reader,
        batcher: Batcher,
        outbox: Handover[Work],
        token: CancelToken,
        wakeup: Wakeup,
        *,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._batcher = batcher
        self._outbox = outbox
        self._token = token
        self._wakeup = wakeup
        self._beat = beat
        self._clock = clock
        self._closings: queue.SimpleQueue[tuple[str | None, TellClosed]] = queue.SimpleQueue()

    def close_patient(self, patient: str | None, answer: TellClosed) -> None:
        """End a patient (None: whoever is open) as soon as the loop comes round.

        `answer` is then given the patients that ended by it; its message goes on behind their finals.
        """
        self._closings.put((patient, answer))
        self._wakeup.set()

    def run(self) -> None:
        """Work until a stop is asked for, hand over what is in hand, and close the outbox."""
        while not self._token.stopping.is_set():
            self._beat()
            self._pass_on(self._reader.poll(self._clock()))
            self._flush_rejected()
            while not self._closings.empty():
                self._close(*self._closings.get())
            self._flush_due()
            if not self._reader.behind:
                self._wakeup.wait(self._patience_s())
                self._token.stopping.wait(SHORTEST_WAIT_S)
        self._flush()
        self._outbox.close()

    def _patience_s(self) -> float:
        now = self._clock()
        deadline = self._batcher.wait_s(now)
        waits = [LONGEST_WAIT_S, self._reader.wait_s(now), *([] if deadline is None else [deadline])]
        return max(0.0, min(waits))

    def _close(self, patient: str | None, answer: TellClosed) -> None:
        told = list(self._reader.close_patient(patient))
        self._pass_on(told)
        if not self._token.stopping.is_set():
            self._outbox.put(answer(tuple(item.patient for item in told if isinstance(item, PatientClosed))))

    def _pass_on(self, told: Iterable[Told]) -> None:
        for item in told:
            self._beat()
            if isinstance(item, ModelInput):
                self._put(self._batcher.add(item, self._clock()))
                self._flush_due()
            else:
                if isinstance(item, PartRead | SlideClosed | PatientClosed | FileStanding):
                    self._flush()  # a final speaks after its last patch, and no file counts as read before its own
                self._outbox.put(item)
            if self._token.stopping.is_set():
                return

    def _flush_due(self) -> None:
        if self._batcher.wait_s(self._clock()) == 0:
            self._flush()

    def _flush_rejected(self) -> None:
        if self._batcher.only_rejected:
            self._flush()

    def _flush(self) -> None:
        self._put(self._batcher.flush())

    def _put(self, batch: Batch | None) -> None:
        if batch is not None:
            self._outbox.put(batch)
