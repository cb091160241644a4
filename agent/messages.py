"""What every payload says of itself, and the payloads about the process: status, health, current, alert.

Pure: knows no topic, broker, clock or ledger. Results are in agent.results, commands in agent.commands, and where
each payload goes in agent.topics.
"""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from models.profile import Frozen

INTENDED_USE: Literal["research use only"] = "research use only"

UtcTime = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]
"""ISO 8601 with time zone; always written as UTC."""
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ProfileRef(Frozen):
    """Which weights answered."""

    name: str
    """Of the profile, e.g. `phantom`."""
    version: int
    """Grows when the profile's maker changes it."""
    sha256: str
    """Of its manifest, which names the checksums of its other files."""


class EngineRef(Frozen):
    """What ran them."""

    name: str
    """`openvino`, `eager`, `tensorrt` or `inductor`."""
    precision: str
    """`fp32`, `bf16`, `fp16` or `int8`."""


class Counts(Frozen):
    """Patches so far. Nothing is counted twice and nothing is invented: seen = used + rejected."""

    seen: Count
    """Patches of which all pixels came, or that are known to be lost."""
    used: Count
    """Those that the answer rests on."""
    rejected: dict[str, Count] = {}
    """Reason → patches."""

    @model_validator(mode="after")
    def _balance(self) -> Counts:
        rejected = sum(self.rejected.values())
        if self.seen != self.used + rejected:
            raise ValueError(f"seen {self.seen} is not used {self.used} + rejected {rejected}")
        return self


class QueueState(Frozen):
    """One hand-over between two rooms."""

    depth: Count
    """Items that wait now."""
    high_water: Count
    """Most that ever waited."""
    capacity: Count
    """Most that may wait."""


class Payload(Frozen):
    """What every message says of itself."""

    kind: str
    event_id: str = Field(min_length=1, max_length=64)
    """Consumers drop a message whose event_id they have seen."""
    session_id: str
    """One start of the agent."""
    time: UtcTime
    """When this was said."""


class Status(Payload):
    """Birth (`online`), clean end (`stopped`) and last will (`offline`)."""

    kind: Literal["status"] = "status"
    state: Literal["online", "stopped", "offline"]
    """`online`; `stopped`: ended by itself; `offline`: said by the broker, the agent is gone."""
    boot_seq: Count
    """Grows by one with every start on this ledger: tells an old will from a new birth."""
    version: str
    """Of the agent."""
    profile: ProfileRef
    """Which weights answer."""
    engine: EngineRef
    """What runs them."""
    passed_over: dict[str, str] = {}
    """Engine → why it was not used, for engines preferred to the one that runs."""
    since: UtcTime
    """Start of the agent that speaks."""
    intended_use: Literal["research use only"] = INTENDED_USE
    """Not for diagnosis or treatment."""

    def is_older_than(self, other: Status) -> bool:
        """Whether it speaks of an earlier start than `other` and must not replace it: a will may come late.

        Both figures must say so: boot_seq begins anew with a new ledger, and a clock may be set back.
        """
        return self.boot_seq < other.boot_seq and self.since < other.since


class StageLatency(Frozen):
    """How long one stage took, each time since the start."""

    count: Count
    """How many were measured."""
    sum_ms: float = Field(ge=0)
    """All of them together."""
    p50_ms: float | None = Field(None, ge=0)
    """Half took no longer; null before the first."""
    p99_ms: float | None = Field(None, ge=0)
    """One in a hundred took longer."""
    buckets: tuple[Count, ...]
    """How many took up to each of `latency_bounds_ms` and longer than the one before; the last: longer than all."""


class Drift(Frozen):
    """The latest used patches, whatever slide they were of: does the imager still give what the profile is for?"""

    used: Count
    """Patches in the window, at most 1000."""
    confidence: Probability | None = None
    """Mean of their largest probabilities; null without patches."""
    judged: Count = 0
    """Those that were compared with the profile's reference; 0 when it has none."""
    embedding_far: Count = 0
    """Those whose embedding lies far from the reference's."""
    intensity_outside: Count = 0
    """Those whose intensity statistics lie outside the reference's range."""
    limit: Probability | None = None
    """Share of marked patches from which a result's decision is `out_of_domain`."""


