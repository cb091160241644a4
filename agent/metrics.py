"""The health figures as a Prometheus endpoint on loopback, when the settings ask for one: the same, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from agent.messages import INTENDED_USE, Drift, Health


class Exposition:
    """The endpoint's metrics, made of a health message at each scrape (a collector of prometheus_client)."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Every metric as it stands now."""
        now = self._health()
        for part in (_process, _patches, _stages, _rooms, _broker):
            yield from part(now)
        if now.drift is not None:
            yield from _drift(now.drift)


def _process(now: Health) -> Iterator[Metric]:
    about = {"version": now.version, "intended_use": INTENDED_USE}
    if now.profile is not None:
        about |= {"profile": now.profile.name, "profile_version": str(now.profile.version)}
        about |= {"profile_sha256": now.profile.sha256}
    yield InfoMetricFamily("srh_agent", "What runs, and what its answers are for", about)
    yield InfoMetricFamily("srh_engine", "What runs the network", now.engine.model_dump())
    passed_over = dict.fromkeys(now.passed_over, 1)
    yield _gauges("srh_engine_passed_over", "1 for an engine preferred to the one that runs", "engine", passed_over)
    replaced = now.engine_replacements
    yield CounterMetricFamily("srh_engine_replacements", "Engines that broke and were replaced by the next", replaced)
    if now.since is not None:
        yield _gauge("srh_start_time_seconds", "Start of the agent, since the epoch", now.since.timestamp())
    yield _gauge("srh_uptime_seconds", "Since the start of the agent", now.uptime_s)
    yield _gauge("srh_boot_sequence", "Starts of the agent on this ledger", now.boot_seq)
    yield _gauge("srh_resident_bytes", "Resident memory", now.rss_bytes)
    yield _gauge("srh_ledger_bytes", "The ledger on the disk", now.ledger_bytes)
    yield _gauge("srh_disk_free_bytes", "Free space where the ledger lies", now.disk_free_bytes)


def _patches(now: Health) -> Iterator[Metric]:
    patches = now.patches
    yield CounterMetricFamily("srh_patches_seen", "Patches whose place is known: used or rejected", patches.seen)
    yield CounterMetricFamily("srh_patches_used", "Patches that count in a posterior", patches.used)
    yield _counters("srh_patches_rejected", "Patches seen but not used", "reason", patches.rejected)
    yield CounterMetricFamily("srh_patches_corrected", "Patches counted anew: their pixels changed", now.corrected)
    yield CounterMetricFamily("srh_scan_only_finds", "Changes that only the scan found", now.scan_only_finds)
    yield CounterMetricFamily("srh_events_lost", "Times that listening for changes began anew", now.events_lost)
    yield _gauge("srh_folder_readable", "1 when the imager's folder answers and can be read", now.folder_readable)
    if now.last_byte_age_s is not None:
        yield _gauge("srh_last_byte_age_seconds", "Since the imager's last byte", now.last_byte_age_s)


def _stages(now: Health) -> Iterator[Metric]:
    bounds = [*(str(bound_ms / 1e3) for bound_ms in now.latency_bounds_ms), "+Inf"]
    family = HistogramMetricFamily("srh_stage_seconds", "Time that each stage took", labels=["stage"])
    for stage, took in now.latency.items():
        buckets = list(zip(bounds, accumulate(took.buckets), strict=True))
        family.add_metric([stage], buckets, took.sum_ms / 1e3)
    yield family


def _rooms(now: Health) -> Iterator[Metric]:
    depth, high, capacity = (
        {name: getattr(state, field) for name, state in now.handovers.items()}
        for field in ("depth", "high_water", "capacity")
    )
    yield _gauges("srh_handover_depth", "Items waiting between two rooms", "handover", depth)
    yield _gauges("srh_handover_high_water", "Most items that ever waited", "handover", high)
    yield _gauges("srh_handover_capacity", "Items that may wait before the room in front stops", "handover", capacity)


def _broker(now: Health) -> Iterator[Metric]:
    yield _gauge("srh_mqtt_connected", "1 while there is a broker", now.connected)
    yield CounterMetricFamily("srh_mqtt_reconnects", "Connections after the first", now.reconnects)
    yield _gauge("srh_outbox_messages", "Messages not yet acknowledged by the broker", now.outbox)
    yield CounterMetricFamily("srh_messages_dropped", "Unkept messages that could not be sent", now.dropped)
    yield CounterMetricFamily("srh_messages_refused", "Messages that the broker would not take", now.refused)
    yield _counters("srh_alerts", "Problems told to people", "reason", now.alerts)


def _drift(drift: Drift) -> Iterator[Metric]:
    yield _gauge("srh_recent_patches", "Used patches in the window of the figures srh_recent_*", drift.used)
    yield _gauge("srh_recent_judged_patches", "Those compared with the profile's reference", drift.judged)
    if drift.confidence is not None:
        yield _gauge("srh_recent_confidence_ratio", "Mean of their largest probabilities", drift.confidence)
    if drift.judged:
        marked = {"embedding_far": drift.embedding_far, "intensity_outside": drift.intensity_outside}
        shares = {mark: count / drift.judged for mark, count in marked.items()}
        yield _gauges("srh_recent_marked_ratio", "Share of judged patches unlike the reference", "mark", shares)
    if drift.limit is not None:
        yield _gauge("srh_marked_limit_ratio", "Share from which a decision is out_of_domain", drift.limit)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value)


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def serve_metrics(port: int, health: Callable[[], Health]) -> Callable[[], None]:
    """Serve http://127.0.0.1:`port`/metrics until the returned function is called.

    A port that cannot be had is logged, and nothing is served: answers must not wait for figures.
    """
    registry = CollectorRegistry()
    registry.register(Exposition(health))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        said = {"port": port, "reason": error.strerror, "mend": f"ss -ltnp 'sport = :{port}', then restart"}
        structlog.get_logger("agent").error("metrics_not_served", **said)
        return lambda: None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
