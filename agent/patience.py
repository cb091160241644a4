"""How long silence must last before it means something."""

from __future__ import annotations

from dataclasses import dataclass

from agent.settings import Settings


@dataclass
class Patience:
    """How long silence must last, seconds. Plain values, which may be replaced while rooms look at them."""

    settle_s: float = 1.0
    """After this a file counts as settled."""
    stall_after_s: float = 120.0
    """After this an acquisition that lacks something is stalled."""
    slide_quiet_s: float = 20.0
    """After this a slide without a known number of parts is complete."""
    patient_quiet_s: float = 900.0
    """After this a patient has ended."""
    next_ends_patient: bool = True
    """The next patient's first byte ends this one."""

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """The settings' limits of silence."""
        return cls(
            settle_s=settings.watch.settle_s,
            stall_after_s=settings.watch.stall_after_s,
            slide_quiet_s=settings.watch.slide_quiet_s,
            patient_quiet_s=settings.patient.quiet_s,
            next_ends_patient=settings.patient.on_next,
        )
