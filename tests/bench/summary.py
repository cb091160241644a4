"""One row for each engine of what the benchmarks of one run found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

TITLES = {
    "naive": "published way",
    "naive-tuned": "published way, memory kept",
    "eager": "eager fp32",
    "openvino-fp32": "openvino fp32",
    "openvino-bf16": "openvino bf16",
    "openvino-int8": "openvino int8",
    "inductor-bf16": "inductor bf16",
}
PIPELINE = {
    "naive": "naive",
    "naive-tuned": "naive-tuned",
    "eager": "eager-strips",
    "openvino-bf16": "bf16-strips",
    "openvino-int8": "int8-strips",
}
"""Engine → its variant of the benchmark `pipeline`."""
COLUMNS = (
    "every core, medians",
    "engine, batch 1",
    "batch 32",
    "× published",
    "of peak",
    "files → posterior",
    "× published",
    "row → message, ms: p50, p99",
    "added: p99",
    "READY, s",
    "MiB then",
)
NONE = "–"


def summary(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """`found`: what each benchmark's `document` gave, by its name; what did not run is left open."""
    table = Table(*COLUMNS, title="Summary", title_justify="left")
    for name, title in TITLES.items():
        cells = [*_engine(found, name), *_pipeline(found, name), *_latency(found, name), *_start(found, name)]
        if set(cells) != {NONE}:
            table.add_row(title, *cells)
    return table


def _engine(found: Mapping[str, Any], name: str) -> list[str]:
    threads = found.get("engines", {}).get("threads", {})
    ways = threads[max(threads, key=int)]["ways"] if threads else {}
    if name not in ways:
        return [NONE] * 4
    cells = ways[name]["batches"]
    first, last = cells[min(cells, key=int)], cells[max(cells, key=int)]
    shares = [cell["share_of_peak"] for cell in cells.values() if cell["share_of_peak"] is not None]
    times = ", ".join(f"{cell['times_published']['median']:.1f}" for cell in (first, last))
    rates = [f"{cell['patches_per_s']['median']:.1f}" for cell in (first, last)]
    return [*rates, times, f"{max(shares):.0%}" if shares else NONE]


def _pipeline(found: Mapping[str, Any], name: str) -> list[str]:
    row = found.get("pipeline", {}).get("variants", {}).get(PIPELINE.get(name))
    if row is None:
        return [NONE] * 2
    return [f"{row['patches_per_s']['median']:.1f}", f"{row['times_published']['median']:.1f}"]


def _latency(found: Mapping[str, Any], name: str) -> list[str]:
    one = found.get("latency", {}).get("engines", {}).get(name)
    if one is None:
        return [NONE] * 2
    total = one["row_total_ms"]
    return [f"{total['median']:.0f}, {total['p99']:.0f}", f"{one['row_added_ms']['p99']:.0f}"]


def _start(found: Mapping[str, Any], name: str) -> list[str]:
    one = found.get("start", {}).get("engines", {}).get(name)
    if one is None:
        return [NONE] * 2
    return [f"{one['ready_s']['median']:.2f}", f"{one['rss_mib']['median']:.0f}"]
