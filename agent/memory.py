"""What the ledger knows from before this start, as the rooms are given it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import structlog

from agent.ledger import CountedPatch, FileStanding, FinalRow, Ledger
from models.contract import SlideKey


@dataclass(frozen=True)
class Memory:
    """Of one profile."""

    patches: list[CountedPatch]
    finals: list[FinalRow]
    files: list[FileStanding]
    reopened: set[SlideKey]

    @classmethod
    def of(cls, ledger: Ledger, profile_sha256: str) -> Memory:
        """Everything that is there."""
        finals, patches = ledger.finals(profile_sha256), list(ledger.patches.restore(profile_sha256))
        structlog.get_logger("agent").info("restored", patches=len(patches), finals=len(finals))
        return cls(patches, finals, ledger.files.all(), ledger.files.reopened(profile_sha256))

    @property
    def finished(self) -> list[SlideKey]:
        """Slides whose files need not be read again: nothing was counted or taken back since their last final."""
        counted = Counter(row.key.of_slide for row in self.patches)
        finished = [row for row in self.finals if row.is_finished_slide and row.of_slide not in self.reopened]
        return [row.of_slide for row in finished if counted[row.of_slide] in (0, row.seen)]
