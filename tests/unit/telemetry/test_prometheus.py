"""Metrics for Prometheus, as its own client library shows and parses them."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from math import inf

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from coherent_cache.core.overview import FleetStatus
from coherent_cache.core.questions import InstanceReport
from coherent_cache.core.stats import LAG_BUCKETS
from coherent_cache.telemetry.metrics import METRICS
from coherent_cache.telemetry.prometheus import AuditCollector, CacheCollector, FleetCollector, register

WHO = {"cache_namespace": "shop", "cache_instance": "worker-1"}


@pytest.fixture
def registry():
    return CollectorRegistry()


def samples(registry):
    """Return what a scrape shows: numbers by name and labels."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(registry, name, **labels):
    return samples(registry)[name, tuple(sorted((WHO | labels).items()))]


def test_a_scrape_shows_what_stats_says(registry, coherent_cache_memory):
    cache = coherent_cache_memory
    register(cache, registry)
    cache.set("a", 1)
    assert (cache.get("a"), cache.get("a"), cache.get("absent")) == (1, 1, None)
    cache.set("a", 2)
    stats = cache.stats()
    assert stats.hits == 2
    assert value(registry, "coherent_cache_hits_total") == 2
    assert value(registry, "coherent_cache_misses_total") == stats.misses
    assert value(registry, "coherent_cache_entries") == 1
    assert value(registry, "coherent_cache_memory_bytes") == stats.bytes
    assert sum(stats.removals.values()) == 1
    for cause, number in stats.removals.items():
        assert value(registry, "coherent_cache_removals_total", cache_cause=cause) == number
    assert value(registry, "coherent_cache_state", cache_shard="0", cache_state="coherent") == 1
    assert 0 <= value(registry, "coherent_cache_horizon_age_seconds", cache_shard="0") < 60


def test_the_propagation_is_a_histogram(registry, coherent_cache_memory, coherent_cache_factory):
    register(coherent_cache_memory, registry)
    coherent_cache_memory.wait_ready()
    seen = threading.Event()
    coherent_cache_memory.on_event(lambda event: seen.set() if event.name == "invalidation" else None)
    coherent_cache_factory(instance_id="writer").set("a", 1)
    assert seen.wait(30)
    found = samples(registry)
    buckets = [
        (dict(labels)["le"], number)
        for (name, labels), number in found.items()
        if name == "coherent_cache_propagation_seconds_bucket"
    ]
    assert [bound for bound, _ in buckets] == [*map(str, LAG_BUCKETS), "+Inf"]
    numbers = [number for _, number in buckets]
    assert numbers == sorted(numbers)
    assert value(registry, "coherent_cache_propagation_seconds_count") == numbers[-1] >= 1
    assert value(registry, "coherent_cache_propagation_seconds_sum") >= 0


def test_every_metric_of_the_table_is_shown(registry, coherent_cache_memory):
    register(coherent_cache_memory, registry)
    shown = {family.name for family in registry.collect()}
    assert shown == {metric.prometheus.removesuffix("_total") for metric in METRICS}


def test_openmetrics_can_be_parsed_too(registry, coherent_cache_memory):
    register(coherent_cache_memory, registry)
    families = list(parse_openmetrics(generate_openmetrics(registry).decode()))
    assert len(families) == len(METRICS)


def test_several_caches_share_a_registry(registry, coherent_cache_factory):
    for name in ("one", "two"):
        cache = coherent_cache_factory(instance_id=name)
        register(cache, registry)
        cache.set(name, 1)
        cache.get(name)
    assert value(registry, "coherent_cache_hits_total", cache_instance="one") == 1
    assert value(registry, "coherent_cache_hits_total", cache_instance="two") == 1


def test_who_is_registered_twice_is_shown_once(registry, coherent_cache_memory):
    register(coherent_cache_memory, registry)
    register(coherent_cache_memory, registry)
    shown = [name for name, _ in samples(registry) if name == "coherent_cache_hits_total"]
    assert len(shown) == 1


def test_registering_can_be_undone(registry, coherent_cache_memory):
    unregister = register(coherent_cache_memory, registry)
    assert samples(registry)
    unregister()
    unregister()
    assert not samples(registry)


