"""Moments at which a signal is sent: after a while, at the n-th system call, message or log line.

A system call is caught by the preloaded library, which holds it until the signal has been sent: so a kill comes
exactly before the n-th write, or in the middle of it, and not somewhere near.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.shim import Call, Fault, Shim
from tests.faults.witness import Witness
from tests.system.processes import AgentProcess

Phase = Literal["start-up", "reading", "ledger", "publish", "shutdown", "any"]
PHASES: tuple[Phase, ...] = ("start-up", "reading", "ledger", "publish", "shutdown", "any")
LONGEST_S = 2.5
"""A moment that does not come by itself in this time is now."""
LOOK_S = 0.002
HANDED_ON_S = 0.1


@dataclass
class Moment:
    """One moment, armed; `release` when the signal has been sent."""

    what: str
    come: Callable[[float], bool]
    """Waits for so many seconds; whether the moment has come."""
    faults: list[Fault] = field(default_factory=list)

    def wait(self, ended: Callable[[], bool]) -> bool:
        """Wait for it; False when it never came or the process ended by itself."""
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline and not ended():
            if self.come(LOOK_S):
                return True
        return False

    def release(self) -> None:
        """Let what was held go on."""
        for fault in self.faults:
            fault.end()


def after(seconds: float) -> Moment:
    """So many seconds from now."""
    until = time.monotonic() + seconds
    never = threading.Event()

    def come(limit_s: float) -> bool:
        never.wait(min(limit_s, max(0.0, until - time.monotonic())))
        return time.monotonic() >= until

    return Moment(f"after {seconds:.3f} s", come)


def at_call(fault: Fault, what: str, *others: Fault) -> Moment:
    """When this fault holds a thread."""
    never = threading.Event()
    return Moment(what, lambda seconds: bool(fault.hits or never.wait(seconds)) or fault.hits > 0, [fault, *others])


def storing(chance: random.Random, agent: AgentProcess, shim: Shim, most: int) -> Moment:
    """Before or within one of the next `most` calls that change the state folder."""
    skip = chance.randrange(most)
    if chance.random() < 0.3:
        torn = shim.cause(agent.state, Call.WRITE, short=True, skip=skip, most=1)
        rest = shim.cause(agent.state, Call.WRITE, hang=True, skip=skip + 1, most=1)
        return at_call(rest, f"within write {skip}", torn)
    return at_call(shim.cause(agent.state, Call.STORING, hang=True, skip=skip, most=1), f"before storing {skip}")


def looking(chance: random.Random, agent: AgentProcess, shim: Shim) -> Moment:
    """Within one of the next looks at the watched folder or at a file there."""
    calls = chance.choice([Call.OPEN, Call.READ, Call.STAT, Call.LIST])
    skip = chance.randrange(60)
    return at_call(shim.cause(agent.folder, calls, hang=True, skip=skip, most=1), f"before {calls.name} {skip}")


def heard(chance: random.Random, witness: Witness) -> Moment:
    """As soon as one of the next messages has reached a subscriber."""
    more = chance.randint(1, 12)
    count = len(witness.messages) + more
    return Moment(f"at message {more}", lambda seconds: witness.wait_for(count, seconds))


def sending(chance: random.Random, shim: Shim, port: int) -> Moment:
    """Before one of the next pieces for the broker leaves the process: what it holds was said and is not out."""
    skip = chance.randrange(25)
    return at_call(shim.hold_back(port, skip=skip, most=1), f"before send {skip}")


def held_back(chance: random.Random, agent: AgentProcess, shim: Shim, port: int) -> Moment:
    """When a final or an alert has been given to a network that takes nothing: said, and never out."""
    event = chance.choice(["slide", "patient", "problem"])
    before = len(agent.events(event))
    never = threading.Event()

    def come(limit_s: float) -> bool:
        never.wait(10 * limit_s)
        # From the log line to the ledger and on to the network it takes a few milliseconds.
        return len(agent.events(event)) > before and not never.wait(HANDED_ON_S)

    return Moment(f"at {event}, while nothing leaves", come, [shim.hold_back(port)])


def logged(chance: random.Random, agent: AgentProcess) -> Moment:
    """At the next log event of a kind."""
    event = chance.choice(["slide", "patient", "problem", "mqtt_connected"])
    before = len(agent.events(event))
    never = threading.Event()
    return Moment(
        f"at log event {event}", lambda seconds: len(agent.events(event)) > before or never.wait(10 * seconds)
    )


def draw(chance: random.Random, phase: Phase, agent: AgentProcess, shim: Shim, witness: Witness) -> Moment:
    """A moment of this phase, by chance; for `shutdown` the moment of the second signal."""
    match phase:
        case "start-up":
            return storing(chance, agent, shim, 16) if chance.random() < 0.7 else after(chance.uniform(0.0, 1.4))
        case "reading":
            return looking(chance, agent, shim)
        case "ledger":
            return storing(chance, agent, shim, 30)
        case "publish":
            chosen = chance.randrange(3)
            if chosen == 0:
                return held_back(chance, agent, shim, witness.port)
            return sending(chance, shim, witness.port) if chosen == 1 else heard(chance, witness)
        case "shutdown":
            return storing(chance, agent, shim, 12) if chance.random() < 0.5 else after(chance.uniform(0.0, 0.4))
        case "any":
            return logged(chance, agent) if chance.random() < 0.3 else after(chance.uniform(0.0, 1.2))
