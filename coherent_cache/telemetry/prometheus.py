"""Metrics for Prometheus: a collector that reads ``cache.stats()`` whenever it is scraped, and costs nothing else.

Needs the extra ``prometheus``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Protocol

from coherent_cache.core.stats import LAG_BUCKETS, CacheStats
from coherent_cache.telemetry.metrics import INSTANCE, METRICS, NAMESPACE, Metric, prometheus_label

try:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry
except ImportError as error:
    raise ImportError(
        "prometheus-client is not installed here; install the extra: pip install 'coherent-cache[prometheus]'"
    ) from error

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_BOUNDS: Final = (*(str(bound) for bound in LAG_BUCKETS), "+Inf")


class Source(Protocol):
    """What metrics are read from: a :class:`~coherent_cache.CoherentCache` is one."""

    @property
    def namespace(self) -> str:
        """The namespace."""

    @property
    def instance_id(self) -> str:
        """Name of the instance."""

    def stats(self) -> CacheStats:
        """Return a snapshot of the counters."""


class CacheCollector(Collector):
    """The metrics of some caches of this process, for a registry of prometheus_client."""

    def __init__(self, *caches: Source, instance_label: bool = True) -> None:
        """Make a collector; register it with ``registry.register(collector)``. Caches are not kept alive by it.

        Args:
            caches: the caches.
            instance_label: False leaves the label ``cache_instance`` out: ids are new for each process, and so are the
                series then. Only where this process has one cache per namespace, and Prometheus scrapes it under an
                address of its own.
        """
        self._labels = (NAMESPACE, INSTANCE) if instance_label else (NAMESPACE,)
        self._lock = threading.Lock()
        self._caches: weakref.WeakSet[Source] = weakref.WeakSet(caches)

    def add(self, cache: Source) -> None:
        """Collect from another cache, too."""
        with self._lock:
            self._caches.add(cache)

    def remove(self, cache: Source) -> None:
        """Collect from a cache no longer."""
        with self._lock:
            self._caches.discard(cache)

    def describe(self) -> Iterator[Family]:
        """Yield the metrics without numbers, so that a registry knows the names."""
        for metric in METRICS:
            yield self._family(metric)

    def collect(self) -> Iterator[Family]:
        """Yield the metrics with what the caches say now."""
        with self._lock:
            caches = list(self._caches)
        snapshots = [((cache.namespace, cache.instance_id)[: len(self._labels)], cache.stats()) for cache in caches]
        for metric in METRICS:
            yield self._filled(self._family(metric), metric, snapshots)

    def _family(self, metric: Metric) -> Family:
        labels = [prometheus_label(label) for label in (*self._labels, *metric.labels)]
        match metric.kind:
            case "counter":
                return CounterMetricFamily(metric.prometheus, metric.help, labels=labels)
            case "gauge":
                return GaugeMetricFamily(metric.prometheus, metric.help, labels=labels)
            case "histogram":
                return HistogramMetricFamily(metric.prometheus, metric.help, labels=labels)

    def _filled(self, family: Family, metric: Metric, snapshots: Iterable[tuple[Sequence[str], CacheStats]]) -> Family:
        for labels, stats in snapshots:
            points = metric.read(stats)
            if isinstance(family, HistogramMetricFamily):
                counts = accumulate(count for _, count in points)
                family.add_metric(labels, list(zip(_BOUNDS, counts, strict=True)), stats.propagation_sum)
            else:
                for own, number in points:
                    family.add_metric([*labels, *own], number)
        return family


_collectors: Final[weakref.WeakKeyDictionary[CollectorRegistry, CacheCollector]] = weakref.WeakKeyDictionary()
_registering: Final = threading.Lock()


def register(cache: Source, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Have a registry show a cache's metrics; return what ends that.

    Any number of caches may be registered, each once. They are not kept alive by it, and a forked child shows its own
    numbers under its own instance id. For other labels, make a :class:`CacheCollector`.

    Args:
        cache: the cache.
        registry: the registry; by default the one that prometheus_client's servers show.

    Raises:
        ValueError: something else in the registry has one of our names.
    """
    with _registering:
        collector = _collectors.get(registry)
        if collector is None:
            collector = CacheCollector()
            registry.register(collector)
            _collectors[registry] = collector
        collector.add(cache)
    reference, found = weakref.ref(cache), collector

    def unregister() -> None:
        registered = reference()
        if registered is not None:
            found.remove(registered)

    return unregister