def test_a_registry_keeps_no_cache_alive(registry, coherent_cache_factory):
    collector = CacheCollector()
    registry.register(collector)

    class Source:
        namespace, instance_id = "shop", "gone"

        def __init__(self, stats):
            self.stats = stats

    source = Source(coherent_cache_factory().stats)
    collector.add(source)
    assert value(registry, "coherent_cache_hits_total", cache_instance="gone") == 0
    reference = weakref.ref(source)
    del source
    gc.collect()
    assert reference() is None
    assert not samples(registry)


def test_the_instance_can_be_left_to_prometheus(registry, coherent_cache_memory):
    registry.register(CacheCollector(coherent_cache_memory, instance_label=False))
    assert samples(registry)["coherent_cache_hits_total", (("cache_namespace", "shop"),)] == 0


def test_another_metric_of_our_name_is_told_at_once(registry, coherent_cache_memory):
    Counter("coherent_cache_hits", "Not ours.", registry=registry)
    with pytest.raises(ValueError, match="coherent_cache_hits"):
        register(coherent_cache_memory, registry)


def test_hostile_names_are_escaped(registry, coherent_cache_factory):
    cache = coherent_cache_factory(instance_id='x"}\\')
    register(cache, registry)
    assert value(registry, "coherent_cache_hits_total", cache_instance='x"}\\') == 0


class Fleet:
    """Stands for a cache whose fleet the test chooses."""

    def __init__(self, *reports):
        self._reports = reports

    def fleet(self):
        return FleetStatus(namespace="shop", server="", exists=True, instances=self._reports, silent=())


def reported(member, instance, hits):
    return InstanceReport(member=member, instance=instance, hits=hits)


def test_one_process_shows_a_whole_fleet(registry):
    registry.register(FleetCollector(Fleet(*(reported(f"{name}:1", name, 7) for name in ("one", "two")))))
    assert [value(registry, "coherent_cache_hits_total", cache_instance=name) for name in ("one", "two")] == [7, 7]
    assert value(registry, "coherent_cache_horizon_age_seconds", cache_instance="one", cache_shard="all") == inf


def test_a_fleet_shows_only_what_is_reported(registry):
    registry.register(FleetCollector(Fleet()))
    shown = {family.name for family in registry.collect()}
    assert shown == {metric.prometheus.removesuffix("_total") for metric in METRICS if metric.reported}
    assert not samples(registry)


def test_instances_of_one_id_are_told_apart(registry):
    registry.register(FleetCollector(Fleet(reported("web:1", "web", 1), reported("web:2", "web", 2))))
    assert [value(registry, "coherent_cache_hits_total", cache_instance=name) for name in ("web:1", "web:2")] == [1, 2]


def test_an_audits_numbers_are_shown_as_far_as_there_are_any(registry):
    numbers = {"runs": 0, "failures": 1}
    registry.register(AuditCollector("shop", lambda: numbers))
    where = ("cache_namespace", "shop")
    assert samples(registry) == {
        ("coherent_cache_audit_runs_total", (where,)): 0,
        ("coherent_cache_audit_failures_total", (where,)): 1,
    }
    numbers |= {"runs": 1, "beyond_bound": 2, "consistency_0.1s": 0.5, "consistency_10s": 1.0}
    found = samples(registry)
    assert found["coherent_cache_audit_beyond_bound", (where,)] == 2
    assert found["coherent_cache_audit_consistency_ratio", (("cache_delay", "0.1"), where)] == 0.5
    assert found["coherent_cache_audit_consistency_ratio", (("cache_delay", "10"), where)] == 1


MISSING = """
import sys
sys.modules["{name}"] = None
try:
    import coherent_cache.telemetry.{module}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("prometheus_client", "prometheus", "prometheus"), ("opentelemetry", "opentelemetry", "otel")],
)
def test_without_the_extra_the_import_says_what_to_install(name, module, extra):
    code = MISSING.format(name=name, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"pip install 'coherent-cache[{extra}]'" in done.stdout
