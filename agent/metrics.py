"""The health figures as a Prometheus endpoint on loopback, when the settings ask for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.messages import Health


class _Collector:
    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        now = self._health()
        yield CounterMetricFamily("srh_patches_used", "Patches that count in a posterior", now.patches.used)
        rejected = CounterMetricFamily("srh_patches_rejected", "Patches seen but not used", labels=["reason"])
        for reason, count in now.patches.rejected.items():
            rejected.add_metric([reason], count)
        yield rejected
        depth = GaugeMetricFamily("srh_handover_depth", "Items waiting between two rooms", labels=["handover"])
        high = GaugeMetricFamily("srh_handover_high_water", "Most items that ever waited", labels=["handover"])
        for name, state in now.handovers.items():
            depth.add_metric([name], state.depth)
            high.add_metric([name], state.high_water)
        yield from (depth, high)
        yield GaugeMetricFamily("srh_outbox_messages", "Messages not yet acknowledged by the broker", now.outbox)
        yield CounterMetricFamily("srh_mqtt_reconnects", "Connections after the first", now.reconnects)
        yield CounterMetricFamily("srh_scan_only_finds", "Changes that only the scan found", now.scan_only_finds)
        yield GaugeMetricFamily("srh_uptime_seconds", "Since the start of the agent", now.uptime_s)
        yield GaugeMetricFamily("srh_resident_bytes", "Resident memory", now.rss_bytes)
        if now.last_byte_age_s is not None:
            yield GaugeMetricFamily("srh_last_byte_age_seconds", "Since the imager's last byte", now.last_byte_age_s)


def serve_metrics(port: int, health: Callable[[], Health]) -> Callable[[], None]:
    """Serve http://127.0.0.1:`port`/metrics until the returned function is called."""
    registry = CollectorRegistry()
    registry.register(_Collector(health))
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
