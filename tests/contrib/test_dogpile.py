"""The dogpile.cache backend: dogpile's own suites for backends, and what is ours."""

from __future__ import annotations

import secrets
import threading
import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import dogpile.cache
import pytest
from dogpile.cache.api import NO_VALUE, CachedValue
from dogpile.testing import fixtures

from coherent_cache import CoherentCache, ConfigError, ForeignValue
from coherent_cache.contrib.dogpile import CoherentCacheBackend, CoherentInvalidation, DistributedMutex
from coherent_cache.remote.memory import forget_server


class Suite:
    """Gives dogpile's suites one cache per class."""

    backend = "coherent_cache"
    arguments: Mapping[str, object] = MappingProxyType({})

    @classmethod
    def setup_class(cls):
        cls.name = secrets.token_hex(8)
        cls.cache = CoherentCache(f"memory://{cls.name}", namespace="dogpile", heartbeat=0.1, ttl=None)
        cls.config_args = {"arguments": {"cache": cls.cache, **cls.arguments}}
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        cls.cache.close()
        forget_server(cls.name)

    def test_argument_dictionary_unmodified(self):
        # dogpile's own adds arguments that do not exist; ours refuses those.
        arguments = dict(self.config_args["arguments"])
        dogpile.cache.make_region().configure(self.backend, arguments=arguments)
        assert arguments == self.config_args["arguments"]


class Quick:
    """Leaves out what sleeps for seconds, and is about dogpile rather than its backends."""

    test_threaded_dogpile = None
    test_threaded_get_multi = None
    test_region_expire = None


class TestBackend(Suite, Quick, fixtures._GenericBackendTestSuite):
    pass


class TestSerializer(Suite, Quick, fixtures._GenericSerializerTestSuite, fixtures._GenericBackendTestSuite):
    pass


class TestDistributedLock(Suite, fixtures._GenericMutexTestSuite):
    arguments = MappingProxyType({"distributed_lock": True, "lock_sleep": 0.005})


@pytest.fixture
def region(coherent_cache_memory):
    return region_of(coherent_cache_memory)


def region_of(cache, *, name="region", arguments=None, **options):
    arguments = {"cache": cache} | (arguments or {})
    return dogpile.cache.make_region(name).configure("coherent_cache", arguments=arguments, **options)


def test_a_value_is_made_once_in_the_fleet(region, coherent_cache_factory):
    peer, made = region_of(coherent_cache_factory()), []

    def make():
        made.append(1)
        return {"price": (1, 2)}

    assert region.get_or_create("key", make) == {"price": (1, 2)}
    assert peer.get_or_create("key", make) == {"price": (1, 2)}
    assert region.get_or_create("key", make) == {"price": (1, 2)}
    assert made == [1]
    assert region.get_value_metadata("key").age >= 0
    peer.delete("key")
    while region.get("key") is not NO_VALUE:  # until the message is there
        pass


def test_several_at_once(region):
    asked = []

    def make(*keys):
        asked.append(keys)
        return [key.upper() for key in keys]

    region.set_multi({"a": "A", "c": None})
    assert region.get_or_create_multi(["a", "b", "c", "d"], make) == ["A", "B", None, "D"]
    assert sorted(asked[0]) == ["b", "d"]
    assert region.get_multi(["d", "-", "c"]) == ["D", NO_VALUE, None]
    region.delete_multi(["a", "b"])
    assert region.get_multi(["a", "b"]) == [NO_VALUE, NO_VALUE]


def test_no_value_is_pickled(region, coherent_cache_memory):
    region.set("key", [1, (2, None)])
    stored = coherent_cache_memory.get("key")
    assert stored[0] == [1, (2, None)]
    assert set(stored[1]) == {"v", "ct"}
    assert type(region.backend.get("key")) is CachedValue


def test_a_value_of_others_is_told(region, coherent_cache_memory):
    for value in (7, (1, 2), (1, {}, 3)):
        coherent_cache_memory.set("key", value)
        with pytest.raises(ForeignValue, match="dogpile"):
            region.get("key")


def test_long_keys_have_a_digest(region, coherent_cache_memory):
    region.set("k" * 5000, 1)
    assert region.get("k" * 5000) == 1
    assert region.get("k" * 4999) is NO_VALUE
    region.set("short", 1)
    assert "short" in coherent_cache_memory


def test_decorated_functions(region):
    calls = []

    @region.cache_on_arguments(namespace="prices")
    def price(product, currency):
        calls.append(product)
        return product * 2

    assert price(7, "EUR") == price(7, "EUR") == 14
    price.invalidate(7, "EUR")
    assert price(7, "EUR") == 14
    assert price.refresh(7, "EUR") == 14
    assert calls == [7, 7, 7]


