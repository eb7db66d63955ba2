"""Metrics and spans for OpenTelemetry, through its own SDK."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from coherent_cache import AsyncCoherentCache, CacheUnavailable, CoherentCache, ConfigError
from coherent_cache.core.stats import LAG_BUCKETS
from coherent_cache.telemetry.metrics import METRICS
from coherent_cache.telemetry.opentelemetry import MAX_KEYS_PER_SPAN, instrument

SECRET = "s3cret-value"


class Collected:
    """A meter provider and a tracer provider that keep what they are given."""

    def __init__(self):
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.options = {"meter_provider": self.meters, "tracer_provider": self.tracers}

    def metrics(self):
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        [resource] = data.resource_metrics
        [scope] = resource.scope_metrics
        assert scope.scope.name == "coherent_cache"
        return {metric.name: metric for metric in scope.metrics}

    def points(self, name):
        return {tuple(sorted(point.attributes.items())): point for point in self.metrics()[name].data.data_points}

    def spans(self):
        """Return the spans that ended since the last call."""
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        return spans


@pytest.fixture
def collected():
    found = Collected()
    yield found
    found.meters.shutdown()
    found.tracers.shutdown()


def who(**labels):
    return tuple(sorted(({"cache.namespace": "shop", "cache.instance": "worker-1"} | labels).items()))


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_what_is_collected_is_what_stats_says(collected, coherent_cache_memory):
    cache = coherent_cache_memory
    instrument(cache, traces=False, **collected.options)
    cache.set("a", 1)
    assert (cache.get("a"), cache.get("absent")) == (1, None)
    assert collected.points("coherent_cache.hits")[who()].value == 1
    cache.get("a")
    assert collected.points("coherent_cache.hits")[who()].value == 2
    assert collected.points("coherent_cache.entries")[who()].value == 1
    state = {"cache.shard": "0", "cache.state": "coherent"}
    assert collected.points("coherent_cache.state")[who(**state)].value == 1


def test_every_metric_of_the_table_is_given_with_its_unit(collected, coherent_cache_memory, coherent_cache_factory):
    instrument(coherent_cache_memory, propagation_histogram=True, **collected.options)
    seen = threading.Event()
    coherent_cache_memory.on_event(lambda event: seen.set() if event.name == "invalidation" else None)
    coherent_cache_memory.wait_ready()
    coherent_cache_factory(instance_id="other").set("a", 1)
    assert seen.wait(30)
    found = collected.metrics()
    assert {(name, metric.unit, metric.description) for name, metric in found.items()} == {
        (metric.name, metric.unit, metric.help) for metric in METRICS
    }
    for metric in METRICS:
        data = found[metric.name].data
        assert type(data).__name__ == {"counter": "Sum", "gauge": "Gauge", "histogram": "Histogram"}[metric.kind]
        assert getattr(data, "is_monotonic", True)
    [point] = found["coherent_cache.propagation"].data.data_points
    assert tuple(point.explicit_bounds) == LAG_BUCKETS
    assert point.count >= 1


def test_one_collection_takes_one_snapshot_of_each_cache(collected, coherent_cache_memory, monkeypatch):
    instrument(coherent_cache_memory, **collected.options)
    taken = []
    real = type(coherent_cache_memory).stats
    monkeypatch.setattr(type(coherent_cache_memory), "stats", lambda cache: taken.append(cache) or real(cache))
    collected.metrics()
    assert len(taken) == 1
    collected.metrics()
    assert len(taken) == 2


def test_several_caches_share_a_meter(collected, coherent_cache_factory):
    for name in ("one", "two"):
        cache = coherent_cache_factory(instance_id=name)
        instrument(cache, **collected.options)
        cache.set("a", 1)
        cache.get("a")
    hits = collected.points("coherent_cache.hits")
    assert [hits[who(**{"cache.instance": name})].value for name in ("one", "two")] == [1, 1]


def test_what_ends_it_ends_all_of_it(collected, coherent_cache_memory):
    end = instrument(coherent_cache_memory, propagation_histogram=True, **collected.options)
    end()
    end()
    coherent_cache_memory.set("a", 1)
    assert not collected.spans()
    assert not collected.metrics()
    again = instrument(coherent_cache_memory, **collected.options)
    coherent_cache_memory.set("a", 1)
    assert collected.spans()
    assert collected.points("coherent_cache.hits")
    again()


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(collected, coherent_cache_memory):
    """Return an instrumented cache that has everything behind it which happens once."""
    coherent_cache_memory.wait_ready()
    coherent_cache_memory.set("warm", SECRET)
    end = instrument(coherent_cache_memory, metrics=False, **collected.options)
    yield coherent_cache_memory
    end()


def test_a_local_hit_makes_no_span(traced, collected):
    assert traced.get("warm") == SECRET
    assert traced.get_many(["warm"]) == {"warm": SECRET}
    assert traced.get_or_set("warm", lambda: None) == SECRET
    assert not collected.spans()


def test_a_local_hit_does_not_touch_the_tracer(coherent_cache_memory):
    class Untouchable:
        def __call__(self, *_):
            raise AssertionError("asked")

    coherent_cache_memory.set("warm", 1)
    coherent_cache_memory.set_tracer(Untouchable())
    assert coherent_cache_memory.get("warm") == 1
    assert coherent_cache_memory.get_or_set("warm", lambda: 2) == 1
    with pytest.raises(AssertionError, match="asked"):  # it would have been told
        coherent_cache_memory.get("absent")


def test_a_round_trip_is_a_span_of_a_client(traced, collected):
    traced.get("absent")
    [span] = collected.spans()
    assert span.name == "coherent_cache read"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes)
    assert attributes.pop("server.address").startswith("memory://")
    assert attributes == {
        "cache.namespace": "shop",
        "cache.instance": "worker-1",
        "cache.shard": (0,),
        "cache.key_count": 1,
        "db.system.name": "redis",
        "db.operation.name": "read",
    }


@pytest.mark.parametrize(
    ("operation", "name", "keys"),
    [
        (lambda cache: cache.get_many(["x", "y"]), "read", ("x", "y")),
        (lambda cache: cache.set("x", SECRET), "store", ("x",)),
        (lambda cache: cache.set_many({"x": SECRET, "y": SECRET}), "store", ("x", "y")),
        (lambda cache: cache.delete("x"), "delete", ("x",)),
        (lambda cache: cache.touch("x"), "touch", ("x",)),
        (lambda cache: cache.invalidate_tags("red"), "floor", ("red",)),
        (lambda cache: cache.clear(), "floor", ()),
    ],
)
def test_keys_are_shown_only_if_that_is_allowed(
    collected, coherent_cache_memory, coherent_cache_factory, operation, name, keys
):
    for allowed in (False, True):
        cache = coherent_cache_factory(instance_id=f"allowed-{allowed}")
        cache.wait_ready()
        instrument(cache, metrics=False, keys=allowed, **collected.options)
        operation(cache)
        [span] = collected.spans()
        assert span.name == f"coherent_cache {name}"
        assert span.attributes["cache.key_count"] == len(keys)
        assert span.attributes.get("cache.keys") == (keys if allowed else None)


def test_a_span_shows_a_bounded_number_of_keys(collected, coherent_cache_memory):
    coherent_cache_memory.wait_ready()
    instrument(coherent_cache_memory, metrics=False, keys=True, **collected.options)
    coherent_cache_memory.set_many({f"k{number}": 1 for number in range(100)})
    [span] = collected.spans()
    assert span.attributes["cache.key_count"] == 100
    assert len(span.attributes["cache.keys"]) == MAX_KEYS_PER_SPAN


def test_a_load_is_a_span_and_what_it_does_are_its_children(traced, collected):
    tracer = collected.tracers.get_tracer("test")

    def load():
        with tracer.start_as_current_span("database"):
            return SECRET

    with tracer.start_as_current_span("request"):
        assert traced.get_or_set("x", load) == SECRET
    spans = {span.name: span for span in collected.spans()}
    parents = {
        name: next((other for other, candidate in spans.items() if span.parent and
                    candidate.context.span_id == span.parent.span_id), None)
        for name, span in spans.items()
    }  # fmt: skip
    assert parents == {
        "request": None,
        "coherent_cache read": "request",
        "coherent_cache lease": "request",
        "coherent_cache load": "request",
        "database": "coherent_cache load",
        "coherent_cache fill": "request",
    }
    assert spans["coherent_cache load"].kind is SpanKind.INTERNAL
    assert spans["coherent_cache load"].attributes["cache.key_count"] == 1


def test_a_wait_for_another_ones_load_is_a_span(traced, collected):
    loading, go_on = threading.Event(), threading.Event()

    def load():
        loading.set()
        assert go_on.wait(30)
        return 1

    first = threading.Thread(target=traced.get_or_set, args=("x", load))
    first.start()
    assert loading.wait(30)
    second = threading.Thread(target=traced.get_or_set, args=("x", load))
    second.start()
    flights = traced._runtime.instance.flights
    while not flights._flights["x"].waiters:
        pass
    go_on.set()
    first.join()
    second.join()
    assert "coherent_cache wait" in {span.name for span in collected.spans()}


def test_a_load_in_the_background_belongs_to_who_began_it(traced, collected):
    request = ContextVar("request")
    seen, refreshed = [], threading.Event()

    def load():
        seen.append((request.get(None), threading.current_thread()))
        if len(seen) == 2:
            refreshed.set()
        return 1

    traced.get_or_set("x", load, ttl=10)
    collected.spans()
    request.set("seven")
    with collected.tracers.get_tracer("test").start_as_current_span("request") as span:
        traced.get_or_set("x", load, ttl=1000, refresh_ahead=0.5)  # 10 s are left of it
    assert refreshed.wait(30)
    traced.close()  # waits for its end
    assert [name for name, _ in seen] == [None, "seven"]
    assert seen[1][1] is not threading.current_thread()
    loads = [found for found in collected.spans() if found.name == "coherent_cache load"]
    assert [found.parent.span_id for found in loads] == [span.get_span_context().span_id]


def test_no_value_and_no_password_is_in_any_span(collected, coherent_cache_memory, coherent_cache_factory):
    class Refused(Exception):
        pass

    def fail():
        raise Refused(SECRET)

    cache = coherent_cache_factory()
    cache.wait_ready()
    instrument(cache, metrics=False, **collected.options)
    cache.set("a", SECRET, tags=["t"])
    cache.set_many({"b": SECRET})
    cache.update("a", lambda value: value)
    cache.get_or_set("c", lambda: SECRET)
    with cache.batch() as batch:
        batch.set("d", SECRET)
    with pytest.raises(Refused):
        cache.get_or_set("e", fail)
    spans = collected.spans()
    [failed] = [span for span in spans if span.status.status_code is StatusCode.ERROR]
    assert failed.name == "coherent_cache load"
    assert SECRET not in "".join(span.to_json() for span in spans)


def test_a_refusal_is_an_error_with_its_type_and_no_text(collected):
    with CoherentCache("redis://me:hunter2@127.0.0.1:1/3", namespace="shop", timeout=0.5) as cache:
        instrument(cache, metrics=False, **collected.options)
        with pytest.raises(CacheUnavailable):
            cache.get("a")
    [span] = collected.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert not span.status.description
    assert not span.events
    assert span.attributes["error.type"] == "CacheUnavailable"
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("127.0.0.1", 1)
    assert span.attributes["db.namespace"] == "3"
    assert "hunter2" not in span.to_json()


def test_the_asynchronous_front_is_instrumented_alike(collected):
    async def serve():
        async with AsyncCoherentCache("memory://async", namespace="shop", instance_id="worker-1") as cache:
            await cache.wait_ready()
            end = instrument(cache, **collected.options)
            tracer = collected.tracers.get_tracer("test")

            async def load():
                with tracer.start_as_current_span("database"):
                    await asyncio.sleep(0)
                    return 1

            async def request(name):
                with tracer.start_as_current_span(name):
                    assert await cache.get_or_set(name, load) == 1
                    assert await cache.get(name) == 1  # a hit

            await asyncio.gather(request("one"), request("two"))
            hits = collected.points("coherent_cache.hits")[who()].value
            end()
            return hits

    assert asyncio.run(serve()) == 2
    spans = collected.spans()
    for name in ("one", "two"):
        [request] = [span for span in spans if span.name == name]
        mine = [span for span in spans if span.context.trace_id == request.context.trace_id and span is not request]
        assert sorted(span.name for span in mine) == [
            "coherent_cache fill", "coherent_cache lease", "coherent_cache load", "coherent_cache read", "database",
        ]  # fmt: skip
        [load] = [span for span in mine if span.name == "coherent_cache load"]
        [database] = [span for span in mine if span.name == "database"]
        assert database.parent.span_id == load.context.span_id


def test_one_tracer_at_a_time(traced, collected):
    with pytest.raises(ConfigError, match="tracer"):
        instrument(traced, **collected.options)


def test_a_cache_that_is_not_instrumented_needs_none_of_it():
    code = """
import sys
sys.modules["opentelemetry"] = sys.modules["prometheus_client"] = None
from coherent_cache import CoherentCache
with CoherentCache("memory://", namespace="n") as cache:
    cache.set("a", 1)
    cache.get("a")
print([name for name in sys.modules if name.startswith("coherent_cache.telemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
