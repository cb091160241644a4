"""How long silence must last before it means something."""

from __future__ import annotations

from dataclasses import dataclass


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
