"""Metrics and traces for OpenTelemetry: metrics when they are collected, spans for what leaves the process.

Needs the extra ``otel``, which is OpenTelemetry's API; the application brings the SDK and says where all of it goes.
A local hit makes no span and runs none of this.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from typing import Any, Final

from coherent_cache.__about__ import __version__
from coherent_cache.core.requests import (
    FRONT_REQUESTS,
    FloorRequest,
    FrontRequest,
    LeaseRequest,
    LoadRequest,
    RenewRequest,
    Request,
    TouchRequest,
    WaitRequest,
)
from coherent_cache.core.stats import LAG_BUCKETS, CacheStats
from coherent_cache.events import Event, InvalidationReceived
from coherent_cache.front import Front
from coherent_cache.telemetry.metrics import INSTANCE, METRICS, NAMESPACE, SHARD, Metric

try:
    from opentelemetry.metrics import (
        CallbackOptions,
        Histogram,
        MeterProvider,
        NoOpMeterProvider,
        Observation,
        get_meter,
    )
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, get_tracer
except ImportError as error:
    raise ImportError(
        "opentelemetry-api is not installed here; install the extra: pip install 'coherent-cache[otel]'"
    ) from error

SCOPE: Final = "coherent_cache"
"""Name of the instrumentation scope of all metrics and spans."""

KEYS: Final = "cache.keys"
"""Attribute of spans, only if it is allowed: the keys, or tags, concerned; the first ``MAX_KEYS_PER_SPAN`` of them."""

KEY_COUNT: Final = "cache.key_count"
"""Attribute of spans: how many keys, or tags, are concerned."""

MAX_KEYS_PER_SPAN: Final = 32
"""Keys shown on one span: a request may have 1,000."""

_DB_SYSTEM: Final = "db.system.name"
_DB_OPERATION: Final = "db.operation.name"
_SERVER: Final = "server.address"
_ERROR: Final = "error.type"


def instrument(
    cache: Front,
    *,
    metrics: bool = True,
    traces: bool = True,
    keys: bool = False,
    propagation_histogram: bool = False,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Callable[[], None]:
    """Tell OpenTelemetry about a cache; return what ends that.

    The cache is not kept alive by it. A forked child goes on under its own instance id, as far as the SDK survives the
    fork: begin its exporters in the child.

    Args:
        cache: the cache.
        metrics: give its metrics, read whenever they are collected.
        traces: make a span for each round trip to Redis, call of a loader and wait for another one's, as children of
            the span that is current. Spans hold no values, no messages of errors and no credentials.
        keys: show keys and tags on spans. They may say more about people than a trace should.
        propagation_histogram: record the propagation of each message: OpenTelemetry has no histograms that are read
            when they are collected. It costs the subscriber an event and a record per message.
        meter_provider: whose meter to use; None for the global one.
        tracer_provider: whose tracer to use; None for the global one.

    Raises:
        ConfigError: ``traces``, and another tracer is set already.
    """
    ends: list[Callable[[], object]] = []
    if traces:
        cache.set_tracer(RequestTracer(cache, keys=keys, tracer_provider=tracer_provider))
        ends.append(_later(cache, lambda found: found.set_tracer(None)))
    if metrics:
        caches = _observed(meter_provider)
        caches.add(cache)
        ends.append(_later(cache, caches.discard))
    if propagation_histogram:
        ends.append(cache.on_event(_Recorder(cache, meter_provider)))

    def end() -> None:
        while ends:
            ends.pop()()

    return end


def _later(cache: Front, do: Callable[[Front], object]) -> Callable[[], object]:
    """Return what does something with a cache if it is still there."""
    reference = weakref.ref(cache)

    def call() -> None:
        found = reference()
        if found is not None:
            do(found)

    return call


# -- traces ------------------------------------------------------------------------------------------------------------


class RequestTracer:
    """Makes a span for what an operation asks for: ``set_tracer`` of a cache takes one."""

    def __init__(self, cache: Front, *, keys: bool = False, tracer_provider: TracerProvider | None = None) -> None:
        """Make a tracer for one cache, which it does not keep alive.

        Args:
            cache: the cache.
            keys: show keys and tags.
            tracer_provider: whose tracer to use; None for the global one.
        """
        self._tracer = get_tracer(SCOPE, __version__, tracer_provider)
        self._keys = keys
        self._common: dict[str, Any] = {NAMESPACE: cache.namespace}
        self._remote = _server_attributes(cache.server)

    def __call__(self, instance_id: str, requests: Sequence[Request]) -> AbstractContextManager[object]:
        """Return the span around what answers these requests, as a context manager."""
        kind = type(requests[0])
        if kind in FRONT_REQUESTS and kind not in _LOCAL_SPANS:
            return nullcontext()  # nothing is waited for
        return self._span(instance_id, requests)

    @contextmanager
    def _span(self, instance_id: str, requests: Sequence[Request]) -> Iterator[None]:
        first = requests[0]
        local = _LOCAL_SPANS.get(type(first))
        operation = local or type(first).__name__.removesuffix("Request").lower()
        with self._tracer.start_as_current_span(
            f"coherent_cache {operation}",
            kind=SpanKind.INTERNAL if local else SpanKind.CLIENT,
            record_exception=False,  # its text, or a loader's, may hold anything
            set_status_on_exception=False,
        ) as span:
            if span.is_recording():
                span.set_attributes(self._common | {INSTANCE: instance_id})
                if not local:
                    span.set_attributes(self._remote | {_DB_OPERATION: operation})
                self._describe(span, requests)
            try:
                yield
            except BaseException as error:
                span.set_attribute(_ERROR, type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def _describe(self, span: Span, requests: Sequence[Request]) -> None:
        names = [name for request in requests for name in _names(request)]
        span.set_attribute(KEY_COUNT, len(names))
        if self._keys:
            span.set_attribute(KEYS, names[:MAX_KEYS_PER_SPAN])
        shards: set[int] = {request.shard for request in requests if not isinstance(request, FrontRequest)}
        if shards:
            span.set_attribute(SHARD, sorted(shards))


_LOCAL_SPANS: Final[dict[type, str]] = {LoadRequest: "load", WaitRequest: "wait"}
"""Names of the spans for what leaves no process."""


def _names(request: Request) -> Iterable[str]:
    """Return the keys, or tags, that a request is about."""
    if isinstance(request, LoadRequest):
        return dict.fromkeys([flight.key for flight in request.flights] + [lease.key for lease in request.leases])
    if isinstance(request, WaitRequest):
        return () if request.flight is None else (request.flight.key,)
    if isinstance(request, RenewRequest):
        return (request.lease.key,)
    if isinstance(request, FloorRequest):
        return request.tags
    if isinstance(request, TouchRequest | LeaseRequest):
        return (request.key,)
    keys = getattr(request, "keys", ())
    return [key.decode() if isinstance(key, bytes) else key for key in keys]


def _server_attributes(server: str) -> dict[str, str | int]:
    """Return what the conventions for databases say about where one is, of a cache's ``server``."""
    found = re.fullmatch(r"(.+):(\d+)/(\d+)", server)
    attributes: dict[str, str | int] = {_DB_SYSTEM: "redis", "server.address": found[1] if found else server}
    if found:
        attributes |= {"server.port": int(found[2]), "db.namespace": found[3]}
    return attributes


