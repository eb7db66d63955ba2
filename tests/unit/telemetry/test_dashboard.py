"""The dashboard and the alerts ask for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from coherent_cache.telemetry.metrics import AUDIT_METRICS, INSTANCE, LABELS, METRICS, NAMESPACE, prometheus_label

COMPOSE = Path(__file__).parents[3] / "compose"
DASHBOARD = COMPOSE / "grafana/dashboards/coherent-cache.json"
COMMON = {prometheus_label(NAMESPACE), prometheus_label(INSTANCE)}


def series():
    """Return the labels of all series, by name."""
    found = {}
    for metric in (*METRICS, *AUDIT_METRICS):
        labels = COMMON | set(map(prometheus_label, metric.labels))
        if metric.kind == "histogram":
            found |= {f"{metric.prometheus}_sum": labels, f"{metric.prometheus}_count": labels}
            found[f"{metric.prometheus}_bucket"] = labels | {"le"}
        else:
            found[metric.prometheus] = labels
    return found


def dashboard():
    return json.loads(DASHBOARD.read_text("utf-8"))


def expressions():
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']}:{target['refId']}")
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield pytest.param(variable["definition"], id=variable["name"])
    alerts = (COMPOSE / "prometheus/alerts.yaml").read_text("utf-8")
    found = re.findall(r"- alert: (\w+)\n +expr: (.*?)\n +(?:for|labels):", alerts, re.DOTALL)
    assert len(found) == alerts.count("- alert:")
    for name, text in found:
        yield pytest.param(text, id=name)


@pytest.mark.parametrize("expression", list(expressions()))
def test_an_expression_names_what_there_is(expression):
    names = set(re.findall(r"\bcoherent_cache\w+", expression))
    assert names
    known = series()
    assert names <= known.keys()
    used = set(re.findall(r"\bcache_\w+", expression))
    assert used <= set.intersection(*(known[name] for name in names)) | COMMON
    assert expression.count("(") == expression.count(")")


def test_every_metric_of_the_table_is_on_the_dashboard_or_a_finer_one_is():
    shown = set(re.findall(r"\bcoherent_cache\w+", json.dumps(dashboard())))
    missing = {
        metric.prometheus
        for metric in METRICS
        if not shown & {metric.prometheus, f"{metric.prometheus}_bucket"}
    }  # fmt: skip
    # The buckets tell more than the recent quantiles.
    assert missing == {"coherent_cache_redis_hits_total", "coherent_cache_propagation_recent_seconds"}


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_labels_in_the_alerts_texts_are_those_of_the_expression():
    text = (COMPOSE / "prometheus/alerts.yaml").read_text("utf-8")
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= set(map(prometheus_label, LABELS))
