"""What the live benchmarks share: the built engine, a real agent with a real broker, and who heard what when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.engine import built_engines, choose, find_backend
from agent.errors import EngineError
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile
from tests.brokers import Listener, Mosquitto
from tests.faults.network import Relay
from tests.system.processes import AgentProcess, command

ORDER = ("openvino-bf16", "openvino", "eager")
PRECISIONS = ("bf16", "int8")
"""What the profile's built engines are measured in, where the processor has it."""
BUILD_LIMIT_S = 3600.0
POLL_S = 0.005
BROKER_SETTING = "set_tcp_nodelay true"
"""mosquitto holds small messages back by default: some 40 ms a message, whatever the agent does."""


def ensure_engines(profile: Path, console: Console, precisions: Sequence[str] = PRECISIONS) -> dict[str, str]:
    """See that the profile has engines that may be used here, built and proven by the command for it.

    Returns the entries of `engine.order` that can be used → what runs then, the first as the daemon would by itself.
    Raises EngineError when not even that one can be built; of others it is said why they are missing.
    """
    loaded = load_profile_folder(profile)
    found: dict[str, str] = {}
    offered = find_backend("openvino").precisions()
    for precision in dict.fromkeys(name if name in offered else "fp32" for name in precisions):
        entry = f"openvino-{precision}"
        try:
            found[entry] = _ensured(profile, loaded, entry, precision, console)
        except EngineError as reason:
            if not found:
                raise
            console.print(f"no {entry}: {reason}", highlight=False, markup=False)
    built = [f"{one.backend}-{one.precision}" for _, one in built_engines(profile) if one]
    for entry in dict.fromkeys(built):
        if entry not in found:
            with suppress(EngineError):  # it is not of this machine, say; nobody asked for it
                found[entry] = _words(profile, loaded, entry)
    return found


def _ensured(profile: Path, loaded: LoadedProfile, entry: str, precision: str, console: Console) -> str:
    try:
        return _words(profile, loaded, entry)
    except EngineError as reason:
        console.print(f"building {entry}: {reason}", highlight=False, markup=False)
    words = ("--profile", profile, "--backend", "openvino", "--precision", precision, "--json")
    done = command("agent.build_trt", *words, limit_s=BUILD_LIMIT_S)
    if done.returncode:
        raise EngineError(f"no engine can be built: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return _words(profile, loaded, entry)


def _words(profile: Path, loaded: LoadedProfile, entry: str) -> str:
    engine = choose(profile, loaded, (entry,), 0).engine
    name = f"{engine.name} {engine.precision}, batch {engine.batch_size}"
    engine.close()
    return name


@dataclass(frozen=True)
class Heard:
    """One result as the subscriber had it."""

    at: float
    """Monotonic seconds of its arrival; the same clock in every process of this machine."""
    body: dict[str, Any]

    @property
    def seen(self) -> int:
        """Patches that it speaks of."""
        return int(self.body["counts"]["seen"])

    @property
    def engine(self) -> str:
        """What answered, e.g. `openvino bf16`."""
        return "{name} {precision}".format(**self.body["engine"])

    @property
    def delivery_ms(self) -> float:
        """From the time that the message states of itself to its arrival; both clocks are this machine's."""
        made = datetime.fromisoformat(self.body["time"]).timestamp() - (time.time() - time.monotonic())
        return 1e3 * (self.at - made)


class Stage:
    """A running agent with the daemon's own defaults, its broker, and a subscriber of everything."""

    def __init__(self, agent: AgentProcess, listener: Listener, relay: Relay) -> None:
        self.agent = agent
        self.relay = relay
        """Between the agent and its broker."""
        self._listener = listener
        self._health: dict[str, Any] | None = None

    def results(self, patient: str, slide: str) -> list[Heard]:
        """Posteriors and finals of one slide, in the order of arrival."""
        name = self.agent.pseudonym(patient, slide).slide
        ends = (f"slide/{name}/posterior", f"slide/{name}/final")
        return [Heard(m.timestamp, json.loads(m.payload)) for m in self.messages(*ends)]

    def messages(self, *topic_ends: str) -> list[Any]:
        """Messages on topics with one of these endings, in the order of arrival."""
        return [message for message in list(self._listener.messages) if message.topic.endswith(topic_ends)]

    def bodies(self, topic_end: str) -> list[dict[str, Any]]:
        """What was said on topics with this ending, in the order of arrival."""
        return [json.loads(message.payload) for message in self.messages(topic_end)]

    def forget_messages(self) -> None:
        """Drop what was heard so far: the benchmark's own memory stays small."""
        self._listener.messages.clear()

    def take_messages(self) -> list[Any]:
        """What was heard since the last time, in the order of arrival; it is forgotten."""
        count = len(self._listener.messages)
        taken = self._listener.messages[:count]
        del self._listener.messages[:count]
        told = [message for message in taken if message.topic.endswith("/health")]
        if told:
            self._health = json.loads(told[-1].payload)
        return taken

    def last_health(self) -> dict[str, Any] | None:
        """The last health message that `take_messages` took."""
        return self._health

    def wait_for_final(self, patient: str, slide: str, limit_s: float, each: Callable[[], object]) -> Heard:
        """The slide's final; `each` runs at every look. Raises TimeoutError, or RuntimeError for a dead agent."""
        name = self.agent.pseudonym(patient, slide).slide
        deadline = time.monotonic() + limit_s
        while True:
            each()
            for message in self.messages(f"slide/{name}/final"):
                return Heard(message.timestamp, json.loads(message.payload))
            if self.agent.ended:
                raise RuntimeError("the agent ended: " + "\n".join(self.agent.log().splitlines()[-3:]))
            if time.monotonic() > deadline:
                raise TimeoutError(f"no final of {patient}/{slide} within {limit_s:.0f} s")
            time.sleep(POLL_S)

    def batch(self) -> int:
        """Rows of the engine's one batch shape, as the agent logged it."""
        return int(self.agent.events("engine")[-1]["batch"])


@contextmanager
def stage(folder: Path, profile: Path, *, relayed: bool = False, **settings: Any) -> Iterator[Stage]:
    """Broker, subscriber and agent, all ready; ended on the way out. `settings` are top-level sections.

    With `relayed`, the agent's connection goes through a relay that can cut it; else the relay is idle.
    """
    (folder / "broker").mkdir(parents=True)
    broker = Mosquitto(folder / "broker", BROKER_SETTING).start()
    relay = Relay(broker.port)
    try:
        listener = Listener(broker.port)
        port = relay.port if relayed else broker.port
        own = {"engine": {"order": list(ORDER)}, "patient": {}, "watch": {}}
        agent = AgentProcess(
            folder / "agent",
            port,
            profile=str(profile),
            mqtt={"port": port, "health_interval_s": 0.5},
            **{**own, **settings},
        )
        try:
            yield Stage(agent.start(), listener, relay)
        finally:
            agent.stop()
            listener.close()
    finally:
        relay.close()
        broker.kill()