# -- metrics -----------------------------------------------------------------------------------------------------------


class _Snapshots:
    """The caches that one meter shows, and a snapshot of each that serves all metrics of one collection."""

    def __init__(self, caches: weakref.WeakSet[Front]) -> None:
        self._caches = caches
        self._lock = threading.Lock()
        self._read: set[str] = set()
        self._taken: list[tuple[dict[str, str], CacheStats]] = []

    def read(self, metric: Metric) -> list[Observation]:
        """Return a metric's points. Who reads one for the second time begins another collection."""
        with self._lock:
            if not self._read or metric.name in self._read:
                self._read.clear()
                self._taken = [
                    ({NAMESPACE: cache.namespace, INSTANCE: cache.instance_id}, cache.stats())
                    for cache in list(self._caches)
                ]
            self._read.add(metric.name)
            return [
                Observation(number, common | dict(zip(metric.labels, labels, strict=True)))
                for common, stats in self._taken
                for labels, number in metric.read(stats)
                if isfinite(number)
            ]


_per_provider: Final[weakref.WeakKeyDictionary[MeterProvider, weakref.WeakSet[Front]]] = weakref.WeakKeyDictionary()
_GLOBAL: Final = NoOpMeterProvider()
"""Stands for the global one, which is another object before the application sets it than after."""

_observing: Final = threading.Lock()


def _observed(provider: MeterProvider | None) -> weakref.WeakSet[Front]:
    """Return the caches that a provider's meter shows. Its instruments are made once: a meter ignores second ones."""
    owner = _GLOBAL if provider is None else provider
    with _observing:
        caches = _per_provider.get(owner)
        if caches is None:
            caches = weakref.WeakSet()
            _make_instruments(_Snapshots(caches), provider)
            _per_provider[owner] = caches
    return caches


def _make_instruments(snapshots: _Snapshots, provider: MeterProvider | None) -> None:
    meter = get_meter(SCOPE, __version__, provider)

    def observing(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: snapshots.read(metric)

    for metric in METRICS:
        if metric.kind == "counter":
            meter.create_observable_counter(metric.name, [observing(metric)], metric.unit, metric.help)
        elif metric.kind == "gauge":
            meter.create_observable_gauge(metric.name, [observing(metric)], metric.unit, metric.help)


class _Recorder:
    """Records the propagation of each message."""

    def __init__(self, cache: Front, provider: MeterProvider | None) -> None:
        [metric] = [metric for metric in METRICS if metric.kind == "histogram"]
        self._histogram: Histogram = get_meter(SCOPE, __version__, provider).create_histogram(
            metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=LAG_BUCKETS
        )
        self._cache = weakref.ref(cache)

    def __call__(self, event: Event) -> None:
        if isinstance(event, InvalidationReceived) and event.lag_ms is not None:
            cache = self._cache()
            if cache is not None:
                labels = {NAMESPACE: cache.namespace, INSTANCE: cache.instance_id}
                self._histogram.record(event.lag_ms / 1000, labels)
