"""Network inputs → batches of at most one fixed size, flushed when full or after a deadline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from models.contract import ModelInput, PatchKey


@dataclass(frozen=True)
class Timed:
    """A network input and when (monotonic seconds) its last bytes were seen."""

    item: ModelInput
    seen_s: float


class Rejected(NamedTuple):
    """A patch that no engine needs to see, why, and the digest of its pixels."""

    key: PatchKey
    reason: str
    digest: int | None = None


@dataclass(frozen=True)
class Batch:
    """Patches for one run of the engine, and patches that were rejected before it."""

    inputs: tuple[Timed, ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass
class Batcher:
    """Collects until a batch is full or its oldest input has waited `deadline_s` seconds."""

    size: int
    deadline_s: float
    _inputs: list[Timed] = field(default_factory=list)
    _rejected: list[Rejected] = field(default_factory=list)
    _oldest_s: float | None = None

    def add(self, item: ModelInput, now: float) -> Batch | None:
        """Take one input (or rejection); the full batch, if this filled it."""
        if self._oldest_s is None:
            self._oldest_s = now
        if item.digest is not None:
            self._forget(item.key)
        if item.rejected is None:
            self._inputs.append(Timed(item, now))
        else:
            self._rejected.append(Rejected(item.key, item.rejected, item.digest))
        return self.flush() if len(self._inputs) >= self.size else None

    def wait_s(self, now: float) -> float | None:
        """Seconds until the deadline; None when nothing waits."""
        return None if self._oldest_s is None else max(0.0, self._oldest_s + self.deadline_s - now)

    @property
    def only_rejected(self) -> bool:
        """Whether nothing waits that an engine would have to run: waiting longer gains nothing."""
        return bool(self._rejected) and not self._inputs

    def flush(self) -> Batch | None:
        """Whatever waits, as one batch; None when nothing does."""
        if self._oldest_s is None:
            return None
        batch = Batch(tuple(self._inputs), tuple(self._rejected))
        self._inputs, self._rejected, self._oldest_s = [], [], None
        return batch

    def _forget(self, key: PatchKey) -> None:
        """The same patch from older pixels does not count any more."""
        self._inputs = [timed for timed in self._inputs if timed.item.key != key]
        self._rejected = [rejected for rejected in self._rejected if rejected.key != key]
