"""Finals that are due in the ledger → the spool, from which `dicom-out` makes DICOM objects.

Belongs to the SENDER room, whose thread owns the ledger. Trouble with the spool is told and tried again; it never
stops the agent. Knows no DICOM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog

from agent.ledger import Ledger
from agent.ledger_results import DueResult
from agent.settings import Settings
from agent.spool import FOLDER, Origin, Spool
from models.contract import SlideKey
from models.posterior import FRACTION_BITS
from models.profile import Profile
from models.registry import MODALITIES

RETRY_S = 30.0
"""Pause after the spool could not be written."""


class Spooler:
    """Call `look` often: it is one short query when nothing is due, and messages wait while it writes a result."""

    def __init__(
        self, ledger: Ledger, spool: Spool, origin: Origin, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """From now on the ledger notes every final, under this origin."""
        self._ledger = ledger
        self._spool = spool
        self._clock = clock
        self._retry_at = float("-inf")
        self._told = ""
        self._log = structlog.get_logger("agent.spooler")
        ledger.results.origin = origin.model_dump_json()

    def look(self, most: int = 1) -> None:
        """Put the oldest due finals into the spool; what cannot be written now stays due. Raises LedgerError."""
        if self._clock() < self._retry_at:
            return
        for result in self._ledger.results.due(most):
            try:
                self._spool.put(result.event_id, self._text(result))
            except OSError as error:
                self._retry_at = self._clock() + RETRY_S
                self._tell(f"{self._spool.folder}: {error.strerror or error}")
                return
            self._ledger.results.done(result.seq)
            self._told = ""

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._log.error("results_wait_in_the_ledger", reason=reason, retry_s=RETRY_S)
        self._told = reason

    def _text(self, due: DueResult) -> str:
        document: dict[str, Any] = {
            "origin": json.loads(due.origin),
            "study_at": datetime.fromtimestamp(due.study_at, UTC).isoformat(),
            "final": json.loads(due.payload),
        }
        if due.scope == "slide":
            document["patches"] = self._patches(due.profile_sha256, SlideKey(due.patient, due.slide))
        else:
            # Of finals from before the site wanted results as files there is no report that could be named.
            document["slides"] = [
                (row.slide, row.event_id)
                for row in self._ledger.finals(due.profile_sha256, due.patient)
                if row.scope == "slide" and row.at >= due.study_at
            ]
        return json.dumps(document, separators=(",", ":"))

    def _patches(self, profile_sha256: str, slide: SlideKey) -> list[tuple[Any, ...]]:
        one = 1 << FRACTION_BITS
        return [
            (row.key.strip, row.key.x, row.key.y, row.rejected or [value / one for value in row.values or ()])
            for row in self._ledger.patches.restore(profile_sha256, slide)
        ]


def spooling(settings: Settings, profile: Profile, ledger: Ledger) -> Callable[[int], None]:
    """What keeps up to so many results for `dicom-out`; does nothing when the site wants no DICOM."""
    if settings.dicom_out.folder is None:
        return lambda _: None
    layout = MODALITIES[profile.modality].patch_layout(profile)
    origin = Origin(
        version=version("spinextract-agent"),
        site=settings.site,
        instrument=settings.instrument,
        intended_use=profile.intended_use,
        size_px=layout.size_px,
        stride_px=layout.stride_px,
    )
    return Spooler(ledger, Spool(settings.state_dir / FOLDER), origin).look
