"""Workers that are instrumented before they fork. The other workers need not import what that takes."""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from coherent_cache import CoherentCache
from integration.fork_workers import Child
from integration.workers import worker

if TYPE_CHECKING:
    from integration.workers import Context


@worker
def fork_instrumented(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Instrument in the parent, bring the SDK in the child, as the documentation says."""
    from coherent_cache.telemetry.opentelemetry import instrument
    from coherent_cache.telemetry.prometheus import register

    with CoherentCache(url, **options) as cache:
        register(cache)
        instrument(cache)
        cache.set("a", 1)
        for _ in range(3):
            cache.get("a")

        def child() -> dict[str, Any]:
            from opentelemetry import metrics
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import InMemoryMetricReader

            reader = InMemoryMetricReader()
            metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
            cache.set("a", 2)
            cache.get("a")
            return _seen(cache) | {"otel": json.loads(reader.get_metrics_data().to_json())}

        return {"parent": _seen(cache), "child": Child(child).result()}


def _seen(cache: CoherentCache) -> dict[str, Any]:
    """Return whose hits a scrape of this process shows."""
    from prometheus_client import generate_latest

    shown = [line for line in generate_latest().decode().splitlines() if line.startswith("coherent_cache_hits_total")]
    return {"id": cache.instance_id, "hits": cache.stats().hits, "shown": shown}
