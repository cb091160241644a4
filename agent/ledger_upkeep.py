"""When the ledger is pruned, how large it may become, and what is told of it: of a rescue, a limit, withheld alerts.

Belongs to the SENDER room, whose thread owns the ledger. Little is done at a time, so that no message waits long.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Literal

import structlog

from agent.ledger import Ledger, Record
from agent.ledger_rescue import Rescue
from agent.messages import Alert
from agent.reporter import Speaker
from agent.settings import Settings
from agent.topics import Message

DAY_S = 86_400.0
LOOK_S = 60.0
"""Between two looks at the size."""
STEP_BYTES = 4 << 20
"""The file is made smaller by so much at a time."""
MOST_AT_ONCE = 16
"""Patients whose patches go in one look."""

log = structlog.get_logger("agent.ledger")


class Upkeep:
    """`begin` once, before patches are read back; then `look` often: it is one comparison when nothing is due."""

    def __init__(
        self,
        ledger: Ledger,
        speaker: Speaker,
        *,
        keep_days: float,
        max_mib: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_mib` 0 sets no limit."""
        self._ledger = ledger
        self._speaker = speaker
        self._keep_days = keep_days
        self._max_bytes = max_mib << 20
        self._clock = clock
        self._prune_at = self._look_at = clock()
        self._shrinks = False
        """There is room to give back."""

    def begin(self, rescue: Rescue | None) -> None:
        """Tell of a rescue, and prune. Raises LedgerError."""
        if rescue is not None:
            self._append(self._alert("ledger_rebuilt", rescue.words, "error", rescue.aside))
            self._ledger.audit.add("ledger_rebuilt", {"aside": rescue.aside, "detail": rescue.words})
            rescue.done()
        self._prune()
        while self._makes_room():
            pass

    def look(self) -> None:
        """Whatever is due by now. Raises LedgerError."""
        now = self._clock()
        if now >= self._prune_at:
            self._prune()
        if self._shrinks:
            self._give_back()
        if now >= self._look_at:
            self._look_at = now if self._makes_room() else now + LOOK_S
            self._give_back()
            self._tell_withheld()

    def _prune(self) -> None:
        self._prune_at = self._clock() + DAY_S
        retention = self._ledger.retention
        patients = retention.silent(self._keep_days)
        patches = self._ledger.prune(patients)
        retention.forget(self._keep_days)
        self._ledger.forget_expired()
        self._look_at = self._clock()
        if patients:
            log.info("ledger_pruned", patients=len(patients), patches=patches, keep_days=self._keep_days)

    def _makes_room(self) -> bool:
        """Above the limit the patches of those who ended first go, whatever `keep_days` says; True when some did."""
        if not self._max_bytes or self._used() <= self._max_bytes:
            return False
        limit_mib = self._max_bytes >> 20
        patients = self._ledger.retention.ended()[:MOST_AT_ONCE]
        if patients:
            patches = self._ledger.prune(patients)
            log.warning("ledger_made_room", patients=len(patients), patches=patches, limit_mib=limit_mib)
            return True
        detail = (
            f"the ledger is larger than ledger.max_mib ({limit_mib} MiB), and no patch of an ended patient is left in"
            " it: raise the limit, or see that the broker and dicom-out take what waits for them"
        )
        self._append(self._alert("ledger_large", detail, "warning", str(limit_mib)))
        return False

    def _give_back(self) -> None:
        """Make the file smaller; a little free room stays, since it is used again soon."""
        retention = self._ledger.retention
        self._shrinks = retention.free_bytes() > max(STEP_BYTES, retention.file_bytes() // 10)
        if self._shrinks:
            retention.give_back(STEP_BYTES)

    def _used(self) -> int:
        return self._ledger.retention.file_bytes() - self._ledger.retention.free_bytes()

    def _tell_withheld(self) -> None:
        withheld = self._ledger.alerts.due()
        if withheld:
            detail = f"{sum(withheld.values())} more alerts while the broker was away: {_listed(withheld)}"
            self._ledger.sum_up(self._alert("more_alerts", detail, "warning"))

    def _append(self, alert: Message) -> None:
        self._ledger.append(Record("", messages=(alert,)))

    def _alert(self, reason: str, detail: str, severity: Literal["warning", "error"], of: str = "") -> Message:
        """With `of`, the alert has one id for good: it is said once while the ledger remembers it."""
        event_id = hashlib.sha256(f"{reason}\x1f{of}".encode()).hexdigest()[:32] if of else None
        stamp = self._speaker.stamp(event_id)
        return self._speaker.topics.message(Alert(**stamp, severity=severity, reason=reason, detail=detail[:1000]))


def keeping_up(settings: Settings, ledger: Ledger, speaker: Speaker, rescue: Rescue | None) -> Callable[[], None]:
    """What the SENDER room does for the ledger each time it comes round; the first of it is done here."""
    upkeep = Upkeep(ledger, speaker, keep_days=settings.patient.keep_days, max_mib=settings.ledger.max_mib)
    upkeep.begin(rescue)
    return upkeep.look


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
