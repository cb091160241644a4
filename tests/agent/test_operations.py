"""Promises of docs/grafana.json and of the alert rules in docs/operations.md: they speak of metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from agent.doctor.command import CHECKS
from agent.metrics import Exposition
from tests.agent.test_metrics import health

DOCS = Path(__file__).resolve().parents[2] / "docs"
STAGES = {
    "last_byte_to_batch",
    "inference",
    "batch_to_record",
    "last_byte_to_result",
    "ledger_write",
    "publish_to_puback",
}
EXPRESSION_LABELS = {"instance", "stage", "reason", "handover", "mark", "le"}
ADDRESS = re.compile(r"https?://|\b\d+\.\d+\.\d+\.\d+\b|localhost|\.(local|lan|org|com|net)\b")


def metrics() -> list[Metric]:
    """What the endpoint serves when every figure is known."""
    registry = CollectorRegistry()
    registry.register(Exposition(health))
    return list(registry.collect())


SAMPLES = {sample.name for family in metrics() for sample in family.samples}
"""Names as they are served, e.g. with _total and _bucket."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana would read it."""
    content: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    return content


def objects(node: object) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(child)


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Every PromQL expression of it."""
    return [node["expr"] for node in objects(dashboard) if "expr" in node]


def rules() -> list[dict[str, Any]]:
    """The alert rules that docs/operations.md offers."""
    block = re.search(r"```yaml\n(groups:.+?)```", (DOCS / "operations.md").read_text(encoding="utf-8"), re.S)
    assert block is not None
    return [rule for group in yaml.safe_load(block[1])["groups"] for rule in group["rules"]]


def test_the_dashboard_is_of_grafana_10_or_later(dashboard: dict[str, Any]) -> None:
    """Schema, title, a uid of its own, and no id: that is Grafana's to give."""
    assert dashboard["schemaVersion"] >= 37
    assert dashboard["id"] is None and dashboard["uid"] == "spinextract-agent"
    assert "research use only" in dashboard["title"]


def test_the_data_source_is_a_variable(dashboard: dict[str, Any]) -> None:
    """It can be imported anywhere: no panel names a data source of somebody's machine."""
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    sources = [node["datasource"]["uid"] for node in objects(dashboard) if isinstance(node.get("datasource"), dict)]
    assert set(sources) == {"${datasource}"}


def test_panels_have_ids_titles_and_places_of_their_own(dashboard: dict[str, Any]) -> None:
    """Unique ids; each panel says what it shows; none lies over another or beyond the 24 columns."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        assert panel["title"] and (panel["type"] == "row" or (panel["description"] and panel["targets"]))
        taken |= cells


@pytest.mark.parametrize("source", ["dashboard", "rules"])
def test_every_metric_that_is_asked_for_is_served(dashboard: dict[str, Any], source: str) -> None:
    """Each name in an expression is one of the endpoint's, and so are stages and labels."""
    found = expressions(dashboard) if source == "dashboard" else [rule["expr"] for rule in rules()]
    assert len(found) >= 8
    for expression in found:
        names = set(re.findall(r"\bsrh_[a-z_]+", expression))
        assert names and names <= SAMPLES, expression
        assert set(re.findall(r'stage="(\w+)"', expression)) <= STAGES, expression
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        assert {label.strip() for part in grouped for label in part.split(",")} <= EXPRESSION_LABELS, expression
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


def test_every_metric_is_shown(dashboard: dict[str, Any]) -> None:
    """No figure is served that nobody would see, but for those that others make up."""
    shown = {name for expression in expressions(dashboard) for name in re.findall(r"\bsrh_[a-z_]+", expression)}
    derived = {"srh_stage_seconds_count", "srh_patches_seen_total", "srh_recent_patches", "srh_recent_judged_patches"}
    assert {*derived, "srh_start_time_seconds"} == SAMPLES - shown


def test_no_machine_is_named(dashboard: dict[str, Any]) -> None:
    """No host, address or link in it."""
    assert ADDRESS.search(json.dumps(dashboard)) is None


def test_alert_rules_say_what_to_do() -> None:
    """Each rule has a name, a time that it must hold for, a severity, and one sentence for whoever is called."""
    for rule in rules():
        assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_operations_explains_every_metric_stage_and_check() -> None:
    """docs/operations.md has a line for each metric, each stage, and each of doctor's checks."""
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    for family in metrics():
        name = {"counter": f"{family.name}_total", "info": f"{family.name}_info"}.get(family.type, family.name)
        assert f"`{name}`" in text, name
    assert all(f"`{stage}`" in text for stage in STAGES)
    assert all(f"`{check.name}`" in text for check in CHECKS if check.name not in ("secrets", "ports"))


EVENT = re.compile(r"\.(?:debug|info|warning|error)\(\s*\"([a-z_]+)\"")


def test_operations_explains_every_event_of_the_logs() -> None:
    """Each event that any module of the agent logs has its line in docs/operations.md."""
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    sources = sorted((DOCS.parent / "agent").rglob("*.py"))
    events = {event for path in sources for event in EVENT.findall(path.read_text(encoding="utf-8"))}
    assert len(events) > 20
    assert sorted(event for event in events if f"`{event}`" not in text) == []
