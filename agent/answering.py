"""Whether the watched folder answers: told once when it does not, and again when it does.

The SENDER room looks, since it goes on while the reader hangs: results already read still go out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from agent import host
from agent.calls import longest_s
from agent.ledger import Ledger, Record
from agent.pulse import Pulse
from agent.speech import Speech

ALERT_AGAIN_S = 300.0
"""A share that hangs again and again is one alert in this time; log, health and systemd's status tell each time."""


class Answering:
    """Belongs to the thread that owns the ledger; anybody may read `trouble` and `alerts`."""

    def __init__(self, pulse: Pulse, limit_s: Callable[[], float], speech: Speech, ledger: Ledger) -> None:
        """`limit_s` is how long a call may take before the folder counts as hanging, as it is set now."""
        self.trouble: str | None = None
        """That the folder does not answer, in words; None while it does."""
        self.alerts = 0
        self._pulse = pulse
        self._limit_s = limit_s
        self._speech = speech
        self._ledger = ledger
        self._since: float | None = None
        """Monotonic seconds at which the call began that has not come back."""
        self._alert_at = float("-inf")
        self._log = structlog.get_logger("watch")

    def look(self) -> None:
        """Compare what was known with the calls that are under way."""
        now, asked_s = time.monotonic(), longest_s() or 0.0
        if self._since is None:
            if asked_s >= self._limit_s():
                self._since = now - asked_s
                self._begin(now, asked_s)
        elif self._pulse.last("reader") > self._since:
            self._log.warning("folder_answers", after_s=round(now - self._since, 1))
            self._since = self.trouble = None
            host.notify("STATUS=the folder answers again")
        if self._since is not None:
            self.trouble = f"it does not answer: one call has taken {now - self._since:.0f} s so far"
            host.notify(f"STATUS=the watched folder hangs; {self.trouble}")

    def _begin(self, now: float, asked_s: float) -> None:
        mend = "see whether its share and server are well; the agent goes on by itself when it answers"
        self._log.error("folder_hangs", waited_s=round(asked_s, 1), mend=mend)
        if now >= self._alert_at:
            self._alert_at = now + ALERT_AGAIN_S
            self.alerts += 1
            self._ledger.append(Record("", messages=(self._speech.folder_hangs(asked_s),)))