def test_tags(coherent_cache_memory):
    region = region_of(coherent_cache_memory, arguments={"tags": ["prices"]})
    region.set("a", 1)
    region.set_multi({"b": 1})
    coherent_cache_memory.invalidate_tags("prices")
    assert region.get_multi(["a", "b"]) == [NO_VALUE, NO_VALUE]


@pytest.mark.parametrize("hard", [True, False])
def test_an_invalidation_of_the_region_counts_for_all_processes(hard, coherent_cache_factory):
    caches = coherent_cache_factory(), coherent_cache_factory()
    one, other = (region_of(cache, region_invalidator=CoherentInvalidation(cache, "prices")) for cache in caches)
    for strategy in (one.region_invalidator, other.region_invalidator):
        assert not strategy.is_invalidated(0)
        assert not (strategy.was_hard_invalidated())
        assert not (strategy.was_soft_invalidated())
    one.set("key", 1)
    assert other.get("key") == 1
    one.invalidate(hard=hard)
    while other.get("key") is not NO_VALUE:  # until the message is there
        pass
    assert other.region_invalidator.was_hard_invalidated() is hard
    assert other.region_invalidator.was_soft_invalidated() is not hard
    assert other.region_invalidator.is_hard_invalidated(0) is hard
    assert other.region_invalidator.is_soft_invalidated(0) is not hard
    assert other.get_or_create("key", lambda: 2, expiration_time=60) == 2
    assert other.get("key") == 2


# -- the lock ----------------------------------------------------------------------------------------------------------


def mutex(cache, key="key", *, timeout=60, sleep=0.001):
    return DistributedMutex(cache, key, timeout=timeout, sleep=sleep)


def test_a_lock_is_one_of_all_processes(coherent_cache_factory):
    one, other = (mutex(coherent_cache_factory()) for _ in range(2))
    assert one.acquire()
    assert not other.acquire(False)
    assert one.locked()
    assert other.locked()
    thread = threading.Thread(target=other.acquire)
    thread.start()
    one.release()
    thread.join()
    assert not one.acquire(False)
    other.release()
    assert not other.locked()


def test_a_lock_whose_holder_is_gone_is_free_after_its_time_out(coherent_cache_factory):
    lost, other = (mutex(coherent_cache_factory(), timeout=timeout) for timeout in (0.05, 60))
    assert lost.acquire()
    assert other.acquire()
    lost.release()  # too late, and another one's by now
    assert not lost.acquire(False)
    other.release()


def test_a_lock_that_redis_does_not_give_is_not_kept(coherent_cache_factory):
    cache = coherent_cache_factory()
    lock = mutex(cache)
    assert lock.acquire()
    cache.close()
    for _ in range(2):
        with pytest.raises(Exception, match="closed"):
            lock.release() if lock._version else lock.acquire(False)


def test_regions_take_the_distributed_lock(coherent_cache_factory):
    made, entered = [], threading.Barrier(2)
    regions = [
        region_of(coherent_cache_factory(), arguments={"distributed_lock": True, "lock_sleep": 0.001}) for _ in "ab"
    ]

    def make():
        made.append(1)
        return "value"

    def ask(region):
        entered.wait(60)
        assert region.get_or_create("key", make) == "value"

    threads = [threading.Thread(target=ask, args=(region,)) for region in regions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert regions[0].backend.has_lock_timeout()


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_region_configured_by_text_has_a_cache_of_its_own(url):
    region = dogpile.cache.make_region()
    region.configure_from_config(
        {
            "cache.backend": "coherent_cache",
            "cache.arguments.url": url,
            "cache.arguments.namespace": "shop",
            "cache.arguments.max_entries": "5",
            "cache.arguments.distributed_lock": "true",
        },
        "cache.",
    )
    region.set("key", 1)
    cache = region.backend.cache
    assert cache.stats().max_entries == 5
    assert cache.get_entry("key").expires_in is None
    assert region.backend.get_mutex("key")
    cache.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "memory://x"}, "namespace"),
        ({"url": "memory://x", "namespace": "x", "max_entry": 7}, "max_entry"),
        ({"url": "memory://x", "namespace": "x", "max_entries": 0}, "max_entries"),
        ({"cache": {}}, "must be a CoherentCache"),
        ({"distributed_lock": 1}, "distributed_lock"),
        ({"lock_timeout": None}, "lock_timeout"),
        ({"lock_sleep": -1}, "lock_sleep"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        dogpile.cache.make_region().configure("coherent_cache", arguments=arguments)


def test_a_cache_with_options_is_refused(coherent_cache_memory):
    with pytest.raises(ConfigError, match="max_entries"):
        region_of(coherent_cache_memory, arguments={"max_entries": 5})


def test_the_entry_point_leads_to_the_backend():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, attribute = project["entry-points"]["dogpile.cache"]["coherent_cache"].partition(":")
    assert getattr(import_module(module), attribute) is CoherentCacheBackend
