"""Metrics for Prometheus: a collector that reads ``cache.stats()`` whenever it is scraped, and costs nothing else.

Needs the extra ``prometheus``.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

from coherent_cache.core.stats import LAG_BUCKETS, CacheStats
from coherent_cache.telemetry.metrics import (
    AUDIT_METRICS,
    INSTANCE,
    METRICS,
    NAMESPACE,
    Metric,
    Named,
    prometheus_label,
)

if TYPE_CHECKING:
    from coherent_cache.cache import CoherentCache

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
            yield _family(metric, self._labels)

    def collect(self) -> Iterator[Family]:
        """Yield the metrics with what the caches say now."""
        with self._lock:
            caches = list(self._caches)
        snapshots = [((cache.namespace, cache.instance_id)[: len(self._labels)], cache.stats()) for cache in caches]
        for metric in METRICS:
            yield self._filled(_family(metric, self._labels), metric, snapshots)

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


class FleetCollector(Collector):
    """The metrics of all instances of a namespace, wherever they run, as they report themselves to Redis.

    For programs of many processes behind one port: one process has it, and each scrape is a round trip or two. Not all
    metrics are reported; states and horizons are the worst of an instance's shards.
    """

    def __init__(self, cache: CoherentCache) -> None:
        """Make a collector for a cache's namespace. The cache itself needs no local tier."""
        self._cache = cache

    def describe(self) -> Iterator[Family]:
        """Yield the metrics without numbers, so that a registry knows the names."""
        for metric in METRICS:
            if metric.reported is not None:
                yield _family(metric, (NAMESPACE, INSTANCE))

    def collect(self) -> Iterator[Family]:
        """Yield the metrics as they were reported last.

        Raises:
            CacheUnavailable: Redis is away or refused.
        """
        status = self._cache.fleet()
        known = Counter(report.instance for report in status.instances)
        # Ids are the users': where several have one, what tells them apart is shown too.
        names = [report.instance if known[report.instance] == 1 else report.member for report in status.instances]
        for metric in METRICS:
            family = _family(metric, (NAMESPACE, INSTANCE))
            if metric.reported is not None and not isinstance(family, HistogramMetricFamily):
                for name, report in zip(names, status.instances, strict=True):
                    for own, number in metric.reported(report):
                        family.add_metric([status.namespace, name, *own], number)
                yield family


class AuditCollector(Collector):
    """What a continuous audit of a fleet has found last."""

    def __init__(self, namespace: str, numbers: Callable[[], Mapping[str, float]]) -> None:
        """Make a collector.

        Args:
            namespace: the fleet's namespace.
            numbers: ``ContinuousAudit.numbers``.
        """
        self._namespace = namespace
        self._numbers = numbers

    def describe(self) -> Iterator[Family]:
        """Yield the metrics without numbers, so that a registry knows the names."""
        for metric in AUDIT_METRICS:
            yield _family(metric, (NAMESPACE,))

    def collect(self) -> Iterator[Family]:
        """Yield the metrics of the last audit."""
        numbers = self._numbers()
        for metric in AUDIT_METRICS:
            family = _family(metric, (NAMESPACE,))
            for own, name in metric.numbers.items():
                if name in numbers and not isinstance(family, HistogramMetricFamily):
                    family.add_metric([self._namespace, *own], numbers[name])
            yield family


def _family(metric: Named, labels: Sequence[str]) -> Family:
    names = [prometheus_label(label) for label in (*labels, *metric.labels)]
    match metric.kind:
        case "counter":
            return CounterMetricFamily(metric.prometheus, metric.help, labels=names)
        case "gauge":
            return GaugeMetricFamily(metric.prometheus, metric.help, labels=names)
        case "histogram":
            return HistogramMetricFamily(metric.prometheus, metric.help, labels=names)


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