class AuditHead(Frozen):
    """How far the audit log has come. Whoever keeps this can prove later that nothing before it was changed."""

    entries: Count
    """Entries in the log; they are numbered from 1."""
    head: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the last of them, which rests on all before it: `python -m agent verify --head`."""


class Health(Payload):
    """Figures about the process since its start; expires, so that a dead agent's figures do not linger.

    The Prometheus endpoint serves the same figures.
    """

    kind: Literal["health"] = "health"
    version: str = ""
    """Of the agent."""
    boot_seq: Count = 0
    """As in `status`."""
    profile: ProfileRef | None = None
    """Which weights answer."""
    engine: EngineRef
    """What runs them."""
    passed_over: tuple[str, ...] = ()
    """Engines preferred to the one that runs; `status` says why."""
    engine_replacements: Count = 0
    """Times that the engine in service broke and the next one took over."""
    since: UtcTime | None = None
    """Start of the agent, as in `status`."""
    uptime_s: float = Field(ge=0)
    """Seconds since the start."""
    patches: Counts
    """Those counted since the start; what the ledger brought back is in results only."""
    corrected: Count = 0
    """Patches counted anew since the start, since their pixels had changed in the folder."""
    handovers: dict[str, QueueState]
    """Hand-over between two rooms → how full it is."""
    latency_bounds_ms: tuple[float, ...] = ()
    """Upper bounds of the buckets in `latency`."""
    latency: dict[str, StageLatency] = {}
    """Stage → how long it took (docs/operations.md says where each begins and ends)."""
    drift: Drift | None = None
    """What the latest patches look like."""
    connected: bool = True
    """Whether there is a broker; false only where this is read without one."""
    outbox: Count
    """Messages not yet acknowledged by the broker."""
    reconnects: Count
    """Connections to the broker after the first."""
    dropped: Count = 0
    """Messages that were not kept (heat map, health) and could not be sent."""
    refused: Count = 0
    """Messages that the broker would not take."""
    alerts: dict[str, Count] = {}
    """Reason → alerts."""
    folder_readable: bool = True
    """Whether the imager's folder answers, and the last look at it succeeded."""
    folder_trouble: str | None = None
    """Why not; null when it could be read."""
    scan_only_finds: Count
    """Files that no event announced and only the scan found."""
    events_lost: Count = 0
    """Times that listening for events was begun anew, since some were lost."""
    last_byte_age_s: float | None = Field(None, ge=0)
    """Seconds since the imager's last byte; null before the first."""
    rss_bytes: Count
    """Resident memory of the process."""
    ledger_bytes: Count = 0
    """The ledger on the disk."""
    disk_free_bytes: Count = 0
    """Free space where the ledger lies."""
    audit: AuditHead | None = None
    """The end of the audit log (docs/audit.md); null only where this is read without one."""


class Current(Payload):
    """What is being imaged now; nulls when nothing is, or nothing was for a while. Holds while status is `online`."""

    kind: Literal["current"] = "current"
    patient: str | None = None
    """Pseudonym of who is on the table."""
    slide: str | None = None
    """Pseudonym of the slide that is arriving."""


class Alert(Payload):
    """Something a person should look at. Never coalesced; holds no identity, only pseudonyms."""

    kind: Literal["alert"] = "alert"
    severity: Literal["warning", "error"]
    """`warning`: time or a person may mend it; `error`: a file contradicts itself."""
    reason: str
    """A stable word (FormatError.REASONS among others)."""
    detail: str = Field(max_length=1000)
    """One sentence for people."""
    patient: str | None = None
    """Whom it concerns, if that is known."""
    slide: str | None = None
    """Which slide it concerns, if that is known."""
    file: str | None = None
    """Pseudonym of the file."""
