"""docs/reference/metrics.md says what the table of metrics says. Run this file to write the page anew."""

from __future__ import annotations

from pathlib import Path

from coherent_cache.core.stats import LAG_BUCKETS
from coherent_cache.telemetry.metrics import AUDIT_METRICS, INSTANCE, LABELS, METRICS, NAMESPACE, prometheus_label

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"


def page():
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines():
    yield "# Metrics"
    yield ""
    yield "What `coherent_cache.telemetry.prometheus` and `coherent_cache.telemetry.opentelemetry` give"
    yield "([how to](../how-to/metrics.md)). The names of the one follow from those of the other, so that one dashboard"
    yield "serves both. Counters begin at 0 with each process. `coherent-cache exporter` gives those of a"
    yield "whole fleet that are marked *reported*."
    yield ""
    yield "| Prometheus | OpenTelemetry | kind | unit | labels | what | |"
    yield "|---|---|---|---|---|---|---|"
    for metric in METRICS:
        labels = ", ".join(f"`{prometheus_label(label)}`" for label in metric.labels)
        unit = f"`{metric.unit}`" if metric.unit else ""
        reported = "*reported*" if metric.reported else ""
        names = f"`{metric.prometheus}` | `{metric.name}`"
        yield f"| {names} | {metric.kind} | {unit} | {labels} | {metric.help} | {reported} |"
    yield ""
    yield f"The classes of the histogram end at {', '.join(map(str, LAG_BUCKETS))} seconds."
    yield ""
    yield "## Of a fleet's last audit"
    yield ""
    yield "By `coherent-cache exporter --audit SECONDS`, or `AuditCollector`. They are of no instance."
    yield ""
    yield "| Prometheus | kind | labels | what |"
    yield "|---|---|---|---|"
    for audited in AUDIT_METRICS:
        labels = ", ".join(f"`{prometheus_label(label)}`" for label in audited.labels)
        yield f"| `{audited.prometheus}` | {audited.kind} | {labels} | {audited.help} |"
    yield ""
    yield "## Labels"
    yield ""
    names = f"`{prometheus_label(NAMESPACE)}` and, unless it is left out, `{prometheus_label(INSTANCE)}`"
    yield f"All metrics of instances have {names}."
    yield ""
    yield "| Prometheus | OpenTelemetry | what |"
    yield "|---|---|---|"
    for label, text in LABELS.items():
        yield f"| `{prometheus_label(label)}` | `{label}` | {text} |"


def test_the_page_is_current():
    assert PAGE.read_text("utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
